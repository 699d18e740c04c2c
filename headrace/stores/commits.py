"""Committing shards: rows, positions and counters of each in one script, those of many shards in one write and one wait for the disk.

The same script tells the change feed whose rows they are (headrace.stores.change_feed).

The commands are put together by hand. A commit has thousands of rows of a few hundred bytes, and what redis-py spends on each is more
than what it costs to make it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import polars as pl
import redis

from headrace.aggregates.fold import PackedRows
from headrace.arrays import Bytes, Ints
from headrace.hashing import string_buffers
from headrace.kernel import kernel
from headrace.stores.change_feed import changes_key, join_entities
from headrace.stores.plain_puts import PUT
from headrace.stores.shards import OwnedShard, row_key, shard_tag

# KEYS: commit hash, lease, feed of changes
# ARGV: epoch, owner, lease ms, number of hash fields, field, value, ..., number of counters, name, value, ...,
#   number of views that are announced, view, entity keys, ...,
#   number of plain views, (view, prefix, number of rows, entity key, row, ...)..., row key, row, ...
# MSET takes its arguments from the stack, which holds some thousands.
_COMMIT_SCRIPT: Final = (
    PUT
    + """
if redis.call('HGET', KEYS[1], 'epoch') ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[2], ARGV[2], 'PX', ARGV[3])
local at, last = 5, 4 + 2 * tonumber(ARGV[4])
if last > 4 then redis.call('HSET', KEYS[1], unpack(ARGV, at, last)) end
at = last + 2
last = at - 1 + 2 * tonumber(ARGV[last + 1])
for i = at, last, 2 do redis.call('HINCRBY', KEYS[1], ARGV[i], ARGV[i + 1]) end
at = last + 2
last = at - 1 + 2 * tonumber(ARGV[last + 1])
for i = at, last, 2 do announce(KEYS[1], KEYS[3], ARGV[i], ARGV[i + 1]) end
at = last + 2
for _ = 1, tonumber(ARGV[last + 1]) do
  last = at + 2 + 2 * tonumber(ARGV[at + 2])
  put(KEYS[1], KEYS[3], ARGV[at], ARGV[at + 1], ARGV, at + 3, last)
  at = last + 1
end
for i = at, #ARGV, 2000 do redis.call('MSET', unpack(ARGV, i, math.min(i + 1999, #ARGV))) end
return 1
"""
).encode()


@dataclass(frozen=True)
class ShardCommit:
    """What one commit of a shard changes: rows by view; positions and completeness by log partition.

    `announced`: the views whose changes go to the feed. `plain`: rows of plain views of items by entity key, which are put as
    whoever else writes such rows does it (headrace.stores.plain_puts), and announced.
    """

    rows: Mapping[str, Sequence[PackedRows]]
    positions: Mapping[int, int]
    complete: Mapping[int, int]
    counters: Mapping[str, int] = field(default_factory=dict)
    announced: frozenset[str] = frozenset()
    plain: Mapping[str, Sequence[tuple[str, bytes]]] = field(default_factory=dict)


class SentCommits:
    """Commits that were sent and whose answers are to come. Each shard's is made in whole or not at all."""

    def __init__(
        self, client: "redis.Redis", commits: Sequence[tuple[OwnedShard, ShardCommit]], fingerprints: Mapping[str, int]
    ) -> None:
        """Sends them. Raises redis.RedisError: then each of them may be made or not, which the shards' positions tell."""
        self._waiting: list[tuple[Any, Any, list[OwnedShard]]] = []
        try:
            for server, members in _by_server(client, commits).items():
                connection = server.connection_pool.get_connection()
                self._waiting.append((server, connection, [shard for shard, _ in members]))
                connection.send_packed_command([pack(shard, change, fingerprints) for shard, change in members])
        except BaseException:
            self.drop()
            raise

    def finish(self) -> list[OwnedShard]:
        """Wait until they are made; returns the shards that somebody else has taken over. Raises redis.RedisError, as sending does."""
        lost: list[OwnedShard] = []
        try:
            for _, connection, shards in self._waiting:
                answers = [connection.read_response() for _ in shards]
                lost += [shard for shard, answer in zip(shards, answers, strict=True) if answer != 1]
        except BaseException:
            self.drop()
            raise
        for server, connection, _ in self._waiting:
            server.connection_pool.release(connection)
        self._waiting.clear()
        return lost

    def drop(self) -> None:
        """Wait no more. Answers that come must not be taken for those of the next command."""
        for server, connection, _ in self._waiting:
            connection.disconnect()
            server.connection_pool.release(connection)
        self._waiting.clear()


