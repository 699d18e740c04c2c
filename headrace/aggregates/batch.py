"""The as-of batch engine: the values of a view's features for many (key, time) pairs, from its events.

Events and pairs are brought into one order, by (entity, time). Each aggregate then reads the events that it counts as a
*timeline*, and one sweep places every pair on it: a count is the distance between two places, sums and extremes are
folded between them, lists and sessions are gathers. No Python runs per row. The values are those of the incremental
engine at the same time (the as-of law).

Shapes: Q pairs asked, N events on a timeline.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from headrace.aggregates.batch_arrivals import split_by_arrival
from headrace.aggregates.batch_counts import distinct_in_windows, session_starts, value_hashes, zscores
from headrace.aggregates.batch_events import Events, Keys, read_events
from headrace.aggregates.batch_order import Bools, Ordered, by_entity_and_time, first_places, places_before
from headrace.aggregates.batch_tables import listed, picked, put_back
from headrace.aggregates.batch_windows import fold_windows
from headrace.aggregates.spec import (
    COUNT,
    COUNT_DISTINCT,
    DECAYED_SUM,
    LAST,
    LAST_N,
    SESSION_COUNT,
    SESSIONS,
    SUM,
    ZSCORE,
    AggregateSpec,
    ViewSpec,
    arrow_type,
    never_null,
    value_type,
)
from headrace.arrays import Floats, Ints
from headrace.events import RECORD_SCHEMA
from headrace.settings import MICROS

TimelineKey: TypeAlias = tuple[tuple[str, ...], str | None, int | None]
"""Types, the expression that must not be null, and how late an event may be."""


def as_of(
    spec: ViewSpec,
    events: pl.DataFrame | pl.LazyFrame,
    keys: "pl.Series | Sequence[str | None]",
    times_us: npt.NDArray[np.int64],
    features: Sequence[str] | None = None,
    arrived_only: bool = False,
) -> pa.Table:
    """The features (all, or those named) of `keys[i]` at `times_us[i]`: a row for each pair, in the order asked.

    `events` holds at least `spec.columns`, times as Datetime[us, UTC], in any order; an event is seen if its timestamp
    is before the time asked. With `arrived_only`, one that was received after that time is left out too. A null key
    reads like an entity never seen. Column types are `arrow_type`'s. Raises ValueError on keys without times.
    """
    asked = pl.Series("key", keys, dtype=pl.String)
    times_us = np.asarray(times_us, dtype=np.int64)
    if len(asked) != len(times_us):
        raise ValueError(f"{len(asked)} keys but {len(times_us)} times: give one time for each key")
    aggregates = [spec.aggregate(name) for name in features] if features is not None else list(spec.aggregates)
    entities = Keys.of(asked)
    read = read_events(spec, events.lazy(), entities, times_us, aggregates, arrived_only)
    pairs = by_entity_and_time(entities.codes, times_us, entities.frame.height)
    if not arrived_only:
        return _answer(spec, read, pairs, aggregates)
    parts = list(split_by_arrival(read, pairs))
    return put_back(
        [_answer(spec, part.events, part.asked, aggregates) for part in parts], [part.rows for part in parts]
    )


def _answer(spec: ViewSpec, events: Events, asked: Ordered, aggregates: Sequence[AggregateSpec]) -> pa.Table:
    """A row for each pair, in the order of the pairs' rows."""
    expired = _expired(spec, events, asked)
    columns: dict[str, pa.Array | pa.ChunkedArray] = {}
    for timeline_key, group in _by_timeline(spec, aggregates).items():  # one timeline at a time is held
        windows = _Windows(spec, events, events.timeline(*timeline_key), asked, expired, {})
        columns |= {aggregate.name: _feature(windows, aggregate) for aggregate in group}
    schema = pa.schema([(aggregate.name, arrow_type(aggregate)) for aggregate in aggregates])
    return pa.table([columns[name] for name in schema.names], schema=schema)


def _by_timeline(spec: ViewSpec, aggregates: Sequence[AggregateSpec]) -> dict[TimelineKey, list[AggregateSpec]]:
    """Aggregates that count the same events."""
    groups: dict[TimelineKey, list[AggregateSpec]] = {}
    for aggregate in aggregates:
        nullable = None if never_null(aggregate.expression, aggregate.types) else aggregate.expression
        lateness_us = spec.lateness_us if aggregate.function in SESSIONS else None
        groups.setdefault((aggregate.types, nullable, lateness_us), []).append(aggregate)
    return groups


def _expired(spec: ViewSpec, events: Events, asked: Ordered) -> Bools | None:
    """(Q,) by place: pairs past the view's TTL, which read as if their entity had never been seen."""
    if spec.ttl_us is None:
        return None
    last = places_before(events.order, asked, asked.times)
    return _newest_age(events.order, asked, last) > spec.ttl_us


