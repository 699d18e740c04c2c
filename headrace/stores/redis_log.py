"""The event log on Redis Streams, one stream a partition, on one server or on a cluster."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, Final

import redis
from redis.exceptions import RedisClusterException

from headrace import names
from headrace.stores.event_log import LogEntry, LogFullError, LogUnavailableError
from headrace.stores.redis_replies import ask
from headrace.stores.shards import DeploymentError, check_deployment

_SEQUENCE_BITS: Final = 20
_START: Final = b"0-0"
_FSYNC_WAIT_MS: Final = 5_000

# KEYS: stream   ARGV: first id to keep, id before it
# XTRIM leaves max-deleted-entry-id as it was, by which `trimmed_below` knows what is gone: XSETID says it.
_TRIM_SCRIPT: Final = """
local trimmed = redis.call('XTRIM', KEYS[1], 'MINID', '=', ARGV[1])
if trimmed > 0 then
  local info = redis.call('XINFO', 'STREAM', KEYS[1])
  local found = {}
  for i = 1, #info, 2 do found[info[i]] = info[i + 1] end
  local last = found['last-generated-id']
  local gone = found['length'] == 0 and last or ARGV[2]
  redis.call('XSETID', KEYS[1], last, 'ENTRIESADDED', found['entries-added'], 'MAXDELETEDID', gone)
