"""The feature flow: events from the log become the online state of every stream view. `python -m flows.features`

The online store is the state: a commit writes changed rows and the positions they include in one transaction, and a restart resumes
from those positions. Bytewax carries the work and routes it to the worker that owns a shard; its recovery (at least once) is not used.
"""

import logging
import os
import socket
import sys
from collections.abc import Iterable, Mapping
from datetime import timedelta
from typing import Any

import bytewax.operators as op
import polars as pl
import redis
from bytewax.dataflow import Dataflow
from bytewax.operators import StatefulBatchLogic
from bytewax.outputs import DynamicSink, StatelessSinkPartition
from bytewax.run import cli_main

from flows.source import LogSource, Pace, StopFlag
from flows.steps import Batch, Deduplicator, ShardBatch, ShardSplitter, decode
from headrace.aggregates.fold import ViewState
from headrace.aggregates.layout import Layout
from headrace.aggregates.spec import ViewSpec
from headrace.clock import Clock, system_clock
from headrace.settings import MICROS, Settings
from headrace.stores.dead_letters import DeadLetter, DeadLetters
from headrace.stores.definitions import load_definitions
from headrace.stores.lake import covered
from headrace.stores.log import open_log
from headrace.stores.redis_client import connect
from headrace.stores.shards import (
    DeploymentError,
    OwnedShard,
    OwnershipError,
    ShardCommit,
    check_deployment,
    read_status,
    row_key,
)

logger = logging.getLogger("headrace.flows.features")

LEASE = timedelta(seconds=3)
MAX_CACHED_ENTITIES = 500_000


class StaleStateError(RuntimeError):
    """Stored state was made by another definition of a view."""


def get_flow(settings: Settings, clock: Clock, stop: StopFlag, pace: Pace, until_end: bool = False) -> Dataflow:
    """The dataflow. Opens the registry and the store."""
    client = connect(settings)
    specs = load_definitions(settings).streams
    check_deployment(client, shards=settings.shards, log_partitions=settings.log_partitions)

    log = open_log(client, settings)

    def resume_from(partitions: Iterable[int]) -> Mapping[int, int]:
        statuses = read_status(client, range(settings.shards)).values()
        return {p: min(status.positions.get(p, 0) for status in statuses) for p in partitions}

    deduplicate = Deduplicator(log, int(settings.dedup_horizon_s * MICROS))
    bury = DeadLetterStep(DeadLetters(client))
    split = ShardSplitter(specs, settings.shards, int(settings.lateness_horizon_s * MICROS))
    owner = f"{socket.gethostname()}:{os.getpid()}"

    flow = Dataflow("features")
    slices = op.input("read_log", flow, LogSource(log, resume_from, clock, stop, pace, until_end))  # LogSlice
    batches = op.map("decode_and_validate", slices, decode)  # Batch
    sound = op.map("set_dead_letters_aside", batches, bury)  # Batch
    fresh = op.map("drop_duplicates", sound, deduplicate)  # Batch
    parts = op.flat_map("split_by_shard", fresh, split)  # (shard, ShardBatch)
    commits = op.stateful_batch(
        "fold_into_state", parts, lambda _: ShardFold(client, specs, owner)
    )  # (shard, (OwnedShard, ShardCommit))
    op.output("commit", commits, CommitSink(client, {name: spec.fingerprint for name, spec in specs.items()}))
    return flow


class DeadLetterStep:
    """Keeps what is no event, with the reason."""

    def __init__(self, letters: DeadLetters) -> None:
        self._letters = letters

    def __call__(self, batch: Batch) -> Batch:
        if batch.bad:
            self._letters.add(
                [
                    DeadLetter(
                        key=f"log:{entry.partition}:{entry.position}:{record.index}",
                        origin=f"event log, partition {entry.partition}, position {entry.position}, line {record.index}",
                        field="",
                        reason=record.reason,
                        raw=record.raw.decode(errors="replace")[:8_192],
                    )
                    for entry, record in batch.bad
                ]
            )
        return batch


