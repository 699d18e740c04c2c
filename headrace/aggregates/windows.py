"""The as-of read of tiles: packed rows and a time turned into the values of windows, all features in one pass over the bytes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from headrace.aggregates import spec as sp
from headrace.aggregates import tiles as tl
from headrace.aggregates.rows import part_start, tiles_start
from headrace.aggregates.spec import AggregateSpec
from headrace.aggregates.tiles import COUNTER, HOP, KIND, LENGTH, PLACE, RING_OF, SPAN, WIDTH, Plan, decay
from headrace.aggregates.wire import BROKEN, get_varint, get_word
from headrace.arrays import Bytes, Floats, Int, Ints, Mask
from headrace.kernel import kernel

ENDLESS: Final = 2**62
"""The hop of the one tile that holds all history."""

WINDOW_START, WINDOW_END, SHORT, BUCKET_AT, HOP_US, WINDOW_US = range(6)
"""Columns of `asked`, a row for each feature: its first tile and, of a zscore, the tile where its window ends, the tiles of a bucket and
where its buckets begin. SHORT is 0 for the others. And its hop and its window, ENDLESS where there is none: with a time, these make the
tiles."""
HEAD, BEFORE, BEHIND = range(3)
"""Columns of `heads`, a row for each ring: the place of its newest tile, and what makes a place up to there, or one behind it, the
number of its tile."""

_ONES_IN: Final = np.array([byte.bit_count() for byte in range(256)])
_ONES: Final = np.array([sorted(range(8), key=lambda bit: ~byte >> bit & 1) for byte in range(256)])
"""How many bits of a byte are set, and which, in front of those that are not: to try each bit takes twice as long."""


@dataclass(frozen=True)
class Question:
    """Some tiled features. Counter k is read by the features uses[first_use[k]:first_use[k + 1]]; `asked` lacks the tiles."""

    aggregates: tuple[AggregateSpec, ...]
    asked: Ints
    first_use: Ints
    uses: Ints
    buckets: int

    def answer(
        self, plan: Plan, parts: int, rows: Bytes, begins: Ints, newest: Ints, alive: Mask, t_us: int
    ) -> dict[str, Ints | Floats] | None:
        """Values as of t, NaN for null; rows that are not alive read as never seen. None where a row is damaged. Shapes (rows,)."""
        asked, uses = self.asked, self.uses
        counts, buckets, words_at = _read_counts(
            plan.count_cells, plan.rings, len(plan.word_cells), self.first_use, uses, asked, self.buckets,
            parts, rows, begins, newest, alive, t_us,
        )  # fmt: skip
        sums = np.zeros((len(newest), len(asked), 3))
        if len(plan.word_cells):
            for row, one in enumerate(self.aggregates):
                if one.function in (sp.MIN, sp.MAX):
                    sums[:, row, 0] = np.nan
            _read_words(plan, self.first_use, uses, asked, parts, rows, begins, newest, t_us, sums, words_at)
        if BROKEN in words_at.tolist():
            return None
        return {one.name: self._value(row, counts, sums, buckets) for row, one in enumerate(self.aggregates)}

    def _value(self, row: int, counts: Ints, sums: Floats, buckets: Ints) -> Ints | Floats:
        """(rows,) from counts (features, rows), sums (rows, features, 3) and buckets (rows, buckets of all features)."""
        one = self.aggregates[row]
        if one.function == sp.COUNT:
            return np.asarray(counts[row])
        # 0 / 0 is null; a row that is damaged and has a true check may have words of any size.
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            if one.function == sp.MEAN:
                return np.asarray(sums[:, row, 0] / counts[row])
            if one.function == sp.STD:
                return np.asarray(np.sqrt(sums[:, row, 2] / sums[:, row, 0]))
            if one.function == sp.ZSCORE:
                own = buckets[:, self.asked[row, BUCKET_AT] :]
                newest, before = own[:, 0], own[:, 1 : (one.window_us or 0) // (one.span_us or 1)]
                deviation = before.std(axis=1)
                return np.asarray(np.where(deviation > 0, (newest - before.mean(axis=1)) / deviation, np.nan))
        return sums[:, row, 0].copy()


def ask(aggregates: Sequence[AggregateSpec], counters_of: Sequence[Sequence[int]], counters: int) -> Question:
    """A question about features, of which each is computed from some of a layout's `counters`."""
    asked, buckets = np.zeros((len(aggregates), 6), np.int64), 0
    for row, one in enumerate(aggregates):
        asked[row, HOP_US], asked[row, WINDOW_US] = one.hop_us or ENDLESS, one.window_us or ENDLESS
        if one.function == sp.ZSCORE and one.window_us and one.hop_us and one.span_us:
            asked[row, SHORT], asked[row, BUCKET_AT] = one.span_us // one.hop_us, buckets
            buckets += one.window_us // one.span_us
    pairs = sorted((k, row) for row, some in enumerate(counters_of) for k in some)
    read, uses = np.array(pairs, np.int64).reshape(-1, 2).T
    first_use = np.searchsorted(read, np.arange(counters + 1))
    return Question(tuple(aggregates), asked, first_use, uses.copy(), buckets)


