"""`headrace verify`: recompute what the online store holds from the lake, and compare every feature of every entity.

The two engines share column expressions and hashes, and no other code for values: the online rows are tiles folded by the flow, the
recomputation sorts events. Rows are read together with the log positions they include, and the recomputation takes exactly the events
up to those positions. The definitions are those that the state was made by; what is applied and not in the state yet is named.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final

import numpy as np
import polars as pl
import pyarrow as pa
import redis

from headrace import names
from headrace.aggregates import spec as sp
from headrace.aggregates.batch import as_of
from headrace.aggregates.columns import concerns
from headrace.aggregates.layout import Layout
from headrace.aggregates.read import StreamRows
from headrace.aggregates.rows import StateMismatchError
from headrace.aggregates.spec import AggregateSpec, ViewSpec
from headrace.arrays import Floats
from headrace.clock import Clock, from_micros, system_clock
from headrace.identity import shard_of
from headrace.ops.lake_parts import PART_EVENTS, Part, count_events, events_of_part, parts_for
from headrace.settings import Settings
from headrace.stores.lake import EventLake, covered
from headrace.stores.lake_files import check_files, reading
from headrace.stores.redis_client import connect
from headrace.stores.row_scan import scan_entities
from headrace.stores.shards import ShardStatus, check_deployment, read_rows, read_status
from headrace.stores.state_definitions import state_definitions

_CHUNK: Final = 2_000
_TOLERANCE: Final = 1e-9
_EXAMPLES: Final = 20
_SIZES: Final = {sp.COUNT: "@count", sp.MIN: "@min", sp.MAX: "@max"}
"""What bounds the size of a window's numbers, computed beside a feature of floats."""


class VerifyError(RuntimeError):
    """The comparison would say nothing."""


@dataclass(frozen=True)
class Mismatch:
    """One value that differs, or a row that cannot be read (then the feature is empty)."""

    view: str
    entity: str
    feature: str
    store: Any
    lake: Any

    def __str__(self) -> str:
        if not self.feature:
            return f"{self.view}, {self.entity}: {self.store}"
        return (
            f"{self.view}.{self.feature} of {self.entity}: the store has {self.store!r}, the lake gives {self.lake!r}"
        )


@dataclass
class VerifyReport:
    """What was compared and what differed. Keys are `view.feature`, or `view` for rows that cannot be read."""

    as_of_us: int | None = None
    entities: dict[str, int] = field(default_factory=dict)
    compared: int = 0
    non_zero: dict[str, int] = field(default_factory=dict)
    mismatches: dict[str, int] = field(default_factory=dict)
    examples: list[Mismatch] = field(default_factory=list)
    waiting_for_backfill: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not self.mismatches

    def add(self, mismatch: Mismatch) -> None:
        name = f"{mismatch.view}.{mismatch.feature}" if mismatch.feature else mismatch.view
        self.mismatches[name] = self.mismatches.get(name, 0) + 1
        if len(self.examples) < _EXAMPLES:
            self.examples.append(mismatch)

    def to_dict(self) -> dict[str, Any]:
        when = from_micros(self.as_of_us).isoformat() if self.as_of_us is not None else "now"
        return {
            "as_of": when,
            "entities": self.entities,
            "compared": self.compared,
            "non_zero": self.non_zero,
            "mismatches": self.mismatches,
            "examples": [asdict(example) for example in self.examples],
            "waiting_for_backfill": self.waiting_for_backfill,
        }


