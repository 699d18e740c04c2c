"""Reads of many keys in one round trip: statuses of shards and rows of views, by HGETALL and MGET.

On one server commands are packed and replies scanned here, over a connection that redis-py made: its own packing and parsing take
longer than the server and the network together. On a cluster, and in asyncio, redis-py's pipeline does the work: one MGET for each
hash tag, all sent before the first answer is read, moved slots followed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import accumulate, pairwise
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow as pa
import redis

from headrace.arrays import Bytes, Ints
from headrace.hashing import hash_slices, string_buffers
from headrace.identity import shard_of
from headrace.kernel import kernel
from headrace.stores.online_raw import NO_SUCH_KEY, RawRows
from headrace.stores.redis_client import no_cluster_as_no_connection
from headrace.stores.shards import commit_key, row_key

_ARRAY: Final = -2
"""An array of k elements is noted with the length -2 - k, in front of its elements."""
_FEW: Final = 8
_RECEIVE_BYTES: Final = 1 << 18
_RECEIVE_FEW_BYTES: Final = 1 << 14
NO_BYTES: Final = np.zeros(0, np.uint8)


class KeyColumns(NamedTuple):
    """Many keys, for kernels: the shard of each, and key i in UTF-8 as `data[offsets[i]:offsets[i + 1]]`."""

    shards: Ints
    offsets: Ints
    data: Bytes


@dataclass(frozen=True)
class ViewKeys:
    """Entity keys of one view and the shard of each; of many keys, as columns too."""

    view: str
    keys: Sequence[str]
    shards: list[int]
    columns: KeyColumns | None

    @classmethod
    def place(cls, view: str, keys: Sequence[str], shards: int) -> "ViewKeys":
        if len(keys) <= _FEW:  # a request's: what columns need to begin with is more than the work
            return cls(view, keys, [shard_of(key, shards) for key in keys], None)
        offsets, data = string_buffers(pa.array(keys, pa.large_string()))
        placed = (hash_slices(data, offsets, np.uint64(0)) % np.uint64(shards)).astype(np.int64)
        return cls(view, keys, placed.tolist(), KeyColumns(placed, offsets, data))

    def of(self, view: str) -> "ViewKeys":
        """The same keys of another view."""
        return ViewKeys(view, self.keys, self.shards, self.columns)


def place_all(wanted: Mapping[str, Sequence[str]], shards: int) -> list[ViewKeys]:
    """Keys of `{view: entity keys}`; those that views share are placed once."""
    known: dict[int, ViewKeys] = {}
    for view, keys in wanted.items():
        if id(keys) not in known:
            known[id(keys)] = ViewKeys.place(view, keys, shards)
    return [known[id(keys)].of(view) for view, keys in wanted.items()]


@dataclass(frozen=True)
class Answer:
    """What was read: the hash of each status asked for, rows of each view in the order asked."""

    statuses: list[dict[bytes, bytes]]
    rows: list[RawRows]


def read(client: Any, wanted: Sequence[ViewKeys], statuses: Sequence[int] = ()) -> Answer:
    """Status hashes of shards, then rows, in one round trip; `client` is `redis.Redis` or `redis.RedisCluster`.

    Raises redis.RedisError.
    """
    if not statuses and not any(each.keys for each in wanted):
        return Answer([], [RawRows.join([]) for _ in wanted])
    if isinstance(client, redis.Redis):
        connection = client.connection_pool.get_connection()
        try:
            return _exchange(connection, wanted, statuses)
        finally:
            client.connection_pool.release(connection)
    with no_cluster_as_no_connection(), client.pipeline(transaction=False) as pipeline:
        queue(pipeline, wanted, statuses)
        return collect(pipeline.execute(), wanted, statuses)


async def read_async(client: Any, wanted: Sequence[ViewKeys], statuses: Sequence[int] = ()) -> Answer:
    """The same with a client of `redis.asyncio`."""
    with no_cluster_as_no_connection():
        async with client.pipeline(transaction=False) as pipeline:
            queue(pipeline, wanted, statuses)
            return collect(await pipeline.execute(), wanted, statuses)


def queue(pipeline: Any, wanted: Sequence[ViewKeys], statuses: Sequence[int]) -> None:
    """Put the commands into a pipeline of redis-py, one MGET for each shard: a cluster answers for one slot at a time."""
    for shard in statuses:
        pipeline.execute_command("HGETALL", commit_key(shard))
    for shard, places in _by_shard(wanted).items():
        # Not `mget`: the pipeline of a cluster refuses that method, whatever the keys.
        pipeline.execute_command("MGET", *[row_key(shard, wanted[at].view, wanted[at].keys[row]) for at, row in places])


def collect(answers: Sequence[Any], wanted: Sequence[ViewKeys], statuses: Sequence[int]) -> Answer:
    """Put a pipeline's answers back into the order asked."""
    rows: list[list[bytes | None]] = [[None] * len(each.keys) for each in wanted]
    for places, found in zip(_by_shard(wanted).values(), answers[len(statuses) :], strict=True):
        for (at, row), value in zip(places, found, strict=True):
            rows[at][row] = value
    return Answer(list(answers[: len(statuses)]), [RawRows.join(each) for each in rows])


