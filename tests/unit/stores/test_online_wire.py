"""Commands and replies of the fast read, byte by byte."""

import numpy as np
import pyarrow as pa
import pytest
import redis

from headrace.hashing import xxh64
from headrace.identity import shard_of
from headrace.stores import online_wire
from headrace.stores.online_raw import RawRows
from headrace.stores.online_wire import ViewKeys
from headrace.stores.shards import row_key

REPLIES = b"*4\r\n$5\r\nepoch\r\n$1\r\n3\r\n$1\r\na\r\n$0\r\n\r\n*3\r\n$-1\r\n$4\r\n\r\n$1\r\n$2\r\nok\r\n"


PLACE = "here:1"


class Connection:
    """A socket whose server has answered already, handing over `step` bytes at a time."""

    def __init__(self, reply: bytes, step: int) -> None:
        self._reply, self._step, self._at = reply, step, 0

    def recv_into(self, room: memoryview) -> int:
        piece = self._reply[self._at : self._at + min(self._step, len(room))]
        room[: len(piece)] = piece
        self._at += len(piece)
        return len(piece)


@pytest.mark.parametrize("step", range(1, len(REPLIES) + 1))
def test_replies_are_read_wherever_the_network_cuts_them(step: int) -> None:
    buffer, starts, lengths, behind = online_wire.receive(Connection(REPLIES, step), PLACE, 2, 16, online_wire.NO_BYTES)
    assert len(behind) == 0
    assert RawRows(buffer, starts, lengths).to_list()[1:5] == [b"epoch", b"3", b"a", b""]
    assert RawRows(buffer, starts, lengths).part(6, 9).to_list() == [None, b"\r\n$1", b"ok"]
    assert lengths[[0, 5]].tolist() == [-6, -5]


def test_replies_larger_than_the_buffers_are_read_whole() -> None:
    values = [bytes([65 + n % 26]) * (n % 700) for n in range(3_000)]
    reply = b"*3000\r\n" + b"".join(b"$%d\r\n%b\r\n" % (len(value), value) for value in values)
    buffer, starts, lengths, _ = online_wire.receive(
        Connection(reply, 1_000_000), PLACE, 1, 1 << 10, online_wire.NO_BYTES
    )
    assert RawRows(buffer, starts[1:], lengths[1:]).to_list() == values


@pytest.mark.parametrize(
    ("reply", "error", "message"),
    [
        (b"-LOADING the data set\r\n", redis.ResponseError, "refuses a read: LOADING the data set"),
        (b"-MOVED 3 127.0.0.1:7000\r\n", redis.ResponseError, "HEADRACE_REDIS_CLUSTER=true"),
        (b"-CROSSSLOT Keys in request\r\n", redis.ResponseError, "HEADRACE_REDIS_CLUSTER=true"),
        (b"*1\r\n$3\r\nab", redis.ConnectionError, "here:1 closed the connection"),
    ],
)
def test_a_refusal_and_a_broken_connection_say_what_happened(
    reply: bytes, error: type[redis.RedisError], message: str
) -> None:
    with pytest.raises(error, match=message):
        online_wire.receive(Connection(reply, 1_000), PLACE, 1, 1 << 10, online_wire.NO_BYTES)


@pytest.mark.parametrize("step", [*range(1, 40), len(REPLIES), 3 * len(REPLIES)])
def test_what_came_behind_an_answer_begins_the_next_one(step: int) -> None:
    line, behind = Connection(REPLIES * 3, step), online_wire.NO_BYTES
    for _ in range(3):
        buffer, starts, lengths, behind = online_wire.receive(line, PLACE, 2, 16, behind)
        assert RawRows(buffer, starts, lengths).to_list()[1:5] == [b"epoch", b"3", b"a", b""]
        assert RawRows(buffer, starts, lengths).part(6, 9).to_list() == [None, b"\r\n$1", b"ok"]
    assert len(behind) == 0


@pytest.mark.parametrize("keys", [[], ["a"], ["", "é", "x" * 10, "x" * 70, "x" * 1_000], ["é" * n for n in range(20)]])
def test_keys_are_packed_as_the_store_names_rows(keys: list[str]) -> None:
    placed = ViewKeys.place("items", keys, 4)
    assert placed.shards == [shard_of(key, 4) for key in keys]
    names = [row_key(shard_of(key, 4), "items", key).encode() for key in keys]
    assert online_wire._words(placed) == b"".join(b"$%d\r\n%b\r\n" % (len(name), name) for name in names)


def test_the_shard_of_a_column_of_keys_is_that_of_each_key() -> None:
    keys = [str(number) for number in range(100)]
    hashes = xxh64(pa.array(keys)) % np.uint64(7)
    assert hashes.tolist() == [shard_of(key, 7) for key in keys]


def test_raw_rows_are_taken_apart_as_they_were_joined() -> None:
    rows = [b"a", None, b"", b"bcd", None]
    assert RawRows.join(rows).to_list() == rows
    assert RawRows.join(rows).part(2, 5).to_list() == rows[2:]
    assert RawRows.join([]).to_list() == []
    assert RawRows.join([None]).to_list() == [None]
