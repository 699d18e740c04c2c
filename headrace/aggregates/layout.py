"""What the state of a view consists of, and where each aggregation finds its numbers in it.

Aggregations share what they can: those of one hop a ring of tiles, those that count the same events a counter, those that list the same
events a list.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np

from headrace.aggregates import spec as sp
from headrace.aggregates import tiles as tl
from headrace.aggregates.packing import DISTINCT, LIST, SESSIONS
from headrace.aggregates.payloads import in_order, kinds_of
from headrace.aggregates.plan import Counter, Ring, make_plan
from headrace.aggregates.spec import AggregateSpec, ViewSpec
from headrace.aggregates.windows import ENDLESS, Question, ask
from headrace.arrays import Ints
from headrace.settings import HOUR_US

_CLOCK_SKEW_US: Final = HOUR_US


@dataclass(frozen=True)
class RecentList:
    """The last n events of some types, with the columns that features read from them. Events with a null there are skipped."""

    types: tuple[str, ...]
    n: int
    columns: tuple[str, ...]

    @cached_property
    def kinds(self) -> Ints:
        """Kinds of the columns (headrace.aggregates.payloads). Shape (columns,)."""
        return np.array(kinds_of(self.columns), np.int64)


@dataclass(frozen=True)
class SessionGroup:
    """Sessions of some types, as disjoint intervals of event time."""

    types: tuple[str, ...]


@dataclass(frozen=True)
class DistinctSet:
    """Values of an expression over the events of some types, needed for `keep_us` before the newest event."""

    types: tuple[str, ...]
    expression: str
    keep_us: int


@dataclass(frozen=True)
class Reading:
    """Some features of a view, in order, and the question that answers those of tiles, if there are any."""

    wanted: tuple[AggregateSpec, ...]
    question: Question | None

    @cached_property
    def listed(self) -> tuple[AggregateSpec, ...]:
        return tuple(one for one in self.wanted if one.function in sp.LISTED)

    @cached_property
    def of_sets(self) -> tuple[AggregateSpec, ...]:
        """Those of sessions and distinct values."""
        return tuple(one for one in self.wanted if not one.tiled and one.function not in sp.LISTED)


class Layout:
    """The state of one view. Its parts are its lists, then its session groups, then its sets of distinct values."""

    def __init__(self, spec: ViewSpec) -> None:
        self.spec = spec
        self.rings = tuple(_rings(spec))
        self.counters = tuple(counter for ring in self.rings for counter in ring.counters)
        self.expressions = tuple(dict.fromkeys(c.expression for c in self.counters if c.expression is not None))
        self.lists = tuple(_lists(spec))
        self.sessions = tuple(
            SessionGroup(types)
            for types in dict.fromkeys(a.types for a in spec.aggregates if a.function in sp.SESSIONS)
        )
        self.distinct = tuple(_distinct(spec))
        self._readings: dict[tuple[str, ...] | None, Reading] = {}

    @cached_property
    def parts(self) -> Ints:
        """Kind and time to keep of each part. Shape (parts, 2)."""
        # What can still be joined to the current session: an event in time is at most this much older than the newest.
        keep_us = self.spec.lateness_us + self.spec.session_gap_us + _CLOCK_SKEW_US
        kinds = [(LIST, 0)] * len(self.lists) + [(SESSIONS, keep_us)] * len(self.sessions)
        kinds += [(DISTINCT, one.keep_us) for one in self.distinct]
        return np.array(kinds, np.int64).reshape(-1, 2)

    @cached_property
    def plan(self) -> tl.Plan:
        """Where the tiles' numbers are."""
        return make_plan(self.rings, self.expressions)

    def reading(self, features: Sequence[str] | None) -> Reading:
        """How to read some features, all by default; made once for each choice of them. Raises KeyError where there is no such one."""
        chosen = None if features is None else tuple(features)
        if chosen not in self._readings:
            spec = self.spec
            wanted = spec.aggregates if chosen is None else tuple(spec.aggregate(name) for name in chosen)
            tiled = tuple(one for one in wanted if one.tiled)
            self._readings[chosen] = Reading(wanted, self._question(tiled) if tiled else None)
        return self._readings[chosen]

    def _question(self, aggregates: tuple[AggregateSpec, ...]) -> Question:
        at = {(ring.hop_us, counter): k for k, (ring, counter) in enumerate(self._counters_by_ring())}
        counters_of = [[at[one.hop_us or ENDLESS, counter] for counter in _counters(one)] for one in aggregates]
        return ask(aggregates, counters_of, len(self.counters))

    def _counters_by_ring(self) -> Iterator[tuple[Ring, Counter]]:
        return ((ring, counter) for ring in self.rings for counter in ring.counters)

    @cached_property
    def list_of(self) -> dict[str, tuple[int, int]]:
        """Which list each listed feature reads, and which of its columns."""
        return {one.name: self._list_of(one) for one in self.spec.aggregates if one.function in sp.LISTED}

    def _list_of(self, aggregate: AggregateSpec) -> tuple[int, int]:
        for index, recent in enumerate(self.lists):
            if recent.types == aggregate.types and recent.n >= aggregate.n and aggregate.expression in recent.columns:
                return index, recent.columns.index(aggregate.expression)
        raise KeyError(aggregate.name)

    @cached_property
    def part_of(self) -> dict[str, int]:
        """Which part holds the sessions, or the values, that a feature counts."""
        parts = {}
        for one in self.spec.aggregates:
            if one.function in sp.SESSIONS:
                parts[one.name] = len(self.lists) + self.sessions.index(SessionGroup(one.types))
            elif one.function == sp.COUNT_DISTINCT:
                sets = [(each.types, each.expression) for each in self.distinct]
                place = sets.index((one.types, str(one.expression)))
                parts[one.name] = len(self.lists) + len(self.sessions) + place
        return parts