def _by_shard(wanted: Sequence[ViewKeys]) -> dict[int, list[tuple[int, int]]]:
    """Which keys lie in each shard: (place of the view, place of the key in it)."""
    places: dict[int, list[tuple[int, int]]] = {}
    for at, each in enumerate(wanted):
        for row, shard in enumerate(each.shards):
            places.setdefault(shard, []).append((at, row))
    return places


def _exchange(connection: Any, wanted: Sequence[ViewKeys], statuses: Sequence[int]) -> Answer:
    command, replies = command_of(wanted, statuses)
    try:
        connection.send_packed_command([command])
        buffer, starts, lengths, _ = receive(
            connection._get_socket(), place_of(connection), replies, room_for(wanted), NO_BYTES
        )
    except BaseException:
        connection.disconnect()  # what is left of the answer must not be taken for the next one's
        raise
    return answer_of(buffer, starts, lengths, wanted, statuses)


def command_of(wanted: Sequence[ViewKeys], statuses: Sequence[int]) -> tuple[bytes, int]:
    """What to send, and how many replies that has."""
    count = sum(len(each.keys) for each in wanted)
    commands = [_status_command(shard) for shard in statuses]
    if count:
        commands += [b"*%d\r\n$4\r\nMGET\r\n" % (count + 1), *[_words(each) for each in wanted]]
    return b"".join(commands), len(statuses) + (count > 0)


def room_for(wanted: Sequence[ViewKeys]) -> int:
    """Bytes to begin with: for a few keys few, since a large buffer is fresh memory from the system each time."""
    return _RECEIVE_FEW_BYTES if all(each.columns is None for each in wanted) else _RECEIVE_BYTES


def answer_of(
    buffer: Bytes, starts: Ints, lengths: Ints, wanted: Sequence[ViewKeys], statuses: Sequence[int]
) -> Answer:
    """What `receive` found of the replies to `command_of` the same."""
    heads = [*(at for at, length in enumerate(lengths.tolist()) if length <= _ARRAY), len(lengths)]
    replies = [RawRows(buffer, starts[head + 1 : end], lengths[head + 1 : end]) for head, end in pairwise(heads)]
    rows = replies[-1] if len(replies) > len(statuses) else RawRows.join([])
    bounds = pairwise(accumulate([len(each.keys) for each in wanted], initial=0))
    return Answer([_mapping(fields) for fields in replies[: len(statuses)]], [rows.part(a, b) for a, b in bounds])


@cache
def _status_command(shard: int) -> bytes:
    key = commit_key(shard).encode()
    return b"*2\r\n$7\r\nHGETALL\r\n$%d\r\n%b\r\n" % (len(key), key)


@cache
def _prefix(view: str, shard: int) -> bytes:
    """What a row's key begins with."""
    return row_key(shard, view, "").encode()


@cache
def _prefixes(view: str, shards: int) -> tuple[Ints, Bytes]:
    """What a row's key begins with, for each shard: offsets and bytes."""
    return string_buffers(pa.array([row_key(shard, view, "") for shard in range(shards)], pa.large_string()))


def _words(each: ViewKeys) -> bytes:
    """Row keys as the wire has them."""
    if each.columns is None:
        names = [_prefix(each.view, shard) + key.encode() for shard, key in zip(each.shards, each.keys, strict=True)]
        return b"".join([b"$%d\r\n%b\r\n" % (len(name), name) for name in names])
    shards, bounds, data = each.columns
    offsets, prefixes = _prefixes(each.view, int(shards.max()) + 1)
    room = len(shards) * (int(np.diff(offsets).max()) + 24) + int(bounds[-1])
    out = np.empty(room, np.uint8)
    return out[: _pack(data, bounds, shards, prefixes, offsets, out)].tobytes()


def _mapping(fields: RawRows) -> dict[bytes, bytes]:
    values = iter([value for value in fields.to_list() if value is not None])
    return dict(zip(values, values, strict=True))


class UnfinishedError(redis.TimeoutError):  # type: ignore[misc]
    """The answer did not come in time; `begun` is what has come of it."""

    def __init__(self, message: str, begun: Bytes) -> None:
        super().__init__(message)
        self.begun = begun


