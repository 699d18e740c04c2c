"""The as-of batch engine: the values of a view's features for many (key, time) pairs, from its events.

Events are sorted once by (entity, timestamp, event_id). Each aggregate then reads the ones that it counts as a
*timeline*: a count is the distance between two places found by bisection, sums and extremes combine blocks between
those places, lists and sessions are gathers. No Python runs per row. The values are those of the incremental engine at
the same time (the as-of law).

Shapes: Q pairs asked, E events, N of them on a timeline.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from headrace import names
from headrace.aggregates.expressions import Floats, evaluate
from headrace.aggregates.spec import (
    COUNT,
    LAST,
    LAST_N,
    MAX,
    MEAN,
    MIN,
    SESSION_COUNT,
    SESSIONS,
    SUM,
    AggregateSpec,
    ViewSpec,
    arrow_type,
    columns_of,
    never_null,
    value_type,
)
from headrace.events import RECORD_SCHEMA
from headrace.settings import MICROS

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

_CODE: Final = "entity_code"
_MAX_COPIED_EVENTS: Final = 4_000_000


def as_of(
    spec: ViewSpec,
    events: pl.DataFrame,
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
    question = _ask(spec, events, asked, times_us)
    if arrived_only:
        return _had_arrived(question, events, asked, aggregates)
    return _answer(question, aggregates)


def _ask(spec: ViewSpec, events: pl.DataFrame, asked: pl.Series, times_us: Ints) -> "_Question":
    """Sort what is needed of the events and number the entities."""
    entities = asked.drop_nulls().unique()
    codes_by_key = pl.DataFrame({"key": entities, _CODE: np.arange(len(entities))})
    codes = asked.rename("key").to_frame().join(codes_by_key, on="key", how="left", maintain_order="left")[_CODE]
    ordered = (
        events.lazy()
        .filter(pl.col(names.TYPE).is_in(list(spec.types)))
        .join(codes_by_key.lazy(), left_on=spec.entity_column, right_on="key")
        .sort(_CODE, names.TIMESTAMP, names.EVENT_ID)
        .collect()
    )
    return _Question(spec, ordered, len(entities), codes.fill_null(len(entities)).to_numpy(), times_us)


def _answer(question: "_Question", aggregates: Sequence[AggregateSpec]) -> pa.Table:
    question = question.without_expired()
    schema = pa.schema([(aggregate.name, arrow_type(aggregate)) for aggregate in aggregates])
    return pa.Table.from_arrays([_feature(question, aggregate) for aggregate in aggregates], schema=schema)


@dataclass(frozen=True)
class Timeline:
    """The events that one aggregate counts, by entity and time."""

    rows: Ints
    """(N,) their places among the sorted events."""
    times: Ints
    """(N,) timestamps in microseconds."""
    starts: Ints
    """(entities + 2,) entity c holds places starts[c] to starts[c + 1]; the one past the last entity holds none."""

    def before(self, codes: Ints, times_us: Ints) -> Ints:
        """(Q,) first place of each entity whose timestamp is not before the time; its end if there is none."""
        low, high = self.starts[codes], self.starts[codes + 1]
        while (low < high).any():
            middle = (low + high) >> 1
            searching = low < high
            earlier = searching & (self.times[np.minimum(middle, len(self.times) - 1)] < times_us)
            low = np.where(earlier, middle + 1, low)
            high = np.where(searching & ~earlier, middle, high)
        return low


@dataclass(frozen=True)
class _Question:
    """Sorted events and the pairs asked about them; keeps what several aggregates need."""

    spec: ViewSpec
    ordered: pl.DataFrame
    entities: int
    codes: Ints
    times_us: Ints
    _timelines: dict[Any, Timeline] = field(default_factory=dict)
    _places: dict[Any, Ints] = field(default_factory=dict)

    def without_expired(self) -> "_Question":
        """Entities past the view's TTL are asked about as the one that was never seen."""
        if self.spec.ttl_us is None:
            return self
        timeline = self.timeline(self.spec.types, None)
        last = timeline.before(self.codes, self.times_us)
        seen = last > timeline.starts[self.codes]
        expired = _newest_age(timeline, last, seen, self.times_us) > self.spec.ttl_us
        return _Question(
            self.spec,
            self.ordered,
            self.entities,
            np.where(expired, self.entities, self.codes),
            self.times_us,
            self._timelines,
        )

    def timeline(self, types: tuple[str, ...], expression: str | None, lateness_us: int | None = None) -> Timeline:
        """Events of the types where the expression is not null, and not later than `lateness_us` if that is given."""
        if never_null(expression, types):
            expression = None
        key = (types, expression, lateness_us)
        if key not in self._timelines:
            keep = pl.col(names.TYPE).is_in(list(types))
            if expression in RECORD_SCHEMA.names:
                keep &= pl.col(str(expression)).is_not_null()
            elif expression is not None:
                keep &= pl.lit(pl.Series(~np.isnan(self.numbers(expression))))
            if lateness_us is not None:
                late = pl.col(names.RECEIVED_AT) - pl.col(names.TIMESTAMP)
                keep &= late.dt.total_microseconds() <= lateness_us
            rows = self.ordered.select(keep.arg_true()).to_series().cast(pl.Int64).to_numpy()
            codes = self.ordered[_CODE].gather(rows).to_numpy()
            self._timelines[key] = Timeline(
                rows=rows,
                times=self.ordered[names.TIMESTAMP].gather(rows).to_physical().to_numpy(),
                starts=np.searchsorted(codes, np.arange(self.entities + 2)),
            )
        return self._timelines[key]

    def numbers(self, expression: str) -> Floats:
        """(E,) an expression's values, NaN for null."""
        columns = {
            name: self.ordered[name].cast(pl.Float64).fill_null(np.nan).to_numpy()
            for name in columns_of(expression) or {names.TIMESTAMP}
        }
        return evaluate(expression, columns)

    def places(self, aggregate: AggregateSpec) -> tuple[Timeline, Ints, Ints]:
        """The aggregate's timeline and, (Q,) each, the first and the end place of its window there."""
        timeline = self.timeline(aggregate.types, aggregate.expression)
        last = self._before(timeline, (), self.times_us)
        if aggregate.window_us is None:
            return timeline, timeline.starts[self.codes], last
        window = (aggregate.window_us, aggregate.hop_us)
        return timeline, self._before(timeline, window, aggregate.window_start(self.times_us)), last

    def _before(self, timeline: Timeline, window: tuple[int | None, ...], times_us: Ints) -> Ints:
        key = (id(timeline), window)
        if key not in self._places:
            self._places[key] = timeline.before(self.codes, times_us)
        return self._places[key]


