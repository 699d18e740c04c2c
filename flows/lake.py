"""The lake flow: events from the log become rows of the event lake, operations on items rows of the items' tables, each exactly once.
`python -m flows.lake`

A commit of a Delta table records the log positions it reaches, so a restart resumes behind the last commit of the events' table, the
last of them to be written. Keeps the log short:
what every shard and the lake have taken in, and what lies before the dedup horizon, is trimmed.
"""

import sys
import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Final

import bytewax.operators as op
import redis
from bytewax.dataflow import Dataflow
from deltalake.exceptions import DeltaError

from flows.batches import Batch, to_batch
from flows.dedup import Deduplicator
from flows.items import take_items
from flows.recovery import RECOVERABLE, Recovery, StopFlag
from flows.run import EachSink, run
from flows.source import LogSource, Pace
from headrace import names
from headrace.clock import Clock, system_clock
from headrace.settings import MICROS, Settings
from headrace.stores.definitions import PlainViews
from headrace.stores.item_lake import ItemTable
from headrace.stores.lake import EventLake, LakeConflictError
from headrace.stores.log import EventLog, open_log
from headrace.stores.redis_client import connect
from headrace.stores.shards import DeploymentError, check_deployment, read_status

# A commit makes the disk flush what nobody waits for before the log that everybody does: requests wait 20 to 30 ms for the store meanwhile.
LAKE_PACE: Final = Pace(
    linger=timedelta(seconds=3), max_events=100_000, poll=timedelta(milliseconds=100), heartbeat=timedelta(seconds=3)
)
COMPACT_EVERY: Final = 100
TRIM_EVERY_S: Final = 60.0


def get_flow(
    settings: Settings, clock: Clock, stop: StopFlag, pace: Pace = LAKE_PACE, until_end: bool = False
) -> Dataflow:
    """The dataflow. Opens the lake and the log."""
    client = connect(settings)
    check_deployment(client, shards=settings.shards, log_partitions=settings.log_partitions)
    log = open_log(client, settings)
    lake = EventLake(settings.lake_dir)
    lake.create()
    items = {view: ItemTable(settings.lake_dir, view) for view in names.ITEM_TABLES}
    writer = LakeWriter(lake, items, log.partitions, lambda: trim_log(log, client, lake, settings, clock))
    recovery = Recovery(stop, writer.forget, (*RECOVERABLE, LakeConflictError, DeltaError), fatal=(DeploymentError,))

    flow = Dataflow("lake")
    slices = op.input("read_log", flow, LogSource(log, writer.stand, recovery, clock, pace, until_end))  # LogSlice
    batches = op.map("decode_and_validate", slices, to_batch)  # Batch
    deduplicate = Deduplicator(log, int(settings.dedup_horizon_s * MICROS))
    fresh = op.filter_map("drop_duplicates", batches, recovery.guard(deduplicate))  # Batch
    behaviour = op.map("set_operations_on_items_apart", fresh, take_items(PlainViews(settings).current))  # Batch
    op.output("append", behaviour, EachSink(recovery.guard_last(writer.append)))
    return flow


class LakeWriter:
    """Appends batches; every so often compacts small files, and calls `trim`."""

    def __init__(
        self, lake: EventLake, items: Mapping[str, ItemTable], partitions: int, trim: Callable[[], object]
    ) -> None:
        self._lake = lake
        self._items = items
        self._item_commits = dict.fromkeys(items, 0)
        self._partitions = partitions
        self._trim = trim
        self._reached: dict[int, int] = {}
        self._commits = 0
        self._trimmed_at = time.monotonic()

    def stand(self) -> dict[int, int]:
        """The position by partition that the lake covers."""
        self._reached = self._reached or self._lake.positions(range(self._partitions))
        return self._reached

    def append(self, batch: Batch) -> None:
        positions = dict(batch.slice.positions)
        if positions != self._reached:
            self._append_items(batch)
            self._lake.append(batch.rows().to_arrow(), positions)
            self._reached = positions
            self._commits += 1
        if self._commits >= COMPACT_EVERY:
            self._commits = 0
            self._lake.compact()
        if time.monotonic() - self._trimmed_at > TRIM_EVERY_S:
            self._trimmed_at = time.monotonic()
            self._trim()

    def _append_items(self, batch: Batch) -> None:
        """Before the events: what their table covers is then never missing here."""
        places = zip(batch.item_places.partition.tolist(), batch.item_places.position.tolist(), strict=True)
        placed = [(*place, row) for place, row in zip(places, batch.items, strict=True)]
        for view, table in self._items.items():
            rows = [each for each in placed if each[2].view == view]
            if rows and table.append(rows, batch.slice.positions):
                self._item_commits[view] += 1
            if self._item_commits[view] >= COMPACT_EVERY:
                self._item_commits[view] = 0
                table.compact()

    def forget(self) -> None:
        """Ask the lake again where it stands."""
        self._reached = {}


def trim_log(log: EventLog, client: "redis.Redis", lake: EventLake, settings: Settings, clock: Clock) -> int:
    """Drop what every shard and the lake have taken in, and what no reader needs to know duplicates by; returns how many entries.

    The dedup horizon is counted back from the slowest reader: it reads it again when it goes on.
    """
    in_lake = lake.positions(range(log.partitions))
    statuses = read_status(client, range(settings.shards)).values()
    below = {}
    for partition, position in in_lake.items():
        slowest = min(position, *(status.positions.get(partition, 0) for status in statuses))
        horizon_us = min(clock(), log.appended_at(partition, slowest)) - int(settings.dedup_horizon_s * MICROS)
        below[partition] = min(slowest, log.position_at(partition, horizon_us))
    return log.trim(below)


def main() -> int:
    """Run until SIGTERM."""
    settings = Settings()
    return run("lake", lambda stop: get_flow(settings, system_clock, stop))


if __name__ == "__main__":
    sys.exit(main())