end
return trimmed
"""
# XINFO tells more, with the first and the last entry whole.
_ENDS_SCRIPT: Final = """
if redis.call('EXISTS', KEYS[1]) == 0 then return {'0-0', '0-0'} end
local info = redis.call('XINFO', 'STREAM', KEYS[1])
local found = {}
for i = 1, #info, 2 do found[info[i]] = info[i + 1] end
return {found['last-generated-id'], found['max-deleted-entry-id']}
"""


def position_of(stream_id: bytes) -> int:
    """Stream id `milliseconds-sequence` as one integer: order is kept, 2^20 entries a millisecond fit."""
    milliseconds, sequence = stream_id.split(b"-")
    return int(milliseconds) << _SEQUENCE_BITS | int(sequence)


def stream_id_of(position: int) -> bytes:
    return b"%d-%d" % (position >> _SEQUENCE_BITS, position & ((1 << _SEQUENCE_BITS) - 1))


class RedisEventLog:
    """`ingested_at` is the server's append time, which the entry's id carries.

    Acknowledged means on disk: with `appendfsync always` the server answers after its fsync, otherwise `append` waits for
    one with WAITAOF. A server without an append-only file is refused.
    """

    def __init__(self, client: "redis.Redis", partitions: int, prefix: str, max_bytes: int) -> None:
        self._redis = client
        self._partitions = partitions
        self._streams = {p: f"{prefix}:log:{p}".encode() for p in range(partitions)}
        self._partition_of = {name: p for p, name in self._streams.items()}
        self._max_bytes = max_bytes
        self._waits_for_fsync: bool | None = None

    @property
    def partitions(self) -> int:
        return self._partitions

    def append(self, payloads: Mapping[int, bytes], counts: Mapping[int, int]) -> dict[int, int]:
        positions: dict[int, int] = {}
        with self._answering("did not confirm the write"):
            try:
                if self._waits_for_fsync is None:
                    check_deployment(self._redis, log_partitions=self._partitions)
                    self._waits_for_fsync = any([_needs_waitaof(server) for server, _ in self._servers(payloads)])
                for server, partitions in self._servers(payloads):
                    positions |= self._append(server, {p: (payloads[p], counts[p]) for p in partitions})
            except (redis.RedisError, DeploymentError, LogUnavailableError):
                self._waits_for_fsync = None
                raise
        return positions

    def _append(self, server: "redis.Redis", entries: Mapping[int, tuple[bytes, int]]) -> dict[int, int]:
        pipeline = server.pipeline(transaction=False)
        for partition, (payload, count) in entries.items():
            pipeline.xadd(self._streams[partition], {"e": payload, "n": count})
        if self._waits_for_fsync:
            pipeline.execute_command("WAITAOF", 1, 0, _FSYNC_WAIT_MS)
        answers = pipeline.execute()
        if self._waits_for_fsync and answers[-1][0] < 1:
            raise LogUnavailableError(f"the event log did not reach the disk within {_FSYNC_WAIT_MS // 1_000} s")
        return {partition: position_of(answer) for partition, answer in zip(entries, answers, strict=False)}

    def read(self, after: Mapping[int, int], max_entries: int, wait_s: float = 0.0) -> list[LogEntry]:
        found: list[LogEntry] = []
        with self._answering():
            servers = self._servers(after)
            # Only one of several servers can be waited for; the others are asked at once.
            for turn, (server, partitions) in enumerate(servers, start=1):
                block = int(wait_s * 1_000) if turn == len(servers) and not found else 0
                positions = {p: after[p] for p in partitions}
                found += self._read(server, positions, max_entries, block)
        return found

    def _read(
        self, server: "redis.Redis", after: Mapping[int, int], max_entries: int, block_ms: int
    ) -> Iterator[LogEntry]:
        together: list[list[int]] = [list(after)]
        if isinstance(self._redis, redis.RedisCluster):
            together = [[partition] for partition in after]  # each stream has a slot of its own
        head: list[bytes | int] = [b"XREAD", b"COUNT", max_entries]
        if block_ms and len(together) == 1:
            head += [b"BLOCK", block_ms]
        commands: list[list[bytes | int]] = [
            [*head, b"STREAMS", *(self._streams[p] for p in group), *(_id_after(after[p]) for p in group)]
            for group in together
        ]
        for answer in ask(server, commands):
            for name, entries in answer or []:
                partition = self._partition_of[name]
                for entry_id, fields in entries:
                    position, values = position_of(entry_id), dict(zip(fields[::2], fields[1::2], strict=True))
                    appended_us = self.appended_at(partition, position)
                    yield LogEntry(partition, position, appended_us, values[b"e"], int(values.get(b"n", 1)))

    def end(self) -> dict[int, int]:
        return {p: position_of(last) for p, (last, _) in self._ends().items()}

    def trimmed_below(self) -> dict[int, int]:
        return {p: position_of(deleted) for p, (_, deleted) in self._ends().items()}

    def appended_at(self, partition: int, position: int) -> int:
        return (position >> _SEQUENCE_BITS) * 1_000

    def position_at(self, partition: int, ingested_at_us: int) -> int:
        return max(0, (ingested_at_us // 1_000 << _SEQUENCE_BITS) - 1)

    def trim(self, below: Mapping[int, int]) -> int:
        # MINID keeps entries with an id >= the one given, exactly (no `~`).
        answers = self._ask(
            below,
            lambda line, p: line.eval(
                _TRIM_SCRIPT, 1, self._streams[p], stream_id_of(below[p] + 1), stream_id_of(below[p])
            ),
        )
        return sum(answers.values())

    def size_bytes(self) -> int:
        answers = self._ask(self._streams, lambda line, p: line.memory_usage(self._streams[p], samples=16))
        return sum(size or 0 for size in answers.values())

    def check_room(self) -> None:
        size = self.size_bytes()
        if size > self._max_bytes:
            raise LogFullError(
                f"the event log holds {size} bytes, its bound is {self._max_bytes} (HEADRACE_LOG_MAX_BYTES)"
            )

    def _ends(self) -> dict[int, list[bytes]]:
        """By partition: ids of its last entry, and of the last one trimmed away."""
        return self._ask(self._streams, lambda line, p: line.eval(_ENDS_SCRIPT, 1, self._streams[p]))

    def _ask(self, partitions: Mapping[int, Any], queue: Any) -> dict[int, Any]:
        """One command for each partition, queued by `queue(pipeline, partition)`; answers by partition."""
        answers: dict[int, Any] = {}
        with self._answering():
            for server, members in self._servers(partitions):
                pipeline = server.pipeline(transaction=False)
                for partition in members:
                    queue(pipeline, partition)
                answers |= dict(zip(members, pipeline.execute(), strict=True))
        return {partition: answers[partition] for partition in partitions}

    def _servers(self, partitions: Mapping[int, Any]) -> "list[tuple[redis.Redis, list[int]]]":
        """The servers that hold the partitions' streams, each with the partitions it holds."""
        if not isinstance(self._redis, redis.RedisCluster):
            return [(self._redis, list(partitions))] if partitions else []
        held: dict[str, tuple[redis.Redis, list[int]]] = {}
        for partition in partitions:
            node = self._redis.get_node_from_key(self._streams[partition])
            held.setdefault(node.name, (self._redis.get_redis_connection(node), []))[1].append(partition)
        return list(held.values())

    @contextmanager
    def _answering(self, failure: str = "does not answer") -> Iterator[None]:
        """Errors of Redis as what they mean for the log."""
        try:
            yield
        except (redis.RedisError, RedisClusterException, DeploymentError) as error:
            if isinstance(self._redis, redis.RedisCluster):
                with suppress(redis.RedisError, RedisClusterException):  # what is wrong is said below
                    self._redis.nodes_manager.initialize()  # a slot may have moved
            raise LogUnavailableError(f"the event log {failure}: {error}") from error


def _id_after(position: int) -> bytes:
    return stream_id_of(position) if position else _START


def _needs_waitaof(server: "redis.Redis") -> bool:
    config = server.config_get("append*")
    if config.get("appendonly") != "yes":
        raise LogUnavailableError("the event log's server has no append-only file: start it with `appendonly yes`")
    return bool(config.get("appendfsync") != "always")


def open_redis_log(client: "redis.Redis", partitions: int, max_bytes: int) -> RedisEventLog:
    return RedisEventLog(client, partitions, names.PROJECT, max_bytes)
