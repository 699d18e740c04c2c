"""The lake flow: events from the log become rows of the event lake, exactly once. `python -m flows.lake`

A commit of the Delta table records the log positions it reaches, so a restart resumes behind the last commit. Keeps the log short:
what every shard and the lake have taken in, and what lies before the dedup horizon, is trimmed.
"""

import logging
import sys
import time
from collections.abc import Iterable, Mapping
from datetime import timedelta
from typing import Any

import bytewax.operators as op
import redis
from bytewax.dataflow import Dataflow
from bytewax.outputs import DynamicSink, StatelessSinkPartition
from bytewax.run import cli_main

from flows.source import LogSource, Pace, StopFlag
from flows.steps import Batch, Deduplicator, decode
from headrace.clock import Clock, system_clock
from headrace.settings import MICROS, Settings
from headrace.stores.lake import EventLake
from headrace.stores.log import EventLog, open_log
from headrace.stores.redis_client import connect
from headrace.stores.shards import check_deployment, read_status

LAKE_PACE = Pace(
    poll=timedelta(milliseconds=100), linger=timedelta(seconds=1), heartbeat=timedelta(seconds=1), max_entries=1_024
)
COMPACT_EVERY = 100
TRIM_EVERY_S = 60.0


def get_flow(
    settings: Settings, clock: Clock, stop: StopFlag, pace: Pace = LAKE_PACE, until_end: bool = False
) -> Dataflow:
    """The dataflow. Opens the lake and the log."""
    client = connect(settings)
    check_deployment(client, shards=settings.shards, log_partitions=settings.log_partitions)
    lake = EventLake(settings.lake_dir)
    lake.create()

    log = open_log(client, settings)

    def resume_from(partitions: Iterable[int]) -> Mapping[int, int]:
        return lake.positions(partitions)

    def trim() -> None:
        trim_log(log, client, lake, settings, clock)

    flow = Dataflow("lake")
    slices = op.input("read_log", flow, LogSource(log, resume_from, clock, stop, pace, until_end))  # LogSlice
    batches = op.map("decode_and_validate", slices, decode)  # Batch
    fresh = op.map("drop_duplicates", batches, Deduplicator(log, int(settings.dedup_horizon_s * MICROS)))  # Batch
    op.output("append", fresh, LakeSink(lake, trim))
    return flow


def trim_log(log: EventLog, client: "redis.Redis", lake: EventLake, settings: Settings, clock: Clock) -> int:
    """Drop what every shard and the lake have taken in, and what no reader needs to know duplicates by; returns how many entries.

    The dedup horizon is counted back from the slowest reader: it reads it again when it goes on.
    """
    in_lake = lake.positions(range(log.partitions))
    statuses = read_status(client, range(settings.shards)).values()
    below = {}
    for partition, position in in_lake.items():
        slowest = min(position, *(status.positions.get(partition, 0) for status in statuses))
        horizon_us = min(clock(), log.appended_at(slowest)) - int(settings.dedup_horizon_s * MICROS)
        below[partition] = min(slowest, log.position_at(horizon_us))
    return log.trim(below)


class LakeSink(DynamicSink[Batch]):  # type: ignore[misc]
    """Appends batches; every so often compacts small files and trims the log."""

    def __init__(self, lake: EventLake, trim: Any) -> None:
        self._lake = lake
        self._trim = trim

    def build(self, step_id: str, worker_index: int, worker_count: int) -> "LakePartition":
        return LakePartition(self._lake, self._trim)


class LakePartition(StatelessSinkPartition[Batch]):  # type: ignore[misc]
    def __init__(self, lake: EventLake, trim: Any) -> None:
        self._lake = lake
        self._trim = trim
        self._reached: dict[int, int] = {}
        self._commits = 0
        self._trimmed_at = time.monotonic()

    def write_batch(self, items: list[Batch]) -> None:
        for batch in items:
            if batch.positions != self._reached:
                self._lake.append(batch.events.to_arrow(), batch.positions)
                self._reached = dict(batch.positions)
                self._commits += 1
        if self._commits >= COMPACT_EVERY:
            self._commits = 0
            self._lake.compact()
        if time.monotonic() - self._trimmed_at > TRIM_EVERY_S:
            self._trimmed_at = time.monotonic()
            self._trim()


def main() -> int:
    """Run until SIGTERM. Any failure ends the process: the next one resumes behind the last commit."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    cli_main(get_flow(Settings(), system_clock, StopFlag().install()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