def verify(
    settings: Settings,
    as_of_us: int | None = None,
    clock: Clock = system_clock,
    progress: Callable[[str, int, int], None] | None = None,
    wait_s: float = 60.0,
    part_events: int = PART_EVENTS,
    sample: int | None = None,
) -> VerifyReport:
    """Compare both engines at `as_of_us` (now by default), a part of the entities at a time; with `sample`, about so many entities of
    each view, others each time.

    Raises VerifyError where a shard is empty though the lake is not, LakeBehindError when the lake does not catch up within
    `wait_s`, TooEarlyError for a T that is not after the newest event in the state, DamagedLakeError.
    """
    client = connect(settings)
    check_deployment(client, record=False, shards=settings.shards, log_partitions=settings.log_partitions)
    lake = EventLake(settings.lake_dir)
    check_files(lake.table())
    reached = lake.positions([*range(settings.log_partitions), names.BULK_PARTITION])
    _check_filled(reached, read_status(client, range(settings.shards)))
    state = state_definitions(client, settings)
    report = VerifyReport(as_of_us=as_of_us, waiting_for_backfill=list(state.waiting))
    parts = parts_for(count_events(lake, reached), part_events)
    for spec in state.streams.values():
        keys = _keys_by_shard(client, settings, spec, lake)
        some = None if sample is None else _some(sum(map(len, keys.values())), sample, clock())
        report.entities[spec.name] = 0
        for part in parts if some is None else [some]:
            chosen = _of_part(keys, part)
            report.entities[spec.name] += sum(map(len, chosen.values()))
            chunks = list(_read_state(client, spec, chosen, report))
            needed = _needed([each.status for each in chunks], settings.log_partitions)
            lake.wait_for(needed, wait_s)
            upto = needed | {names.BULK_PARTITION: reached[names.BULK_PARTITION]}
            events = events_of_part(lake, spec, part, upto, also=(names.LOG_PARTITION, names.LOG_POSITION))
            for chunk in chunks:
                t_us = as_of_us if as_of_us is not None else max(clock(), chunk.rows.newest_us + 1)
                _compare(report, spec, chunk, events.filter(covered(chunk.status.positions)), t_us)
            if progress:
                progress(spec.name, part.number + 1, part.of)
    return report


@dataclass(frozen=True)
class _Chunk:
    """Rows of some entities of one shard, with the positions that they include."""

    status: ShardStatus
    keys: list[str]
    rows: StreamRows


def _keys_by_shard(client: "redis.Redis", settings: Settings, spec: ViewSpec, lake: EventLake) -> dict[int, list[str]]:
    """Entities with a row, and entities that the lake knows: one without a row must read as empty."""
    by_shard: dict[int, set[str]] = {shard: set() for shard in range(settings.shards)}
    for shard, keys in scan_entities(client, spec.name):
        by_shard[shard].update(keys)
    with reading(lake.table()):
        known = (
            lake.scan().filter(concerns(spec)).select(pl.col(spec.entity_column).unique()).collect(engine="streaming")
        )
    for key in known[spec.entity_column].to_list():
        by_shard[shard_of(key, settings.shards)].add(key)
    return {shard: sorted(keys) for shard, keys in by_shard.items()}


