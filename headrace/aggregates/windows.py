"""The as-of read of tiles: packed rows and a time turned into the values of windows, all features in one pass over the bytes."""

from typing import Final

import numpy as np

from headrace.aggregates import spec as sp
from headrace.aggregates import tiles as tl
from headrace.aggregates.arrays import Bytes, Floats, Int, Ints, Mask
from headrace.aggregates.rows import part_start, tiles_start
from headrace.aggregates.tiles import COUNTER, KIND, PLACE, RING_OF, SPAN, WIDTH, Plan, decay
from headrace.aggregates.wire import BROKEN, get_varint, get_word
from headrace.kernel import kernel

MEAN, ZSCORE = 6, 7
FUNCTION_OF: Final = {
    sp.COUNT: tl.COUNT, sp.SUM: tl.SUM, sp.MIN: tl.MIN, sp.MAX: tl.MAX, sp.STD: tl.STD, sp.DECAYED_SUM: tl.DECAYED,
    sp.MEAN: MEAN, sp.ZSCORE: ZSCORE,
}  # fmt: skip

FUNCTION, WINDOW_START, WINDOW_END, SHORT, BUCKET_AT = range(5)
"""Columns of `asked`, a row for each feature. For ZSCORE: the tile where the window ends, the tiles of a bucket, its first bucket."""


@kernel
def window_values(
    plan: Plan,
    first_use: Ints,
    uses: Ints,
    asked: Ints,
    buckets: int,
    parts: int,
    rows: Bytes,
    begins: Ints,
    newest: Ints,
    alive: Mask,
    t_us: int,
) -> tuple[Ints, Floats, Int]:
    """Values of the features asked for as of t: integers (features, rows), floats (features, rows) with NaN for null.

    Counter k is read by the features uses[first_use[k]:first_use[k + 1]]; `buckets` is the number of all zscore buckets. Rows that are not
    alive read as never seen. Last comes the first row that is damaged, or BROKEN.
    """
    ints = np.zeros((len(asked), len(newest)), np.int64)
    floats = np.zeros((len(asked), len(newest)), np.float64)
    heads = np.empty((len(plan.rings), 2), np.int64)  # number and place of the newest tile
    sums = np.empty((len(asked), 3), np.float64)
    counts = np.empty(len(asked), np.int64)
    in_bucket = np.empty(buckets, np.int64)
    for row in range(len(newest)):
        for bucket in range(buckets):
            in_bucket[bucket] = 0
        for a in range(len(asked)):
            counts[a] = 0
            for i in range(3):
                sums[a, i] = np.nan if asked[a, FUNCTION] == tl.MIN or asked[a, FUNCTION] == tl.MAX else 0.0
        if alive[row]:
            for r in range(len(heads)):
                heads[r, 0] = newest[row] // plan.rings[r, tl.HOP]
                heads[r, 1] = heads[r, 0] % plan.rings[r, tl.LENGTH]
            at = tiles_start(begins[row], parts)
            end = part_start(rows, begins[row], begins[row + 1], parts, 0)
            at = _read_counts(plan, first_use, uses, asked, rows, at, end, heads, counts, in_bucket)
            at = _read_words(plan, first_use, uses, asked, rows, at, end, heads, t_us, sums)
            if at != end:
                return ints, floats, row
        for a in range(len(asked)):
            if asked[a, FUNCTION] == tl.COUNT:
                ints[a, row] = counts[a]
            else:
                floats[a, row] = _value(asked[a], sums[a], counts[a], in_bucket)
    return ints, floats, BROKEN


