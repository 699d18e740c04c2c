"""`headrace verify`: recompute what the online store holds from the lake, and compare every feature of every entity.

The two engines share no code for values: the online rows are tiles folded by the flow, the recomputation sorts events. Rows are read
together with the log positions they include, and the recomputation takes exactly the events up to those positions.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import redis

from headrace import names
from headrace.aggregates.batch import as_of
from headrace.aggregates.fold import concerns
from headrace.aggregates.layout import Layout
from headrace.aggregates.read import StreamRows
from headrace.aggregates.spec import AggregateSpec, ViewSpec
from headrace.clock import Clock, from_micros, system_clock
from headrace.identity import shard_of
from headrace.settings import Settings
from headrace.stores.definitions import load_definitions
from headrace.stores.lake import EventLake, covered
from headrace.stores.redis_client import connect
from headrace.stores.shards import ShardStatus, read_rows, read_status, scan_keys

_CHUNK = 2_000
_TOLERANCE = 1e-9


class VerifyError(RuntimeError):
    """The comparison would say nothing."""


@dataclass
class VerifyReport:
    """What was compared and what differed. Keys are `view.feature`."""

    as_of_us: int | None = None
    entities: dict[str, int] = field(default_factory=dict)
    compared: int = 0
    non_zero: dict[str, int] = field(default_factory=dict)
    mismatches: dict[str, int] = field(default_factory=dict)
    examples: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not self.mismatches

    def to_dict(self) -> dict[str, Any]:
        when = from_micros(self.as_of_us).isoformat() if self.as_of_us is not None else "now"
        return {
            "as_of": when,
            "entities": self.entities,
            "compared": self.compared,
            "non_zero": self.non_zero,
            "mismatches": self.mismatches,
            "examples": self.examples,
        }


def verify(
    settings: Settings,
    as_of_us: int | None = None,
    clock: Clock = system_clock,
    progress: Callable[[str, int, int], None] | None = None,
    wait_s: float = 60.0,
) -> VerifyReport:
    """Compare both engines at `as_of_us` (now by default).

    Raises VerifyError where a shard is empty though the lake is not, LakeBehindError when the lake does not catch up within
    `wait_s`, TooEarlyError for a T that is not after the newest event in the state.
    """
    client = connect(settings)
    lake = EventLake(settings.lake_dir)
    report = VerifyReport(as_of_us=as_of_us)
    _check_filled(lake, read_status(client, range(settings.shards)), settings)
    for spec in load_definitions(settings).streams.values():
        chunks = list(_read_state(client, settings, spec, _lake_keys(lake, spec)))
        lake.wait_for(_needed([status for status, _, _ in chunks], settings.log_partitions), wait_s)
        events = _events(lake, spec)
        report.entities[spec.name] = sum(len(keys) for _, keys, _ in chunks)
        for number, (status, keys, rows) in enumerate(chunks):
            t_us = as_of_us if as_of_us is not None else max(clock(), rows.newest_us + 1)
            expected = as_of(spec, events.filter(covered(status.positions)), keys, np.full(len(keys), t_us, np.int64))
            _compare(report, spec, keys, rows.values(t_us), expected)
            if progress:
                progress(spec.name, number + 1, len(chunks))
    return report


def _read_state(
    client: "redis.Redis", settings: Settings, spec: ViewSpec, known: Sequence[str]
) -> Iterator[tuple[ShardStatus, list[str], StreamRows]]:
    """Rows of one view in chunks, each with the positions that it includes. Also entities without a row, which must read as empty."""
    layout = Layout(spec)
    by_shard: dict[int, set[str]] = {
        shard: set(scan_keys(client, shard, spec.name)) for shard in range(settings.shards)
    }
    for key in known:
        by_shard[shard_of(key, settings.shards)].add(key)
    for shard, members in by_shard.items():
        keys = sorted(members)
        for start in range(0, len(keys), _CHUNK):
            chunk = keys[start : start + _CHUNK]
            status, rows = read_rows(client, shard, [(spec.name, key) for key in chunk])
            yield status, chunk, StreamRows(layout, rows)


def _lake_keys(lake: EventLake, spec: ViewSpec) -> list[str]:
    frame = lake.scan().filter(concerns(spec)).select(pl.col(spec.entity_column).unique()).collect()
    return frame[spec.entity_column].to_list()


def _events(lake: EventLake, spec: ViewSpec) -> pl.DataFrame:
    columns = dict.fromkeys([*spec.columns, names.LOG_PARTITION, names.LOG_POSITION])
    return lake.scan().filter(concerns(spec)).select(*columns).collect()


def _check_filled(lake: EventLake, statuses: Mapping[int, ShardStatus], settings: Settings) -> None:
    """An empty state agrees with nothing at all: refuse to call that verified."""
    in_lake = lake.positions([*range(settings.log_partitions), names.BULK_PARTITION])
    for shard, status in statuses.items():
        for partition, position in in_lake.items():
            reached = status.positions.get(partition, 0)
            if (position and not reached) or (partition == names.BULK_PARTITION and reached < position):
                raise VerifyError(
                    f"shard {shard} has nothing of log partition {partition}, which the lake covers up to {position}: "
                    "start the feature flow, or run `headrace backfill`"
                )


def _needed(statuses: Sequence[ShardStatus], partitions: int) -> dict[int, int]:
    """The furthest position of each log partition that a chunk of rows includes."""
    return {p: max((status.positions.get(p, 0) for status in statuses), default=0) for p in range(partitions)}


def _compare(
    report: VerifyReport, spec: ViewSpec, keys: Sequence[str], online: dict[str, Any], offline: pa.Table
) -> None:
    for aggregate in spec.aggregates:
        name = f"{spec.name}.{aggregate.name}"
        recomputed = offline[aggregate.name].to_pylist()
        for key, value, expected in zip(keys, _plain(online[aggregate.name]), recomputed, strict=True):
            report.compared += 1
            if value:
                report.non_zero[name] = report.non_zero.get(name, 0) + 1
            if not equal(aggregate, value, expected):
                report.mismatches[name] = report.mismatches.get(name, 0) + 1
                if len(report.examples) < 20:
                    report.examples.append(f"{name} of {key}: the store has {value!r}, the lake gives {expected!r}")


def _plain(values: Any) -> list[Any]:
    """Python values, NaN as None."""
    if not isinstance(values, np.ndarray):
        return list(values)
    return [None if value != value else value for value in values.tolist()]


def equal(aggregate: AggregateSpec, value: Any, expected: Any) -> bool:
    """Integers, strings and lists exactly; sums and means to 1e-9 of their size."""
    if isinstance(value, float) and isinstance(expected, float) and aggregate.tiled:
        return abs(value - expected) <= _TOLERANCE * max(1.0, abs(expected))
    return bool(value == expected)
