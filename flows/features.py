"""The feature flow: events from the log become the online state of every stream view, operations on items the plain rows that they
stand for. `python -m flows.features`

The online store is the state: a commit writes changed rows and the positions they include in one transaction, and whoever owns a shard
goes on from those positions. Bytewax carries the work; its recovery (at least once) is not used. One process is one worker: more of them
share the shards by themselves (flows/worker.py).
"""

import logging
import os
import socket
import sys
import uuid
from collections.abc import Callable
from typing import Final

import bytewax.operators as op
from bytewax.dataflow import Dataflow

from flows.batches import Batch, to_batch
from flows.dedup import Deduplicator
from flows.items import take_items
from flows.recovery import Recovery, StopFlag
from flows.run import EachSink, run
from flows.source import LogSource, Pace
from flows.split import ShardSplitter
from flows.warm_up import warm_up
from flows.worker import Commits, Worker
from headrace import names
from headrace.aggregates.rows import StateMismatchError
from headrace.clock import Clock, system_clock
from headrace.record_lines import COLUMNS
from headrace.settings import MICROS, Settings
from headrace.stores.dead_letters import DeadLetter, DeadLetters
from headrace.stores.definitions import PlainViews
from headrace.stores.log import open_log
from headrace.stores.redis_client import connect
from headrace.stores.shards import DeploymentError, check_deployment
from headrace.stores.state_definitions import StaleStateError, definitions_to_fold

logger = logging.getLogger("headrace.flows.features")

_STORE_TIMEOUT_S: Final = 30.0
"""A commit may have to wait for a slow disk."""
_ALWAYS: Final = (names.EVENT_ID, names.TYPE, names.TIMESTAMP, names.RECEIVED_AT)
"""Columns that the flow itself reads."""


def get_flow(settings: Settings, clock: Clock, stop: StopFlag, pace: Pace, until_end: bool = False) -> Dataflow:
    """The dataflow of one worker. Opens the registry and the store."""
    client = connect(settings, timeout_s=_STORE_TIMEOUT_S)
    check_deployment(client, shards=settings.shards, log_partitions=settings.log_partitions)
    name = f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:8]}"
    specs = definitions_to_fold(client, settings, name)
    worker = Worker(
        client,
        specs,
        name=name,
        shards=settings.shards,
        partitions=settings.log_partitions,
        lease_s=settings.flow_lease_s,
        until_all=until_end,
    )
    recovery = Recovery(stop, worker.forget, fatal=(StaleStateError, DeploymentError, StateMismatchError))
    log = open_log(client, settings)
    columns = [each for each in COLUMNS if any(each in spec.columns for spec in specs.values()) or each in _ALWAYS]
    warm_up(client, specs, columns)
    deduplicate = Deduplicator(log, int(settings.dedup_horizon_s * MICROS), meanwhile=worker.tend)
    split = ShardSplitter(specs, settings.shards, int(settings.lateness_horizon_s * MICROS))

    source = LogSource(log, worker.stand, recovery, clock, pace, until_end)

    def commit(commits: Commits) -> None:
        """The server works on a commit while the next slice is folded; that slice is read before, as the server then has no time."""
        worker.settle()
        source.reader.read_ahead()
        worker.send(commits)

    def close() -> None:
        held = worker.held.values()
        logger.info(
            "held %d event ids in %d bytes, %d entities in %d bytes",
            len(deduplicate),
            deduplicate.size_bytes,
            sum(state.entities for state in held),
            sum(state.nbytes for state in held),
        )
        worker.close()

    flow = Dataflow("features")
    slices = op.input("read_log", flow, source)  # LogSlice
    batches = op.map("decode_and_validate", slices, lambda piece: to_batch(piece, columns))  # Batch
    fresh = op.filter_map("drop_duplicates", batches, recovery.guard(deduplicate))  # Batch
    behaviour = op.map("set_operations_on_items_apart", fresh, take_items(PlainViews(settings).current))  # Batch
    sound = op.filter_map("set_dead_letters_aside", behaviour, recovery.guard(bury_in(DeadLetters(client))))  # Batch
    parts = op.map("split_by_shard", sound, lambda batch: split(batch, worker.held))  # SplitBatch
    commits = op.filter_map("fold_into_state", parts, recovery.guard(worker.fold))  # [(ShardState, ShardCommit)]
    op.output("commit", commits, EachSink(recovery.guard_last(commit), close))
    return flow


def bury_in(letters: DeadLetters) -> Callable[[Batch], Batch]:
    """A step that keeps what is no event, with the reason."""

    def bury(batch: Batch) -> Batch:
        if batch.bad:
            letters.add(
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

    return bury


def main() -> int:
    settings = Settings()
    return run("feature", lambda stop: get_flow(settings, system_clock, stop, Pace.of(settings)))


if __name__ == "__main__":
    sys.exit(main())