@kernel
def _read_counts(
    plan: Plan,
    first_use: Ints,
    uses: Ints,
    asked: Ints,
    rows: Bytes,
    at: Int,
    end: Int,
    heads: Ints,
    counts: Ints,
    in_bucket: Ints,
) -> Int:
    """Add each count of a row to the features whose window it lies in; returns the place after the counts."""
    cells = len(plan.count_cells)
    index, at = at, at + tl.index_size(cells)
    if at > end:
        return BROKEN
    for group in range((cells + 7) // 8):
        held, at = tl.held_cells(rows, index, group, cells, at, end)
        for bit in range(8):
            if not (held >> bit) & 1:
                continue
            count, at = get_varint(rows, at, end)
            cell = plan.count_cells[8 * group + bit]
            k = cell[COUNTER]
            tile = _tile(plan, cell, heads)
            for use in range(first_use[k], first_use[k + 1]):
                a = uses[use]
                if tile < asked[a, WINDOW_START]:
                    continue
                if asked[a, FUNCTION] != ZSCORE:
                    counts[a] += count
                elif tile < asked[a, WINDOW_END]:
                    ago = (asked[a, WINDOW_END] - 1 - tile) // asked[a, SHORT]
                    in_bucket[asked[a, BUCKET_AT] + ago] += count
    return at


@kernel
def _read_words(
    plan: Plan,
    first_use: Ints,
    uses: Ints,
    asked: Ints,
    rows: Bytes,
    at: Int,
    end: Int,
    heads: Ints,
    t_us: Int,
    sums: Floats,
) -> Int:
    """Add each cell of words of a row to the features whose window it lies in; returns the place after the words."""
    cells = len(plan.word_cells)
    index, at = at, at + tl.index_size(cells)
    if not 0 <= index <= at <= end:
        return BROKEN
    words = np.zeros(3, np.int64)
    for group in range((cells + 7) // 8):
        held, at = tl.held_cells(rows, index, group, cells, at, end)
        for bit in range(8):
            if not (held >> bit) & 1:
                continue
            cell = plan.word_cells[8 * group + bit]
            for j in range(cell[WIDTH]):
                words[j], at = get_word(rows, at, end)
            k = cell[COUNTER]
            tile = _tile(plan, cell, heads)
            for use in range(first_use[k], first_use[k + 1]):
                a = uses[use]
                if tile >= asked[a, WINDOW_START]:
                    _add(plan.counters[k], words.view(np.float64), words, t_us, sums[a])
    return at


@kernel
def _tile(plan: Plan, cell: Ints, heads: Ints) -> Int:
    """The number of a cell's tile, known by its distance from the newest."""
    ring = cell[RING_OF]
    back = heads[ring, 1] - cell[PLACE]
    return np.int64(heads[ring, 0] - (back if back >= 0 else back + plan.rings[ring, tl.LENGTH]))


@kernel
def _add(counter: Ints, words: Floats, bits: Ints, t_us: Int, sums: Floats) -> None:
    """Merge a cell of words into a feature's sums; deviations as Chan, Golub and LeVeque (1979) do."""
    kind = counter[KIND]
    if kind == tl.SUM:
        sums[0] += words[0]
    elif kind == tl.MIN:
        sums[0] = np.fmin(sums[0], words[0])
    elif kind == tl.MAX:
        sums[0] = np.fmax(sums[0], words[0])
    elif kind == tl.DECAYED:
        sums[0] += words[0] * decay(t_us - bits[1], counter[SPAN])
    else:
        events = sums[0] + words[0]
        share = words[0] / events if events > 0 else 0.0
        apart = words[1] - sums[1]
        sums[2] += words[2] + apart * apart * sums[0] * share
        sums[1] += apart * share
        sums[0] = events


@kernel
def _value(asked: Ints, sums: Floats, count: Int, in_bucket: Ints) -> float:
    function = asked[FUNCTION]
    if function == MEAN:
        return float(sums[0] / count) if count > 0 else np.nan
    if function == tl.STD:
        return float(np.sqrt(sums[2] / sums[0])) if sums[0] > 0 else np.nan
    if function == ZSCORE:
        count = (asked[WINDOW_END] - asked[WINDOW_START]) // asked[SHORT]
        return _zscore(in_bucket, asked[BUCKET_AT], asked[BUCKET_AT] + count)
    return float(sums[0])


@kernel
def _zscore(in_bucket: Ints, first: Int, end: Int) -> float:
    """The first bucket against mean and deviation of those after it; NaN where these are equal."""
    others, total, squares = end - first - 1, 0, 0.0
    for i in range(first + 1, end):
        total += in_bucket[i]
    mean = total / others
    for i in range(first + 1, end):
        squares += (in_bucket[i] - mean) ** 2
    return float((in_bucket[first] - mean) / np.sqrt(squares / others)) if squares > 0 else np.nan