@kernel
def _read_counts(
    cells: Ints,
    rings: Ints,
    words: int,
    first_use: Ints,
    uses: Ints,
    asked: Ints,
    buckets_each: int,
    parts: int,
    rows: Bytes,
    begins: Ints,
    newest: Ints,
    alive: Mask,
    t_us: int,
) -> tuple[Ints, Ints, Ints]:
    """Add each count of a row to the features whose window it lies in: counts (features, rows) and buckets (rows, buckets).

    And where each row's words begin, 0 for rows that are not alive, BROKEN for damaged ones.
    """
    asked = _asked_at(asked, t_us)
    counts = np.zeros((len(asked), len(newest)), np.int64)
    buckets = np.zeros((len(newest), buckets_each), np.int64)
    heads = np.empty((len(rings), 3), np.int64)
    groups = np.empty((len(cells) + 7) // 8, np.int64)
    after = np.zeros(len(newest), np.int64)
    for row in range(len(newest)):
        if not alive[row]:
            continue
        _find_heads(rings, newest[row], heads)
        end = part_start(rows, begins[row], begins[row + 1], parts, 0)
        marked, at = _marked_groups(rows, tiles_start(begins[row], parts), end, len(cells), groups)
        for group in groups[:marked]:
            held, at = tl.held_cells(rows, group, len(cells), at, end)
            for one in range(_ONES_IN[held]):
                if not 0 <= at < end or rows[np.uintp(at)] > 127:
                    count, at = get_varint(rows, at, end)
                else:  # nearly always: a call takes longer
                    count, at = np.int64(rows[np.uintp(at)]), at + 1
                cell = np.uintp(8 * group + _ONES[held, one])
                tile = _tile(cells, cell, heads)
                k = np.uintp(cells[cell, COUNTER])
                for use in range(first_use[k], first_use[k + np.uintp(1)]):
                    a = np.uintp(uses[use])
                    if asked[a, SHORT] == 0:
                        counts[a, row] += count if tile >= asked[a, WINDOW_START] else 0
                    elif asked[a, WINDOW_START] <= tile < asked[a, WINDOW_END]:
                        bucket = (asked[a, WINDOW_END] - 1 - tile) // asked[a, SHORT]
                        buckets[row, asked[a, BUCKET_AT] + bucket] += count
        after[row] = at if words > 0 or at == end else BROKEN
    return counts, buckets, after


@kernel
def _asked_at(asked: Ints, t_us: int) -> Ints:
    """`asked` with the tiles of t."""
    asked = asked.copy()
    for a in range(len(asked)):
        start_us = t_us - asked[a, WINDOW_US] if asked[a, WINDOW_US] != ENDLESS else -ENDLESS
        asked[a, WINDOW_START] = start_us // asked[a, HOP_US]
        asked[a, WINDOW_END] = t_us // asked[a, HOP_US]
    return asked


@kernel
def _read_words(
    plan: Plan,
    first_use: Ints,
    uses: Ints,
    asked: Ints,
    parts: int,
    rows: Bytes,
    begins: Ints,
    newest: Ints,
    t_us: int,
    sums: Floats,
    words_at: Ints,
) -> None:
    """Merge each cell of words of a row into the features whose window it lies in. `words_at` becomes BROKEN for damaged rows."""
    asked = _asked_at(asked, t_us)
    cells, rings, counters = plan.word_cells, plan.rings, plan.counters
    heads = np.empty((len(rings), 3), np.int64)
    groups = np.empty((len(cells) + 7) // 8, np.int64)
    bits = np.zeros(3, np.int64)
    words = bits.view(np.float64)
    for row in range(len(newest)):
        if words_at[row] <= 0:
            continue
        _find_heads(rings, newest[row], heads)
        end = part_start(rows, begins[row], begins[row + 1], parts, 0)
        marked, at = _marked_groups(rows, words_at[row], end, len(cells), groups)
        for group in groups[:marked]:
            held, at = tl.held_cells(rows, group, len(cells), at, end)
            for one in range(_ONES_IN[held]):
                cell = np.uintp(8 * group + _ONES[held, one])
                for j in range(cells[cell, WIDTH]):
                    bits[j], at = get_word(rows, at, end)
                tile = _tile(cells, cell, heads)
                k = np.uintp(cells[cell, COUNTER])
                for use in range(first_use[k], first_use[k + np.uintp(1)]):
                    a = np.uintp(uses[use])
                    if tile < asked[a, WINDOW_START]:
                        continue
                    if counters[k, KIND] == tl.SUM:  # mostly: a call takes longer
                        sums[row, a, 0] += words[0]
                    else:
                        _merge(counters[k, KIND], counters[k, SPAN], words, bits, t_us, sums[row, a])
        if at != end:
            words_at[row] = BROKEN


@kernel
def _marked_groups(rows: Bytes, index: Int, end: Int, cells: int, groups: Ints) -> tuple[Int, Int]:
    """Groups of cells that hold anything, into `groups`: how many, and the place after the bits that say so."""
    at = index + tl.index_size(cells)
    if at > end:
        return 0, BROKEN
    marked = 0
    for place in range(index, at):
        for one in range(_ONES_IN[rows[place]]):
            group = 8 * (place - index) + _ONES[rows[place], one]
            if 8 * group >= cells:
                return marked, BROKEN
            groups[marked] = group
            marked += 1
    return marked, at


@kernel
def _find_heads(rings: Ints, newest: Int, heads: Ints) -> None:
    for r in range(len(rings)):
        tile = newest // rings[r, HOP]
        heads[r, HEAD] = tile % rings[r, LENGTH]
        heads[r, BEFORE] = tile - heads[r, HEAD]
        heads[r, BEHIND] = heads[r, BEFORE] - rings[r, LENGTH]


@kernel
def _tile(cells: Ints, cell: np.uintp, heads: Ints) -> Int:
    """The number of a cell's tile."""
    ring, place = np.uintp(cells[cell, RING_OF]), cells[cell, PLACE]
    return np.int64(place + (heads[ring, BEFORE] if place <= heads[ring, HEAD] else heads[ring, BEHIND]))


@kernel
def _merge(kind: Int, half_life: Int, words: Floats, bits: Ints, t_us: Int, sums: Floats) -> None:
    """Merge a cell that is no plain sum into a feature's sums; deviations as Chan, Golub and LeVeque (1979) do."""
    if kind == tl.MIN:
        sums[0] = np.fmin(sums[0], words[0])
    elif kind == tl.MAX:
        sums[0] = np.fmax(sums[0], words[0])
    elif kind == tl.DECAYED:
        sums[0] += words[0] * decay(t_us - bits[1], half_life)
    else:
        events = sums[0] + words[0]
        share = words[0] / events if events > 0 else 0.0
        apart = words[1] - sums[1]
        sums[2] += words[2] + apart * apart * sums[0] * share
        sums[1] += apart * share
        sums[0] = events
