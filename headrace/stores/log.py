"""The event log: append-only, partitioned by user key, ordered inside a partition. An interface, and its Redis Streams form.

A *position* is an integer that grows inside a partition. One entry holds a micro-batch of records (headrace.events).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import redis

from headrace import names
from headrace.settings import Settings
from headrace.stores.shards import DeploymentError, check_deployment

_SEQUENCE_BITS = 20
_START = b"0-0"


@dataclass(frozen=True)
class LogEntry:
    """One micro-batch as it stands in the log."""

    partition: int
    position: int
    ingested_at_us: int
    payload: bytes


class LogUnavailableError(RuntimeError):
    """The log did not take the events, or may not have: send them again with the same event_id."""


class LogFullError(LogUnavailableError):
    """The log is at its byte bound."""


class EventLog(Protocol):
    """What every log offers (Redis Streams here; Kafka has the same shape)."""

    @property
    def partitions(self) -> int: ...

    def append(self, payloads: Mapping[int, bytes], counts: Mapping[int, int]) -> dict[int, int]:
        """Append one entry to each named partition; returns their positions once they are on disk."""
        ...

    def read(self, after: Mapping[int, int], max_entries: int) -> list[LogEntry]:
        """Up to `max_entries` entries of each named partition with a position above the given one, in order. Never waits."""
        ...

    def end(self) -> dict[int, int]:
        """Position of the last entry of each partition, 0 for an empty one."""
        ...

    def trimmed_below(self) -> dict[int, int]:
        """Highest position that has been trimmed away from each partition, 0 if none."""
        ...

    def appended_at(self, position: int) -> int:
        """When the entry at a position was appended, Unix microseconds."""
        ...

    def position_at(self, ingested_at_us: int) -> int:
        """A position such that every entry appended at or after that time lies above it."""
        ...

    def trim(self, below: Mapping[int, int]) -> int:
        """Drop entries with a position <= the given one; returns how many."""
        ...

    def size_bytes(self) -> int: ...

    def check_room(self) -> None:
        """Raises LogFullError at the byte bound, LogUnavailableError when the log does not answer."""
        ...


def position_of(stream_id: bytes) -> int:
    """Stream id `milliseconds-sequence` as one integer: order is kept, 2^20 entries a millisecond fit."""
    milliseconds, sequence = stream_id.split(b"-")
    return int(milliseconds) << _SEQUENCE_BITS | int(sequence)


def stream_id_of(position: int) -> bytes:
    return b"%d-%d" % (position >> _SEQUENCE_BITS, position & ((1 << _SEQUENCE_BITS) - 1))


def open_log(client: "redis.Redis", settings: Settings) -> "RedisEventLog":
    """The stack's event log."""
    return RedisEventLog(client, settings.log_partitions, names.PROJECT, settings.log_max_bytes)


class RedisEventLog:
    """Redis Streams, one stream a partition. `ingested_at` is the server's append time, which the entry's id carries.

    Acknowledged means on disk: with `appendfsync always` the server answers after its fsync, otherwise `append` waits for
    one with WAITAOF. A server without an append-only file is refused.
    """

    def __init__(self, client: "redis.Redis", partitions: int, prefix: str, max_bytes: int) -> None:
        self._redis = client
        self._partitions = partitions
        self._streams = {p: f"{prefix}:log:{p}".encode() for p in range(partitions)}
        self._max_bytes = max_bytes
        self._waits_for_fsync: bool | None = None

    @property
    def partitions(self) -> int:
        return self._partitions

    def append(self, payloads: Mapping[int, bytes], counts: Mapping[int, int]) -> dict[int, int]:
        try:
            if self._waits_for_fsync is None:
                check_deployment(self._redis, log_partitions=self._partitions)
                self._waits_for_fsync = self._needs_waitaof()
            pipeline = self._redis.pipeline(transaction=False)
            for partition, payload in payloads.items():
                pipeline.xadd(self._streams[partition], {"e": payload, "n": counts[partition]})
            if self._waits_for_fsync:
                pipeline.execute_command("WAITAOF", 1, 0, 5_000)
            answers = pipeline.execute()
        except (redis.RedisError, DeploymentError) as error:
            self._waits_for_fsync = None
            raise LogUnavailableError(f"the event log did not confirm the write: {error}") from error
        if self._waits_for_fsync and answers[-1][0] < 1:
            raise LogUnavailableError("the event log did not reach the disk within 5 s")
        return {partition: position_of(answer) for partition, answer in zip(payloads, answers, strict=False)}

    def _needs_waitaof(self) -> bool:
        config = self._redis.config_get("append*")
        if config.get("appendonly") != "yes":
            raise LogUnavailableError("the event log's server has no append-only file: start it with `appendonly yes`")
        return bool(config.get("appendfsync") != "always")

    def check_room(self) -> None:
        """Raises LogFullError at the byte bound, LogUnavailableError when the log does not answer."""
        try:
            size = self.size_bytes()
        except redis.RedisError as error:
            raise LogUnavailableError(f"the event log does not answer: {error}") from error
        if size > self._max_bytes:
            raise LogFullError(
                f"the event log holds {size} bytes, its bound is {self._max_bytes} (HEADRACE_LOG_MAX_BYTES)"
            )

    def read(self, after: Mapping[int, int], max_entries: int) -> list[LogEntry]:
        streams = {self._streams[p]: stream_id_of(position) if position else _START for p, position in after.items()}
        if not streams:
            return []
        partition_of = {name: p for p, name in self._streams.items()}
        answer = self._redis.xread(streams, count=max_entries) or []
        return [
            LogEntry(partition_of[name], position_of(entry_id), self.appended_at(position_of(entry_id)), fields[b"e"])
            for name, entries in answer
            for entry_id, fields in entries
        ]

    def end(self) -> dict[int, int]:
        return {
            p: position_of(info.get("last-generated-id", _START)) if info else 0 for p, info in self._infos().items()
        }

    def trimmed_below(self) -> dict[int, int]:
        return {
            p: position_of(info.get("max-deleted-entry-id", _START)) if info else 0 for p, info in self._infos().items()
        }

    def _infos(self) -> dict[int, dict[str, bytes]]:
        infos: dict[int, dict[str, bytes]] = {}
        for partition, name in self._streams.items():
            try:
                infos[partition] = self._redis.xinfo_stream(name)
            except redis.ResponseError as error:
                if "no such key" not in str(error):
                    raise
                infos[partition] = {}
        return infos

    def appended_at(self, position: int) -> int:
        return (position >> _SEQUENCE_BITS) * 1_000

    def position_at(self, ingested_at_us: int) -> int:
        return max(0, (ingested_at_us // 1_000 << _SEQUENCE_BITS) - 1)

    def trim(self, below: Mapping[int, int]) -> int:
        # MINID keeps entries with an id >= the one given, exactly (no `~`), so that max-deleted-entry-id is right.
        pipeline = self._redis.pipeline(transaction=False)
        for partition, position in below.items():
            pipeline.xtrim(self._streams[partition], minid=stream_id_of(position + 1), approximate=False)
        return sum(pipeline.execute())

    def size_bytes(self) -> int:
        pipeline = self._redis.pipeline(transaction=False)
        for name in self._streams.values():
            pipeline.memory_usage(name, samples=16)
        return sum(size or 0 for size in pipeline.execute())