def _feature(question: _Question, aggregate: AggregateSpec) -> pa.Array:
    """(Q,) the values of one feature."""
    if aggregate.function in SESSIONS:
        return _session(question, aggregate)
    timeline, first, last = question.places(aggregate)
    if aggregate.function == COUNT:
        return pa.array(last - first, pa.int64())
    if aggregate.function == LAST:
        return _gather(question, aggregate, timeline, np.where(first < last, last - 1, -1))
    if aggregate.function == LAST_N:
        first = np.maximum(first, last - aggregate.n)
        offsets = np.concatenate([[0], np.cumsum(last - first)])
        places = np.repeat(first - offsets[:-1], last - first) + np.arange(offsets[-1])
        values = _gather(question, aggregate, timeline, places)
        return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), values, type=arrow_type(aggregate))
    values = question.numbers(str(aggregate.expression))[timeline.rows]
    combine, identity = {
        SUM: (np.add, 0.0),
        MEAN: (np.add, 0.0),
        MIN: (np.minimum, np.inf),
        MAX: (np.maximum, -np.inf),
    }[aggregate.function]
    results = combine_ranges(combine, identity, values, first, last)
    if aggregate.function == SUM:
        return pa.array(results)
    if aggregate.function == MEAN:
        results /= np.maximum(last - first, 1)
    return pa.array(results, mask=first == last)


def combine_ranges(combine: np.ufunc, identity: float, values: Floats, first: Ints, last: Ints) -> Floats:
    """(Q,) `combine` over values[first:last] of each pair, from blocks of 1, 2, 4, ... values.

    Nothing is ever subtracted: a sum is exact to a few roundings of its own range's |x|, whatever else the entity holds
    (a difference of prefix sums would be off by a rounding of all that came before).
    """
    results = np.full(len(first), identity)
    blocks, low, high = values, first, last
    with np.errstate(over="ignore", invalid="ignore"):  # a block across two entities is built, never read
        while (low < high).any():
            odd = ((low & 1) == 1) & (low < high)
            results[odd] = combine(results[odd], blocks[low[odd]])
            low = low + odd
            odd = ((high & 1) == 1) & (low < high)
            high = high - odd
            results[odd] = combine(results[odd], blocks[high[odd]])
            pairs = len(blocks) // 2 * 2
            blocks, low, high = combine(blocks[0:pairs:2], blocks[1:pairs:2]), low >> 1, high >> 1
    return results


