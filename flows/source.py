"""Bytewax source over the event log. It keeps no position: before each read the consumer says where its state stands.

So it goes back by itself when the consumer takes over state that is further behind, and reads again what could not be committed.
"""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from bytewax.inputs import DynamicSource, StatelessSourcePartition

from flows.dial import Dial
from flows.recovery import Recovery
from headrace.clock import Clock, from_micros, system_clock
from headrace.settings import Settings
from headrace.stores.log import EventLog, LogEntry

_ASK_AGAIN_S: Final = 0.05
_LONGEST_REST_S: Final = 0.25


@dataclass(frozen=True)
class LogSlice:
    """What one turn brought: entries in order inside a partition; for each partition the positions before them and reached by them.

    `complete`: every event appended to the partition before that time is at or below the position reached.
    """

    entries: list[LogEntry]
    after: Mapping[int, int]
    positions: Mapping[int, int]
    complete: Mapping[int, int]


@dataclass(frozen=True)
class Pace:
    """The dial between latency and throughput.

    `linger`: shortest time from one slice to the next while the log's end is near, so that entries gather. `max_events`: a slice ends
    with the read that reaches it. `poll`: how long a read waits for a first entry. `heartbeat`: longest time between slices, so that
    positions move on without events.
    """

    linger: timedelta = timedelta(0)
    max_events: int = 20_000
    poll: timedelta = timedelta(milliseconds=20)
    heartbeat: timedelta = timedelta(seconds=1)

    @classmethod
    def of(cls, settings: Settings) -> "Pace":
        """The feature flow's."""
        return cls(timedelta(milliseconds=settings.flow_linger_ms), settings.flow_max_batch_events)


class LogSource(DynamicSource[LogSlice]):  # type: ignore[misc]
    """For a dataflow of one worker. `stand` gives the position to read on from of each partition that is wanted."""

    def __init__(
        self,
        log: EventLog,
        stand: Callable[[], Mapping[int, int]],
        recovery: Recovery,
        clock: Clock,
        pace: Pace,
        until_end: bool = False,
    ) -> None:
        self.reader = LogReader(log, stand, recovery, clock, pace, until_end)

    def build(self, step_id: str, worker_index: int, worker_count: int) -> "LogReader":
        if worker_count > 1:
            raise ValueError(
                "one worker a process: for more, start `python -m flows.features` again; they share the work by themselves"
            )
        return self.reader


class LogReader(StatelessSourcePartition[LogSlice]):  # type: ignore[misc]
    """Reads as much as there is, up to a slice; less where a slice takes long to commit."""

    def __init__(
        self,
        log: EventLog,
        stand: Callable[[], Mapping[int, int]],
        recovery: Recovery,
        clock: Clock,
        pace: Pace,
        until_end: bool,
    ) -> None:
        self._log = log
        self._stand = stand
        self._recovery = recovery
        self._clock = clock
        self._pace = pace
        self._until_end = until_end
        self._dial = Dial(pace.max_events)
        self._given_at = -math.inf
        self._under_way = False
        self._ends: Mapping[int, int] = {}
        self._ends_asked_us = 0
        self._awake: datetime | None = None
        self._ahead: LogSlice | None = None

    def read_ahead(self) -> None:
        """Read the next slice already, if the last one was full: there is more, and the server has time for it now."""
        if self._dial.was_full and not self._recovery.stop.stopped:
            self._ahead = self._next_slice()

    def next_batch(self) -> list[LogSlice]:
        self._awake = None
        if self._ahead is not None:
            ahead, self._ahead = self._ahead, None
            return self._give(ahead)
        if self._recovery.stop.stopped:
            raise StopIteration
        if self._recovery.rest_s() > 0:
            self._rest(self._recovery.rest_s())
            return []
        piece = None
        with self._recovery.watching():
            piece = self._next_slice()
        if piece is None:
            return []
        return self._give(piece)

    def _give(self, piece: LogSlice) -> list[LogSlice]:
        self._given_at, self._under_way = time.monotonic(), True
        return [piece]

    def next_awake(self) -> datetime | None:
        return self._awake

    def _next_slice(self) -> LogSlice | None:
        since_s = time.monotonic() - self._given_at
        if self._under_way:  # one at a time: a slice is committed when the next is asked for
            self._dial.took(since_s)
            self._under_way = False
        after = self._stand()
        lingers_s = 0.0 if self._dial.was_full or self._until_end else self._pace.linger.total_seconds() - since_s
        if not after or lingers_s > 0:
            self._rest(_ASK_AGAIN_S if not after else lingers_s)
            return None
        due = since_s >= self._pace.heartbeat.total_seconds()
        if due or not self._ends:
            self._ends_asked_us = self._clock()
            self._ends = self._log.end()
        entries = self._read(after, 0.0 if due or self._until_end else self._pace.poll.total_seconds())
        if entries or due:
            return self._slice(entries, after)
        self._recovery.stop.stopped |= self._until_end
        return None

    def _read(self, after: Mapping[int, int], wait_s: float) -> list[LogEntry]:
        entries: list[LogEntry] = []
        reached = dict(after)
        self._dial.begin()
        while not self._dial.was_full:
            count = self._dial.entries_wanted(len(reached))
            found = self._log.read(reached, count, 0.0 if entries else wait_s)
            self._dial.add(found)
            entries += found
            reached.update((entry.partition, entry.position) for entry in found)
            if len(found) < count:
                break
        return entries

    def _slice(self, entries: list[LogEntry], after: Mapping[int, int]) -> LogSlice:
        positions, complete = dict(after), {}
        for entry in entries:
            positions[entry.partition], complete[entry.partition] = entry.position, entry.ingested_at_us
        for partition, position in positions.items():
            # What was appended before the end was asked for is in.
            if position >= self._ends.get(partition, position + 1):
                complete[partition] = max(complete.get(partition, 0), self._ends_asked_us)
        return LogSlice(entries, dict(after), positions, complete)

    def _rest(self, seconds: float) -> None:
        """Not so long that a signal would wait for it."""
        # Of the system's clock, whatever ours is: Bytewax compares with that.
        self._awake = from_micros(system_clock()) + timedelta(seconds=min(seconds, _LONGEST_REST_S))
