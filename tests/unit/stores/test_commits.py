import numpy as np
import pytest
import redis

from headrace.aggregates.fold import PackedRows
from headrace.stores.change_feed import changes_key, join_entities
from headrace.stores.commits import ShardCommit, pack
from headrace.stores.shards import OwnedShard, row_key


def packed(rows: dict[str, bytes]) -> PackedRows:
    begins = np.cumsum([0, *map(len, rows.values())])
    return PackedRows(list(rows), b"".join(rows.values()), begins)


def words_of(command: bytes) -> list[bytes]:
    """Read back as a server does (RESP: an array of bulk strings)."""
    head, _, rest = command.partition(b"\r\n")
    assert head[:1] == b"*"
    words = []
    while rest:
        size, _, rest = rest.partition(b"\r\n")
        assert size[:1] == b"$"
        end = int(size[1:])
        assert rest[end : end + 2] == b"\r\n"
        words.append(rest[:end])
        rest = rest[end + 2 :]
    assert len(words) == int(head[1:])
    return words


@pytest.mark.parametrize(
    "rows",
    [{}, {"u": b""}, {"u": b"123456789", "v": b"1234567890"}, {"Zoë 🙂": bytes(range(256)), "w": b"\r\n" * 500}],
    ids=["none", "empty", "one and two digits", "any bytes"],
)
def test_a_commit_is_read_back_as_it_was_packed(rows: dict[str, bytes]) -> None:
    owned = OwnedShard(redis.Redis(), 3, "me", 1_000)  # connects to nothing
    owned.epoch = 7
    change = ShardCommit({"clicks": [packed(rows)]}, {0: 12}, {0: 50}, {"events": 4, "late": 0})
    command, script, keys, *words = words_of(pack(owned, change, {"clicks": 99}))
    assert (command, keys) == (b"EVAL", b"3")
    assert script.strip()
    named = [b"position:0", b"12", b"complete:0", b"50", b"fingerprint:clicks", b"99"]
    begin = [
        *map(str.encode, (*owned.keys, changes_key(3))),
        b"7",
        b"me",
        b"1000",
        b"3",
        *named,
        b"1",
        b"count:events",
        b"4",
        b"0",
        b"0",
    ]
    assert words[: len(begin)] == begin
    pairs = [part for key, row in rows.items() for part in (row_key(3, "clicks", key).encode(), row)]
    assert words[len(begin) :] == pairs


def test_a_commit_names_the_entities_of_the_views_that_are_announced() -> None:
    owned = OwnedShard(redis.Redis(), 3, "me", 1_000)  # connects to nothing
    rows = {"clicks": [packed({"i1": b"a"}), packed({"i2": b"b"})], "quiet": [packed({"u": b"c"})], "none": []}
    change = ShardCommit(rows, {}, {}, announced=frozenset({"clicks", "none"}))
    words = words_of(pack(owned, change, {}))
    assert words[9:14] == [b"0", b"0", b"1", b"clicks", b"i1\ni2"]


def test_keys_that_hold_the_separator_announce_the_whole_shard() -> None:
    assert join_entities("clicks", ["i1", "i2"]) == ("clicks", "i1\ni2")
    assert join_entities("clicks", ["i1\ni2"]) == ("*", "")