def _by_server(
    client: Any, commits: Sequence[tuple[OwnedShard, ShardCommit]]
) -> dict[Any, list[tuple[OwnedShard, ShardCommit]]]:
    if not isinstance(client, redis.RedisCluster):
        return {client: list(commits)}
    servers: dict[Any, list[tuple[OwnedShard, ShardCommit]]] = {}
    for shard, change in commits:
        server = client.get_redis_connection(client.get_node_from_key(shard.keys[0]))
        servers.setdefault(server, []).append((shard, change))
    return servers


def pack(shard: OwnedShard, change: ShardCommit, fingerprints: Mapping[str, int]) -> bytes:
    """The EVAL of one commit as the protocol has it (RESP: an array of bulk strings)."""
    fields: list[object] = []
    for kind, numbers in (("position", change.positions), ("complete", change.complete), ("fingerprint", fingerprints)):
        for name, value in numbers.items():
            fields += [f"{kind}:{name}", value]
    counters = [part for name, value in change.counters.items() if value for part in (f"count:{name}", value)]
    announced = [
        part
        for view, chunks in change.rows.items()
        if view in change.announced and any(some.keys for some in chunks)
        for part in join_entities(view, [key for some in chunks for key in some.keys])
    ]
    words = ["EVAL", _COMMIT_SCRIPT, 3, *shard.keys, changes_key(shard.shard), shard.epoch, shard.owner, shard.lease_ms]
    words += [
        len(fields) // 2,
        *fields,
        len(counters) // 2,
        *counters,
        len(announced) // 2,
        *announced,
        len(change.plain),
    ]
    for view, puts in change.plain.items():
        words += [view, row_key(shard.shard, view, ""), len(puts), *(part for pair in puts for part in pair)]
    rows = [(view, some) for view, chunks in change.rows.items() for some in chunks]
    count = len(words) + 2 * sum(len(some.keys) for _, some in rows)
    packed = [_pack_rows(f"{shard_tag(shard.shard)}{view}:", some) for view, some in rows]
    return b"".join([b"*%d\r\n" % count, *map(_bulk, words), *packed])


def _bulk(word: object) -> bytes:
    raw = word if isinstance(word, bytes) else str(word).encode()
    return b"$%d\r\n%b\r\n" % (len(raw), raw)


def _pack_rows(prefix: str, rows: PackedRows) -> bytes:
    """Key and row of each, as bulk strings."""
    cut, keys = string_buffers(pl.Series(rows.keys, dtype=pl.String))
    start = np.frombuffer(prefix.encode(), np.uint8)
    longest_head = len(b"$\r\n\r\n") + 19
    out = np.empty(int(cut[-1] - cut[0]) + len(rows.data) + len(rows.keys) * (len(start) + 2 * longest_head), np.uint8)
    size = _write_rows(out, start, keys, cut, np.frombuffer(rows.data, np.uint8), rows.begins)
    return out[:size].tobytes()


@kernel
def _write_rows(out: Bytes, prefix: Bytes, keys: Bytes, cut: Ints, data: Bytes, begins: Ints) -> int:
    at = 0
    for i in range(len(begins) - 1):
        at = _write_head(out, at, len(prefix) + cut[i + 1] - cut[i])
        at = _write(out, at, prefix, 0, len(prefix))
        at = _write_end(out, _write(out, at, keys, cut[i], cut[i + 1]))
        at = _write_head(out, at, begins[i + 1] - begins[i])
        at = _write_end(out, _write(out, at, data, begins[i], begins[i + 1]))
    return at


@kernel
def _write(out: Bytes, at: int, source: Bytes, start: int, end: int) -> int:
    for i in range(end - start):
        out[np.uint64(at + i)] = source[np.uint64(start + i)]
    return at + end - start


@kernel
def _write_head(out: Bytes, at: int, size: int) -> int:
    """`$size` and the end of its line."""
    out[at] = 36
    digits = 1
    while size >= 10**digits:
        digits += 1
    for i in range(digits):
        out[at + digits - i] = 48 + size // 10**i % 10
    return _write_end(out, at + digits + 1)


@kernel
def _write_end(out: Bytes, at: int) -> int:
    out[at], out[at + 1] = 13, 10
    return at + 2