def _some(known: int, wanted: int, number: int) -> Part:
    """A part of about so many of the entities that there are."""
    of = max(1, known // max(wanted, 1))
    return Part(number % of, of)


def _of_part(keys: Mapping[int, list[str]], part: Part) -> dict[int, list[str]]:
    series = {shard: pl.Series(each, dtype=pl.String) for shard, each in keys.items()}
    return {shard: each.filter(part.holds(each)).to_list() for shard, each in series.items() if len(each)}


def _read_state(
    client: "redis.Redis", spec: ViewSpec, keys: Mapping[int, list[str]], report: VerifyReport
) -> Iterator[_Chunk]:
    """Rows of one view in chunks. A row that cannot be read is a mismatch, and left out."""
    layout = Layout(spec)
    for shard, members in keys.items():
        for start in range(0, len(members), _CHUNK):
            chunk = members[start : start + _CHUNK]
            status, raws = read_rows(client, shard, [(spec.name, key) for key in chunk])
            if status.exchanging or status.fingerprints.get(spec.name) != spec.fingerprint:
                raise VerifyError(
                    f"the state of view '{spec.name}' in shard {shard} is not what it was at the start: "
                    "a backfill exchanges it; run `headrace verify` again"
                )
            faults = _faults(layout, raws)
            for key, fault in zip(chunk, faults, strict=True):
                if fault:
                    report.add(Mismatch(spec.name, key, "", fault, None))
            kept = [(key, raw) for key, raw, fault in zip(chunk, raws, faults, strict=True) if not fault]
            yield _Chunk(status, [key for key, _ in kept], StreamRows(layout, [raw for _, raw in kept]))


def _faults(layout: Layout, raws: Sequence[bytes | None]) -> list[str]:
    """What is wrong with each row, empty if nothing is."""
    try:
        rows = StreamRows(layout, list(raws))
        rows.values(rows.newest_us + 1)
    except StateMismatchError as error:
        if len(raws) == 1:
            return [str(error)]
        middle = len(raws) // 2
        return _faults(layout, raws[:middle]) + _faults(layout, raws[middle:])
    return [""] * len(raws)


def _check_filled(reached: Mapping[int, int], statuses: Mapping[int, ShardStatus]) -> None:
    """An empty state agrees with nothing at all: refuse to call that verified."""
    for shard, status in statuses.items():
        for partition, position in reached.items():
            has = status.positions.get(partition, 0)
            if (position and not has) or (partition == names.BULK_PARTITION and has < position):
                raise VerifyError(
                    f"shard {shard} has nothing of log partition {partition}, which the lake covers up to {position}: "
                    "start the feature flow, or run `headrace backfill`"
                )


def _needed(statuses: Sequence[ShardStatus], partitions: int) -> dict[int, int]:
    """The furthest position of each log partition that a chunk of rows includes."""
    return {p: max((status.positions.get(p, 0) for status in statuses), default=0) for p in range(partitions)}


def _compare(report: VerifyReport, spec: ViewSpec, chunk: _Chunk, events: pl.DataFrame, t_us: int) -> None:
    online = chunk.rows.values(t_us)
    times = np.full(len(chunk.keys), t_us, np.int64)
    offline = as_of(_with_sizes(spec), events, chunk.keys, times)
    for aggregate in spec.aggregates:
        name = f"{spec.name}.{aggregate.name}"
        recomputed = offline[aggregate.name].to_pylist()
        sizes = _sizes(aggregate, offline)
        for row, (key, value, expected) in enumerate(
            zip(chunk.keys, _plain(online[aggregate.name]), recomputed, strict=True)
        ):
            report.compared += 1
            if value:
                report.non_zero[name] = report.non_zero.get(name, 0) + 1
            if not equal(value, expected, float(sizes[row])):
                report.add(Mismatch(spec.name, key, aggregate.name, value, expected))


def _with_sizes(spec: ViewSpec) -> ViewSpec:
    """The view with count, min and max beside each feature that sums numbers."""
    more = [
        replace(aggregate, name=f"{aggregate.name}{suffix}", function=function, span_us=None)
        for aggregate in spec.aggregates
        if _sums(aggregate)
        for function, suffix in _SIZES.items()
    ]
    return replace(spec, aggregates=(*spec.aggregates, *more))


def _sums(aggregate: AggregateSpec) -> bool:
    return aggregate.expression is not None and aggregate.function in (sp.SUM, sp.MEAN, sp.STD, sp.DECAYED_SUM)


def _sizes(aggregate: AggregateSpec, offline: pa.Table) -> Floats:
    """How large the numbers of each window are together, at most: floats may differ by 1e-9 of it. Zero: they may not differ."""
    if not _sums(aggregate):
        return np.full(offline.num_rows, 1.0 if aggregate.function in (sp.DECAYED_SUM, sp.ZSCORE) else 0.0)
    columns: dict[str, Floats] = {
        function: np.asarray(offline[f"{aggregate.name}{suffix}"].fill_null(0), np.float64)
        for function, suffix in _SIZES.items()
    }
    return np.asarray(columns[sp.COUNT] * np.maximum(np.abs(columns[sp.MIN]), np.abs(columns[sp.MAX])))


def _plain(values: Any) -> list[Any]:
    """Python values, NaN as None."""
    if not isinstance(values, np.ndarray):
        return list(values)
    return [None if value != value else value for value in values.tolist()]


def equal(value: Any, expected: Any, size: float) -> bool:
    """Integers, strings, lists and chosen floats exactly; computed floats to 1e-9 of `size`."""
    if isinstance(value, float) and isinstance(expected, float) and size:
        return abs(value - expected) <= _TOLERANCE * max(size, abs(expected))
    return bool(value == expected)
