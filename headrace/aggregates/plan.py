"""Tiles by number: what the kernels of headrace.aggregates.tiles need to know of a view's rings and counters."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from headrace import names
from headrace.aggregates import tiles as tl
from headrace.aggregates.columns import type_mask
from headrace.arrays import Floats, Ints


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


def make_plan(shapes: Sequence[Ring], expressions: Sequence[str]) -> tl.Plan:
    """Where each number of the rings stands; `expressions` are the rows of the values that `tiles.fold_tiles` is given."""
    rings = np.zeros((len(shapes), 6), np.int64)
    counters = np.zeros((sum(len(ring.counters) for ring in shapes), 6), np.int64)
    k = count_at = word_at = 0
    for r, ring in enumerate(shapes):
        counts = words = 0
        for counter in ring.counters:
            value = -1 if counter.expression is None else expressions.index(counter.expression)
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
