"""Bytewax source over the event log: every partition that a worker owns, from positions that the caller knows."""

import signal
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from bytewax.inputs import DynamicSource, StatelessSourcePartition

from headrace.clock import Clock
from headrace.stores.log import EventLog, LogEntry


@dataclass(frozen=True)
class LogSlice:
    """What one poll brought: entries in order, and for each partition how far and up to when it is now read."""

    entries: list[LogEntry]
    positions: Mapping[int, int]
    complete: Mapping[int, int]


class StopFlag:
    """Set by SIGTERM and SIGINT: the source ends, the flow commits what it holds and returns."""

    def __init__(self) -> None:
        self.stopped = False

    def install(self) -> "StopFlag":
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: setattr(self, "stopped", True))
        return self


@dataclass(frozen=True)
class Pace:
    """The dial between latency and throughput.

    `poll`: how long to rest when there was nothing. `linger`: how long to let entries gather before the next read.
    `heartbeat`: longest time between slices, so that positions move on without events. `max_entries`: per partition and read.
    """

    poll: timedelta = timedelta(milliseconds=2)
    linger: timedelta = timedelta(0)
    heartbeat: timedelta = timedelta(seconds=1)
    max_entries: int = 64


class LogSource(DynamicSource[LogSlice]):  # type: ignore[misc]
    """Partition p is read by worker p mod workers. Keeps no position of its own: `resume_from` says where the state stands."""

    def __init__(
        self,
        log: EventLog,
        resume_from: Callable[[Iterable[int]], Mapping[int, int]],
        clock: Clock,
        stop: StopFlag,
        pace: Pace,
        until_end: bool = False,
    ) -> None:
        self._log = log
        self._resume_from = resume_from
        self._clock = clock
        self._stop = stop
        self._pace = pace
        self._until_end = until_end

    def build(self, step_id: str, worker_index: int, worker_count: int) -> "LogReader":
        log = self._log
        partitions = [p for p in range(log.partitions) if p % worker_count == worker_index]
        return LogReader(log, dict(self._resume_from(partitions)), self._clock, self._stop, self._pace, self._until_end)


class LogReader(StatelessSourcePartition[LogSlice]):  # type: ignore[misc]
    """One worker's partitions."""

    def __init__(
        self, log: EventLog, positions: dict[int, int], clock: Clock, stop: StopFlag, pace: Pace, until_end: bool
    ) -> None:
        self._log = log
        self._positions = positions
        self._clock = clock
        self._stop = stop
        self._pace = pace
        self._until_end = until_end
        self._complete = dict.fromkeys(positions, 0)
        self._last_slice_us = 0
        self._rest = timedelta(0)

    def next_batch(self) -> list[LogSlice]:
        if self._stop.stopped:
            raise StopIteration
        asked_us = self._clock()
        entries = self._log.read(self._positions, self._pace.max_entries)
        if self._until_end and not entries and self._last_slice_us:
            raise StopIteration
        counts = dict.fromkeys(self._positions, 0)
        for entry in entries:
            self._positions[entry.partition] = entry.position
            self._complete[entry.partition] = max(self._complete[entry.partition], entry.ingested_at_us)
            counts[entry.partition] += 1
        for partition, count in counts.items():
            if count < self._pace.max_entries:  # read to its end: what was appended before the question is in
                self._complete[partition] = max(self._complete[partition], asked_us)
        self._rest = self._pace.linger if entries else self._pace.poll
        if not entries and asked_us - self._last_slice_us < self._pace.heartbeat // timedelta(microseconds=1):
            return []
        self._last_slice_us = asked_us
        return [LogSlice(entries, dict(self._positions), dict(self._complete))]

    def next_awake(self) -> datetime | None:
        return datetime.now(UTC) + self._rest if self._rest else None
