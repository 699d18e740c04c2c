"""`headrace backfill`: rebuild the online state of every stream view from the lake, with the engine that the flow uses.

The new state is built beside the old one, which serves meanwhile and which the flow keeps fresh. What the lake takes in during the
work is folded in round by round; then the rows change places, and with the last of a shard its definitions and log
positions. The flow goes on from there: no gap, no overlap.
"""

import os
import socket
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import polars as pl

from headrace import names
from headrace.aggregates.fold import ViewState
from headrace.aggregates.layout import Layout
from headrace.aggregates.spec import ViewSpec
from headrace.hashing import shards_of
from headrace.ops.lake_parts import PART_EVENTS, count_events, events_of_part, parts_for
from headrace.settings import Settings
from headrace.stores.definitions import load_definitions
from headrace.stores.exchange import Exchange, decide, decided, finish, one_backfill
from headrace.stores.lake import EventLake
from headrace.stores.lake_files import check_files
from headrace.stores.log import EventLog, open_log
from headrace.stores.redis_client import connect
from headrace.stores.shards import check_deployment
from headrace.stores.staged_rows import StagedRows
from headrace.stores.state_definitions import forget_definitions, record_definitions, stored_fingerprints

_FOLD_CHUNK = 100_000
# Rounds of catching up end when one brought this few events; the flow replays what came after from the log.
_ENOUGH = 20_000
_MAX_ROUNDS = 10


class BackfillError(RuntimeError):
    """The state cannot be rebuilt from this lake."""


@dataclass
class BackfillReport:
    """Events read, rows written by view, and the positions that the flow goes on from."""

    events: int = 0
    rows: dict[str, int] = field(default_factory=dict)
    positions: dict[int, int] = field(default_factory=dict)


Progress = Callable[[str, int, int], None]


def backfill(settings: Settings, progress: Progress | None = None, part_events: int = PART_EVENTS) -> BackfillReport:
    """Rebuild every stream view by the definitions that are applied. A running flow is ended at the exchange, and goes on from
    the new positions when it is started again.

    Raises BackfillError when the log no longer reaches back to the lake, DamagedLakeError, DefinitionError, OwnershipError while
    another backfill runs. Whatever ends it before the exchange leaves the old state as it was.
    """
    client = connect(settings, timeout_s=60.0)
    check_deployment(client, shards=settings.shards, log_partitions=settings.log_partitions)
    specs = load_definitions(settings).streams
    lake, log = EventLake(settings.lake_dir), open_log(client, settings)
    name = uuid.uuid4().hex
    owner = f"backfill:{socket.gethostname()}:{os.getpid()}:{name[:8]}"
    with one_backfill(client, owner):
        left_over = decided(client)
        if left_over is not None:
            finish(client, left_over, settings.shards, owner)
        staged = [StagedRows(client, shard) for shard in range(settings.shards)]
        builder = _Builder(name, specs, lake, staged, part_events)
        report = _build(builder, lake, log, progress or (lambda what, done, total: None))
        record_definitions(client, specs.values())
        before = stored_fingerprints(client, settings)
        exchange = Exchange(
            name=name,
            fingerprints={view: spec.fingerprint for view, spec in specs.items()},
            positions=report.positions,
            complete={p: log.appended_at(p, report.positions[p]) for p in range(log.partitions) if report.positions[p]},
        )
        decide(client, exchange, owner)
        finish(client, exchange, settings.shards, owner)
        forget_definitions(client, keep=before | set(exchange.fingerprints.values()))
        return report


def _build(builder: "_Builder", lake: EventLake, log: EventLog, progress: Progress) -> BackfillReport:
    """Stage the new state, and catch up with the lake until little is left."""
    check_files(lake.table())
    partitions = [*range(log.partitions), names.BULK_PARTITION]
    reached = lake.positions(partitions)
    _check_reach(log, reached)
    builder.begin()
    report = BackfillReport(positions=reached)
    before: dict[int, int] | None = None
    for number in range(_MAX_ROUNDS):
        events = count_events(lake, reached, before)
        builder.stage(events, reached, before, progress if number == 0 else _renamed(progress, f"catch up {number}"))
        report.events += events
        report.positions, before = reached, reached
        reached = lake.positions(partitions)
        if reached == before or (number > 0 and events <= _ENOUGH):
            break
    _check_reach(log, report.positions)
    report.rows = builder.count_rows()
    return report


class _Builder:
    """Folds the lake into the staged rows of one exchange."""

    def __init__(
        self, name: str, specs: Mapping[str, ViewSpec], lake: EventLake, staged: Sequence[StagedRows], part_events: int
    ) -> None:
        self._name = name
        self._staged = staged
        self._specs = specs
        self._lake = lake
        self._part_events = part_events

    def begin(self) -> None:
        for staged in self._staged:
            staged.begin(self._name)

    def stage(self, events: int, upto: Mapping[int, int], after: Mapping[int, int] | None, progress: Progress) -> None:
        """Fold the events between two positions, a part of the entities at a time."""
        parts = parts_for(events, self._part_events)
        for name, spec in self._specs.items():
            for part in parts:
                self._fold(spec, events_of_part(self._lake, spec, part, upto, after), again=after is not None)
                progress(name, part.number + 1, part.of)

    def _fold(self, spec: ViewSpec, events: pl.DataFrame, again: bool) -> None:
        """Rows of the entities in `events`; with `again`, on top of those that are staged."""
        state = ViewState(Layout(spec))
        keys = state.missing(events[spec.entity_column])
        for shard, members in self._by_shard(keys).items():
            state.load_rows(members, self._staged[shard].get(spec.name, members) if again else [None] * len(members))
        for chunk in events.iter_slices(_FOLD_CHUNK):
            state.fold(chunk)
        changed = state.take_changed()
        for shard, members in self._by_shard(changed).items():
            self._staged[shard].put(self._name, spec.name, {key: changed[key] for key in members})

    def _by_shard(self, keys: Iterable[str]) -> dict[int, list[str]]:
        members: dict[int, list[str]] = {}
        listed = list(keys)
        for key, shard in zip(listed, shards_of(listed, len(self._staged)).tolist(), strict=True):
            members.setdefault(shard, []).append(key)
        return members

    def count_rows(self) -> dict[str, int]:
        """Staged rows by view."""
        counts = dict.fromkeys(self._specs, 0)
        for staged in self._staged:
            for name in staged.names():
                counts[name.partition(":")[0]] += 1
        return counts


def _renamed(progress: Progress, prefix: str) -> Progress:
    return lambda what, done, total: progress(f"{prefix}: {what}", done, total)


def _check_reach(log: EventLog, positions: Mapping[int, int]) -> None:
    for partition, trimmed in log.trimmed_below().items():
        if trimmed > positions[partition]:
            raise BackfillError(
                f"log partition {partition} begins after position {trimmed}, the lake ends at {positions[partition]}: "
                "events between are gone from the log; restore the lake to a version that reaches it"
            )