class ShardFold(StatefulBatchLogic[ShardBatch, tuple[OwnedShard, ShardCommit], None]):  # type: ignore[misc]
    """One shard: takes ownership at its first batch, then folds what its positions do not cover."""

    def __init__(self, client: "redis.Redis", specs: Mapping[str, ViewSpec], owner: str) -> None:
        self._redis = client
        self._specs = specs
        self._owner = owner
        self._states = {name: ViewState(Layout(spec)) for name, spec in specs.items()}
        self._shard: OwnedShard | None = None
        self._positions: dict[int, int] = {}

    def on_batch(self, batches: list[ShardBatch]) -> tuple[Iterable[tuple[OwnedShard, ShardCommit]], bool]:
        return [self._advance(batch) for batch in batches], StatefulBatchLogic.RETAIN

    def _advance(self, batch: ShardBatch) -> tuple[OwnedShard, ShardCommit]:
        if self._shard is None:
            self._shard = self._own(batch.shard)
        if self._shard.in_flight == 0:  # the store has all that is in memory: it may be read again from there
            self._states = {name: _bounded(state) for name, state in self._states.items()}
        self._shard.in_flight += 1
        rows: dict[tuple[str, str], bytes] = {}
        for name, events in batch.events.items():
            rows |= {(name, key): row for key, row in self._fold(batch.shard, name, self._uncovered(events)).items()}
        counters: dict[str, int] = {}
        for partition, position, kind in batch.counted:
            if position > self._positions.get(partition, 0):
                counters[kind] = counters.get(kind, 0) + 1
        for partition, position in batch.positions.items():
            self._positions[partition] = max(position, self._positions.get(partition, 0))
        return self._shard, ShardCommit(
            rows, {p: self._positions[p] for p in batch.positions}, batch.complete, counters
        )

    def _own(self, number: int) -> OwnedShard:
        shard = OwnedShard(self._redis, number, self._owner, int(LEASE.total_seconds() * 1_000))
        status = shard.acquire(wait_s=2 * LEASE.total_seconds())
        for name, spec in self._specs.items():
            stored = status.fingerprints.get(name)
            if status.positions and stored != spec.fingerprint:
                raise StaleStateError(
                    f"the stored state of view '{name}' was made by another definition: run `headrace backfill`"
                )
        self._positions = dict(status.positions)
        logger.info("shard %d is ours, at %s", number, self._positions)
        return shard

    def _uncovered(self, events: pl.DataFrame) -> pl.DataFrame:
        return events.filter(~covered(self._positions))

    def _fold(self, shard: int, view: str, events: pl.DataFrame) -> dict[str, bytes]:
        if events.is_empty():
            return {}
        state = self._states[view]
        missing = state.missing(events[self._specs[view].entity_column])
        if missing:
            for key, raw in zip(missing, self._redis.mget([row_key(shard, view, key) for key in missing]), strict=True):
                state.load(key, raw)
        state.fold(events)
        return state.take_changed()

    def snapshot(self) -> None:
        return None


def _bounded(state: ViewState) -> ViewState:
    return ViewState(state.layout) if len(state) > MAX_CACHED_ENTITIES else state


class CommitSink(DynamicSink[Any]):  # type: ignore[misc]
    """Writes commits of a worker's shards, pipelined: together they cost one round trip and one fsync."""

    def __init__(self, client: "redis.Redis", fingerprints: Mapping[str, int]) -> None:
        self._redis = client
        self._fingerprints = fingerprints

    def build(self, step_id: str, worker_index: int, worker_count: int) -> "CommitPartition":
        return CommitPartition(self._redis, self._fingerprints)


class CommitPartition(StatelessSinkPartition[Any]):  # type: ignore[misc]
    def __init__(self, client: "redis.Redis", fingerprints: Mapping[str, int]) -> None:
        self._redis = client
        self._fingerprints = fingerprints

    def write_batch(self, items: list[tuple[str, tuple[OwnedShard, ShardCommit]]]) -> None:
        pipeline = self._redis.pipeline(transaction=False)
        for _, (shard, commit) in items:
            shard.queue_commit(pipeline, commit, self._fingerprints)
        for (_, (shard, _)), answer in zip(items, pipeline.execute(), strict=True):
            shard.check_answer(answer)
            shard.in_flight -= 1


def main() -> int:
    """Run until SIGTERM. Any failure ends the process with the reason: the next one resumes from the committed positions."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    try:
        cli_main(get_flow(Settings(), system_clock, StopFlag().install(), Pace()))
    except (OwnershipError, StaleStateError, DeploymentError, redis.RedisError) as error:
        print(f"the feature flow ends: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