def place_of(connection: Any) -> str:
    """Where a connection leads, for messages."""
    return f"{getattr(connection, 'host', 'the store')}:{getattr(connection, 'port', '')}"


def receive(line: Any, place: str, replies: int, room: int, begun: Bytes) -> tuple[Bytes, Ints, Ints, Bytes]:
    """Read until so many replies, each an array of strings, are complete; `begun` is what has come of them already.

    Gives the buffer, where the strings lie in it, and what has come behind them. `room`: bytes to begin with. Raises redis.RedisError.
    """
    buffer = np.empty(max(room, len(begun)), np.uint8)
    buffer[: len(begun)] = begun
    starts, lengths = np.empty(1_024, np.int64), np.empty(1_024, np.int64)
    filled, at, count, left = len(begun), 0, 0, replies
    while left > 0:
        if filled > at:
            at, count, left = _scan(buffer, filled, at, starts, lengths, count, left)
            if count == len(starts):
                starts = np.concatenate([starts, np.empty_like(starts)])
                lengths = np.concatenate([lengths, np.empty_like(lengths)])
                continue
        if left < 0:
            raise _refusal(buffer[at:filled].tobytes())
        if left > 0:
            if filled == len(buffer):
                buffer = np.concatenate([buffer, np.empty_like(buffer)])
            try:
                filled += _receive_into(line, place, memoryview(buffer)[filled:])  # type: ignore[arg-type]
            except redis.TimeoutError as error:
                raise UnfinishedError(str(error), buffer[:filled].copy()) from error
    return buffer, starts[:count], lengths[:count], buffer[at:filled]


def _receive_into(line: Any, place: str, room: memoryview) -> int:
    try:
        received: int = line.recv_into(room)
    except TimeoutError as error:
        raise redis.TimeoutError(f"no answer from {place} in time") from error
    except OSError as error:
        raise redis.ConnectionError(f"{place} broke off: {error}") from error
    if received == 0:
        raise redis.ConnectionError(f"{place} closed the connection")
    return received


def _refusal(reply: bytes) -> redis.RedisError:
    text = reply.partition(b"\r\n")[0].decode(errors="replace")[1:]
    if text.startswith(("MOVED", "CROSSSLOT")):
        return redis.ResponseError(f"the server is part of a cluster: set HEADRACE_REDIS_CLUSTER=true ({text})")
    return redis.ResponseError(f"the store refuses a read: {text}")


@kernel
def _pack(data: Bytes, offsets: Ints, shards: Ints, prefixes: Bytes, bounds: Ints, out: Bytes) -> int:
    """`$<length>\\r\\n<prefix><key>\\r\\n` for each key; returns how many bytes of `out` are used."""
    at = 0
    for i in range(len(shards)):
        start, end = bounds[shards[i]], bounds[shards[i] + 1]
        length = end - start + offsets[i + 1] - offsets[i]
        digits, power = 1, 10
        while power <= length:
            digits, power = digits + 1, power * 10
        out[at] = 36  # $
        rest = length
        for place in range(at + digits, at, -1):
            out[place] = 48 + rest % 10
            rest //= 10
        at += 1 + digits
        out[at], out[at + 1] = 13, 10
        at += 2
        out[at : at + end - start] = prefixes[start:end]
        out[at + end - start : at + length] = data[offsets[i] : offsets[i + 1]]
        at += length
        out[at], out[at + 1] = 13, 10
        at += 2
    return at


@kernel
def _scan(
    buffer: Bytes, filled: int, at: int, starts: Ints, lengths: Ints, count: int, left: int
) -> tuple[int, int, int]:
    """Note where the strings of the replies lie, from position `at` on, as far as they are complete.

    `left` elements are awaited; it comes back as -1 at a reply that is no array of strings.
    """
    while left > 0 and count < len(starts):
        end = at + 1
        while end < filled and buffer[end] != 13:
            end += 1
        if end + 2 > filled:
            break
        kind, number, negative = buffer[at], 0, False
        starts[count] = at
        for place in range(at + 1, end):
            if buffer[place] == 45:  # -
                negative = True
            else:
                number = number * 10 + (buffer[place] - 48)
        if kind == 42 or kind == 37:  # * or, in the third version of the protocol, % for a mapping
            number *= 1 if kind == 42 else 2
            lengths[count] = _ARRAY - number
            left += number
            at = end + 2
        elif kind == 95 or (kind == 36 and negative):  # _ or $-1
            lengths[count] = NO_SUCH_KEY
            at = end + 2
        elif kind == 36:  # $
            if end + 2 + number + 2 > filled:
                break
            starts[count], lengths[count] = end + 2, number
            at = end + 2 + number + 2
        else:
            return at, count, -1
        count += 1
        left -= 1
    return at, count, left