def _gather(question: _Question, aggregate: AggregateSpec, timeline: Timeline, places: Ints) -> pa.Array:
    """The aggregate's expression at some places of its timeline; null at a place of -1."""
    expression, kind = str(aggregate.expression), value_type(aggregate)
    if len(timeline.rows) == 0:
        return pa.nulls(len(places), kind)
    known = expression in RECORD_SCHEMA.names
    values = question.ordered[expression] if known else pl.Series(question.numbers(expression))
    rows = pl.Series(timeline.rows[places]).set(pl.Series(places < 0), None)
    return values.gather(rows).to_arrow().cast(kind)


def _session(question: _Question, aggregate: AggregateSpec) -> pa.Array:
    """(Q,) size or length of the session that is open at each time."""
    spec = question.spec
    timeline = question.timeline(aggregate.types, None, spec.lateness_us)
    last = timeline.before(question.codes, question.times_us)
    seen = last > timeline.starts[question.codes]
    is_open = seen & (_newest_age(timeline, last, seen, question.times_us) <= spec.session_gap_us)
    begins = np.zeros(len(timeline.times), dtype=bool)
    begins[timeline.starts[timeline.starts < len(begins)]] = True
    begins[1:] |= np.diff(timeline.times) > spec.session_gap_us
    firsts = np.maximum.accumulate(np.where(begins, np.arange(len(begins)), 0))
    newest = last[is_open] - 1
    if aggregate.function == SESSION_COUNT:
        counts = np.zeros(len(last), dtype=np.int64)
        counts[is_open] = newest - firsts[newest] + 1
        return pa.array(counts)
    seconds = np.zeros(len(last))
    seconds[is_open] = (timeline.times[newest] - timeline.times[firsts[newest]]) / MICROS
    return pa.array(seconds)


def _newest_age(timeline: Timeline, last: Ints, seen: Bools, times_us: Ints) -> Ints:
    """(Q,) microseconds since the newest event before each time; 0 where there is none."""
    ages = np.zeros(len(last), dtype=np.int64)
    ages[seen] = times_us[seen] - timeline.times[last[seen] - 1]
    return ages


def _had_arrived(
    question: _Question, events: pl.DataFrame, asked: pl.Series, aggregates: Sequence[AggregateSpec]
) -> pa.Table:
    """Leaves out, for each pair, events that were under way: they happened before its time and arrived after it.

    Pairs with none, most of them, are answered as they are; the others from their own copy of what had arrived, some
    million events at a time.
    """
    spec, times_us = question.spec, question.times_us
    timeline = question.timeline(spec.types, None)
    last = timeline.before(question.codes, times_us)
    seen = last - timeline.starts[question.codes]
    arrived = (
        question.ordered.select(pl.col(names.RECEIVED_AT).cum_max().over(_CODE).to_physical()).to_series().to_numpy()
    )
    under_way = np.zeros(len(last), dtype=bool)
    under_way[seen > 0] = arrived[last[seen > 0] - 1] > times_us[seen > 0]
    settled, touched = np.flatnonzero(~under_way), np.flatnonzero(under_way)
    parts = [_answer(_ask(spec, events, asked.gather(settled), times_us[settled]), aggregates)]
    batches = np.cumsum(seen[touched]) // _MAX_COPIED_EVENTS
    for batch in np.split(touched, np.flatnonzero(np.diff(batches)) + 1):
        copy = pl.DataFrame(
            {"copy": batch, "t": pl.Series(times_us[batch]).cast(pl.Datetime("us", "UTC")), "key": asked.gather(batch)}
        )
        copy = copy.with_columns(pl.col("copy").cast(pl.String))
        copied = (
            copy.lazy()
            .join(events.lazy(), left_on="key", right_on=spec.entity_column)
            .filter(pl.col(names.TIMESTAMP) < pl.col("t"), pl.col(names.RECEIVED_AT) <= pl.col("t"))
            .with_columns(pl.col("copy").alias(spec.entity_column))
            .collect()
        )
        parts.append(_answer(_ask(spec, copied, copy["copy"], times_us[batch]), aggregates))
    return pa.concat_tables(parts).take(np.argsort(np.concatenate([settled, touched]), kind="stable"))