def _newest_age(timeline: Ordered, asked: Ordered, last: Ints) -> Ints:
    """(Q,) microseconds since the newest event before each time; -1 where there is none."""
    ages = np.full(len(last), -1, dtype=np.int64)
    seen = last > first_places(timeline, asked)
    ages[seen] = asked.times[seen] - timeline.times[last[seen] - 1]
    return ages


@dataclass(frozen=True)
class _Windows:
    """One timeline, the pairs asked about it, and where their windows begin and end on it."""

    spec: ViewSpec
    events: Events
    timeline: Ordered
    asked: Ordered
    expired: Bools | None
    _places: dict[tuple[int | None, int | None], Ints]

    def places(self, aggregate: AggregateSpec) -> tuple[Ints, Ints]:
        """(Q,) each, by place of the pairs: the first place of the aggregate's window, and the one behind its last."""
        last = self._cached((0, None), self.asked.times)
        if aggregate.window_us is None:
            first = first_places(self.timeline, self.asked)
        else:
            window = aggregate.window_us, aggregate.hop_us
            first = self._cached(window, aggregate.window_start(self.asked.times))
        return first if self.expired is None else np.where(self.expired, last, first), last

    def _cached(self, window: tuple[int | None, int | None], times: Ints) -> Ints:
        if window not in self._places:
            self._places[window] = places_before(self.timeline, self.asked, times)
        return self._places[window]

    def values(self, aggregate: AggregateSpec) -> pl.Series:
        """(rows of the events' frame,) what the aggregate's expression is worth, a column as it stands."""
        expression = str(aggregate.expression)
        known = expression in RECORD_SCHEMA.names
        return self.events.frame[expression] if known else pl.Series(self.events.numbers(expression))

    def numbers(self, aggregate: AggregateSpec) -> Floats:
        """(N,) what the aggregate sums; 1 where it has no expression."""
        if aggregate.expression is None:
            return np.ones(len(self.timeline.rows))
        return self.events.numbers(aggregate.expression)[self.timeline.rows]

    def by_row(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """(Q,) from the order of the places to that of the rows."""
        ordered = np.empty_like(values)
        ordered[self.asked.rows] = values
        return ordered


def _feature(windows: _Windows, aggregate: AggregateSpec) -> pa.Array | pa.ChunkedArray:
    """(Q,) the values of one feature, by row."""
    function, kind = aggregate.function, value_type(aggregate)
    if function in SESSIONS:
        return pa.array(windows.by_row(_session(windows, aggregate)), kind)
    if function == ZSCORE:
        return _floats(windows, _zscore(windows, aggregate))
    first, last = windows.places(aggregate)
    if function == COUNT:
        return pa.array(windows.by_row(last - first))
    if function == COUNT_DISTINCT:
        hashes = value_hashes(windows.values(aggregate).gather(windows.timeline.rows))
        return pa.array(windows.by_row(distinct_in_windows(hashes, windows.timeline, windows.asked, first, last)))
    if function == LAST:
        rows = np.append(windows.timeline.rows, -1)[np.where(first < last, last - 1, -1)]
        return picked(windows.values(aggregate), windows.by_row(rows), kind)
    if function == LAST_N:
        first, last = windows.by_row(np.maximum(first, last - aggregate.n)), windows.by_row(last)
        return listed(windows.values(aggregate).gather(windows.timeline.rows), first, last, kind)
    numbers, span_us = windows.numbers(aggregate), aggregate.span_us
    folded = fold_windows(function, numbers, windows.timeline, windows.asked, first, last, span_us)
    if function not in (SUM, DECAYED_SUM):
        folded[first == last] = np.nan
    return _floats(windows, folded)


def _floats(windows: _Windows, values: Floats) -> pa.Array:
    """(Q,) by row; null where NaN stands."""
    return pa.array(windows.by_row(values), from_pandas=True)


def _zscore(windows: _Windows, aggregate: AggregateSpec) -> Floats:
    assert aggregate.hop_us
    assert aggregate.window_us
    assert aggregate.span_us
    ends = windows.asked.times // aggregate.hop_us * aggregate.hop_us
    buckets = aggregate.window_us // aggregate.span_us
    scores = zscores(windows.timeline, windows.asked, ends, aggregate.span_us, buckets)
    return scores if windows.expired is None else np.where(windows.expired, np.nan, scores)


def _session(windows: _Windows, aggregate: AggregateSpec) -> npt.NDArray[Any]:
    """(Q,) by place: events in, or seconds of, the session that is open at each time."""
    timeline, gap_us = windows.timeline, windows.spec.session_gap_us
    first, last = windows.places(aggregate)
    ages = _newest_age(timeline, windows.asked, last)
    is_open = (first < last) & (ages <= gap_us)
    newest = last[is_open] - 1
    begins = session_starts(timeline.times, timeline.starts, gap_us)[newest]
    if aggregate.function == SESSION_COUNT:
        counts = np.zeros(len(last), dtype=np.int64)
        counts[is_open] = newest - begins + 1
        return counts
    seconds = np.zeros(len(last))
    seconds[is_open] = (timeline.times[newest] - timeline.times[begins]) / MICROS
    return seconds