def _rings(spec: ViewSpec) -> Iterator[Ring]:
    tiled = [aggregate for aggregate in spec.aggregates if aggregate.tiled]
    for hop_us in sorted({aggregate.hop_us or ENDLESS for aggregate in tiled}):
        here = [aggregate for aggregate in tiled if (aggregate.hop_us or ENDLESS) == hop_us]
        counters = dict.fromkeys(counter for aggregate in here for counter in _counters(aggregate))
        yield Ring(hop_us, max((a.window_us or 0) // hop_us for a in here) + 1, tuple(counters))


def _counters(aggregate: AggregateSpec) -> list[Counter]:
    """What a tiled feature is computed from."""
    types, expression = aggregate.types, aggregate.expression
    if aggregate.function == sp.MEAN:
        return [Counter(types, expression, tl.SUM), Counter(types, expression, tl.COUNT)]
    if expression is not None and aggregate.function == sp.COUNT and sp.never_null(expression, types):
        expression = None
    span_us = aggregate.span_us if aggregate.function == sp.DECAYED_SUM else None
    return [Counter(types, expression, tl.KIND_OF[aggregate.function], span_us)]


def _lists(spec: ViewSpec) -> Iterator[RecentList]:
    """Columns that are never null share one list; a column that may be null skips its own events, so it has its own."""
    groups: dict[tuple[tuple[str, ...], str | None], tuple[int, set[str]]] = {}
    for aggregate in spec.aggregates:
        if aggregate.function in sp.LISTED and aggregate.expression is not None:
            own = None if sp.never_null(aggregate.expression, aggregate.types) else aggregate.expression
            n, columns = groups.get((aggregate.types, own), (0, set()))
            groups[aggregate.types, own] = max(n, aggregate.n), columns | {aggregate.expression}
    for (types, _), (n, columns) in groups.items():
        yield RecentList(types, n, in_order(columns))


def _distinct(spec: ViewSpec) -> Iterator[DistinctSet]:
    groups: dict[tuple[tuple[str, ...], str], int] = {}
    for one in spec.aggregates:
        if one.function == sp.COUNT_DISTINCT and one.expression is not None:
            span = ENDLESS if one.window_us is None or one.hop_us is None else one.window_us + one.hop_us
            groups[one.types, one.expression] = max(span, groups.get((one.types, one.expression), 0))
    for (types, expression), keep_us in groups.items():
        yield DistinctSet(types, expression, keep_us)
