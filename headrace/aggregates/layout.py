"""What the state of a view consists of, and where each aggregation finds its numbers in it.

Aggregations share what they can: those of one hop a ring of tiles, those that count the same events a counter, those that list the same
events a list.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np

from headrace import names
from headrace.aggregates import spec as sp
from headrace.aggregates import tiles as tl
from headrace.aggregates import windows as win
from headrace.aggregates.arrays import Floats, Ints
from headrace.aggregates.columns import type_mask
from headrace.aggregates.packing import DISTINCT, LIST, SESSIONS
from headrace.aggregates.payloads import in_order, kinds_of
from headrace.aggregates.rows import NEVER, StateMismatchError
from headrace.aggregates.spec import AggregateSpec, ViewSpec
from headrace.settings import MICROS

__all__ = ["NEVER", "Counter", "DistinctSet", "Layout", "RecentList", "Ring", "SessionGroup", "StateMismatchError"]

ENDLESS: Final = 2**62
"""The hop of the one tile that holds all history."""
_CLOCK_SKEW_US: Final = 3_600 * MICROS


@dataclass(frozen=True)
class Counter:
    """One cell per tile: what the events of some types say. `span_us` is a half-life."""

    types: tuple[str, ...]
    expression: str | None
    kind: int
    span_us: int | None = None


@dataclass(frozen=True)
class Ring:
    """Tiles of one hop, shared by every aggregation with that hop."""

    hop_us: int
    length: int
    counters: tuple[Counter, ...]


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
class Question:
    """Some tiled features, as `windows.window_values` reads them. `asked` is complete but for the times."""

    aggregates: tuple[AggregateSpec, ...]
    asked: Ints
    first_use: Ints
    uses: Ints
    buckets: int

    def asked_at(self, t_us: int) -> Ints:
        """`asked` with the windows of t."""
        asked = self.asked.copy()
        for row, one in enumerate(self.aggregates):
            hop_us = one.hop_us or ENDLESS
            asked[row, win.WINDOW_START] = one.window_start(t_us) // hop_us
            asked[row, win.WINDOW_END] = t_us // hop_us
        return asked


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
        self._questions: dict[tuple[str, ...], Question] = {}

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
        rings, counters = np.zeros((len(self.rings), 6), np.int64), np.zeros((len(self.counters), 6), np.int64)
        k = count_at = word_at = 0
        for r, ring in enumerate(self.rings):
            counts = words = 0
            for counter in ring.counters:
                value = -1 if counter.expression is None else self.expressions.index(counter.expression)
                is_count = counter.kind == tl.COUNT
                offset = counts if is_count else words
                counters[k] = r, counter.kind, type_mask(counter.types), value, counter.span_us or 0, offset
                k, counts, words = k + 1, counts + is_count, words + tl.WORDS[counter.kind]
            rings[r] = ring.hop_us, ring.length, counts, count_at, words, word_at
            count_at, word_at = count_at + counts * ring.length, word_at + words * ring.length
        of_type = [
            [k for k in range(len(counters)) if counters[k, tl.RING] == r and counters[k, tl.TYPES] >> code & 1]
            for code in range(len(names.EVENT_TYPES))
            for r in range(len(rings))
        ]
        by_type = np.cumsum([0, *map(len, of_type)])
        counted = np.array([k for some in of_type for k in some], np.int64)
        count_cells, word_cells = _cells(rings, counters, is_count=True), _cells(rings, counters, is_count=False)
        blank = _blank(word_cells, counters, word_at)
        return tl.Plan(rings, counters, by_type, counted, count_cells, word_cells, blank, blank.view(np.int64))

    def question(self, aggregates: tuple[AggregateSpec, ...]) -> Question:
        """How to read some tiled features; made once for each choice of them."""
        chosen = tuple(one.name for one in aggregates)
        if chosen not in self._questions:
            self._questions[chosen] = self._ask(aggregates)
        return self._questions[chosen]

    def _ask(self, aggregates: tuple[AggregateSpec, ...]) -> Question:
        asked, uses, buckets = np.zeros((len(aggregates), 5), np.int64), [], 0
        for row, one in enumerate(aggregates):
            hop_us = one.hop_us or ENDLESS
            asked[row, win.FUNCTION] = win.FUNCTION_OF[one.function]
            if one.function == sp.ZSCORE:
                asked[row, win.SHORT], asked[row, win.BUCKET_AT] = (one.span_us or 1) // hop_us, buckets
                buckets += (one.window_us or 0) // (one.span_us or 1)
            ring = next(r for r, ring in enumerate(self.rings) if ring.hop_us == hop_us)
            first = sum(len(before.counters) for before in self.rings[:ring])
            uses += [(first + self.rings[ring].counters.index(counter), row) for counter in _counters(one)]
        by_counter = np.array(sorted(uses), np.int64).reshape(-1, 2)
        first_use = np.searchsorted(by_counter[:, 0], np.arange(len(self.counters) + 1))
        return Question(aggregates, asked, first_use, by_counter[:, 1].copy(), buckets)

    def list_of(self, aggregate: AggregateSpec) -> tuple[int, int]:
        """Which list an aggregation reads, and which of its columns."""
        for index, recent in enumerate(self.lists):
            if recent.types == aggregate.types and recent.n >= aggregate.n and aggregate.expression in recent.columns:
                return index, recent.columns.index(aggregate.expression)
        raise KeyError(aggregate.name)

    def session_part(self, aggregate: AggregateSpec) -> int:
        """Which part holds the sessions that an aggregation reads."""
        return len(self.lists) + self.sessions.index(SessionGroup(aggregate.types))

    def distinct_part(self, aggregate: AggregateSpec) -> int:
        """Which part holds the values that an aggregation counts."""
        sets = [(one.types, one.expression) for one in self.distinct]
        return len(self.lists) + len(self.sessions) + sets.index((aggregate.types, str(aggregate.expression)))


def _cells(rings: Ints, counters: Ints, is_count: bool) -> Ints:
    """The cells of counts or of words, with the columns of `Plan.count_cells`, in the order of where they stand. Shape (cells, 5)."""
    tables = [np.zeros((0, 5), np.int64)]
    for k, counter in enumerate(counters):
        if (counter[tl.KIND] == tl.COUNT) == is_count:
            ring = rings[counter[tl.RING]]
            start, each = (ring[tl.COUNT_AT], ring[tl.COUNTS]) if is_count else (ring[tl.WORD_AT], ring[tl.WORDS_EACH])
            places = np.arange(ring[tl.LENGTH])
            cells = np.zeros((len(places), 5), np.int64)
            cells[:, tl.COUNTER], cells[:, tl.RING_OF], cells[:, tl.PLACE] = k, counter[tl.RING], places
            cells[:, tl.WIDTH] = tl.WORDS[int(counter[tl.KIND])]
            cells[:, tl.AT] = start + places * each + counter[tl.OFFSET]
            tables.append(cells)
    table = np.concatenate(tables)
    return table[np.argsort(table[:, tl.AT])]


def _blank(word_cells: Ints, counters: Ints, words: int) -> Floats:
    """The words of an entity that was never seen. Shape (words,)."""
    blank = np.zeros(words)
    kinds = counters[word_cells[:, tl.COUNTER], tl.KIND]
    for kind, empty in tl.BLANK.items():
        places = word_cells[kinds == kind, tl.AT]
        for i, word in enumerate(empty):
            blank[places + i] = word
    return blank


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
