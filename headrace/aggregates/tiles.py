"""Tiles of all entities of a view: what happened in each hop of event time, as dense arrays, and as packed bytes.

A ring of `window / hop + 1` tiles is all that any read at or after the newest event can need: `[floor_to_hop(t - window), t)` touches
no more tiles than that. Tile k lies at place k mod length; the newest tile is that of the entity's newest event. All history is one
endless tile.

A *cell* is one counter in one tile: a 32-bit count, or some words of 64 bits (`WORDS`). Packed, counts before words, cells come in
groups of eight: a bit for each group that holds anything, then for each such group a byte that says which cells do, and these: counts as
varints, words as they are.
"""

from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from headrace.aggregates import spec as sp
from headrace.aggregates.wire import BROKEN, get_varint, get_word, put_varint, put_word
from headrace.arrays import Bytes, Floats, Int, Ints
from headrace.kernel import kernel

Counts = npt.NDArray[np.uint32]

COUNT, SUM, MIN, MAX, STD, DECAYED = range(6)
"""Kinds of counters."""
KIND_OF: Final = {
    sp.COUNT: COUNT, sp.ZSCORE: COUNT, sp.SUM: SUM, sp.MIN: MIN, sp.MAX: MAX, sp.STD: STD, sp.DECAYED_SUM: DECAYED
}  # fmt: skip
WORDS: Final = {COUNT: 0, SUM: 1, MIN: 1, MAX: 1, STD: 3, DECAYED: 2}
"""Words of a cell. STD: events, mean, sum of squared deviations. DECAYED: the sum as of a time, and that time in microseconds."""
BLANK: Final = {COUNT: (), SUM: (0.0,), MIN: (np.nan,), MAX: (np.nan,), STD: (0.0, 0.0, 0.0), DECAYED: (0.0, 0.0)}

# Columns of `Plan.rings`.
HOP, LENGTH, COUNTS, COUNT_AT, WORDS_EACH, WORD_AT = range(6)
# Columns of `Plan.counters`.
RING, KIND, TYPES, VALUE, SPAN, OFFSET = range(6)
# Columns of `Plan.count_cells` and `Plan.word_cells`; a count stands at its cell's own number.
COUNTER, RING_OF, PLACE, AT, WIDTH = range(5)


class Plan(NamedTuple):
    """Where things are, for the kernels: a row for each ring, counter and cell, with the columns named above."""

    rings: Ints
    counters: Ints
    by_type: Ints
    """(types * rings + 1,) where in `counted` the counters begin that an event of a type changes in a ring, and the end."""
    counted: Ints
    count_cells: Ints
    word_cells: Ints
    blank: Floats
    blank_bits: Ints
    """The words of an entity that was never seen, as numbers and as integers."""


class Tiles(NamedTuple):
    """Tiles of all slots."""

    times: Ints
    """(slots, 1 + rings): time of the newest event, number of each ring's newest tile."""
    counts: Counts
    """(slots, cells, and zeros up to a whole group)"""
    words: Floats
    bits: Ints
    """The words, seen as integers."""


@kernel
def fold_tiles(plan: Plan, tiles: Tiles, slots: Ints, times: Ints, codes: Ints, values: Floats) -> None:
    """Count the events. `values` (expressions, events) holds what the counters' expressions are worth, NaN for null."""
    rings, counters, by_type, counted = plan.rings, plan.counters, plan.by_type, plan.counted
    newest, counts = tiles.times, tiles.counts
    for i in range(len(slots)):
        slot, time = slots[i], times[i]
        newest[slot, 0] = max(newest[slot, 0], time)
        for r in range(len(rings)):
            tile, length = time // rings[r, HOP], rings[r, LENGTH]
            if tile > newest[slot, 1 + r]:
                _advance(rings, plan.blank, newest, counts, tiles.words, slot, r, tile)
            elif tile <= newest[slot, 1 + r] - length:
                continue
            place = tile % length
            of_type = codes[i] * len(rings) + r
            for c in range(by_type[of_type], by_type[of_type + 1]):
                k = counted[c]
                value = 1.0 if counters[k, VALUE] < 0 else values[counters[k, VALUE], i]
                if np.isnan(value):
                    continue
                if counters[k, KIND] == COUNT:
                    counts[slot, rings[r, COUNT_AT] + place * rings[r, COUNTS] + counters[k, OFFSET]] += 1
                else:
                    at = rings[r, WORD_AT] + place * rings[r, WORDS_EACH] + counters[k, OFFSET]
                    _count(tiles.words[slot], tiles.bits[slot], at, counters[k, KIND], counters[k, SPAN], value, time)


@kernel
def _count(words: Floats, bits: Ints, at: Int, kind: Int, half_life: Int, value: float, time: Int) -> None:
    if kind == SUM:
        words[at] += value
    elif kind == MIN:
        words[at] = np.fmin(words[at], value)
    elif kind == MAX:
        words[at] = np.fmax(words[at], value)
    elif kind == STD:
        events = words[at] + 1.0
        from_mean = value - words[at + 1]
        mean = words[at + 1] + from_mean / events
        words[at] = events
        words[at + 1] = mean
        words[at + 2] += from_mean * (value - mean)
    elif time >= bits[at + 1]:
        words[at] = words[at] * decay(time - bits[at + 1], half_life) + value
        bits[at + 1] = time
    else:
        words[at] += value * decay(bits[at + 1] - time, half_life)


@kernel
def decay(age: Int, half_life: Int) -> float:
    """What one becomes after some time."""
    return float(np.exp2(-(age / half_life)))


@kernel
def _advance(
    rings: Ints, blank: Floats, newest: Ints, counts: Counts, words: Floats, slot: Int, r: Int, tile: Int
) -> None:
    """Make a tile the newest of a ring, emptying those passed over: a run of places, or two where it goes round."""
    length, each, words_each = rings[r, LENGTH], rings[r, COUNTS], rings[r, WORDS_EACH]
    passed = min(tile - newest[slot, 1 + r], length)
    first = (tile - passed + 1) % length
    newest[slot, 1 + r] = tile
    for begin, end in ((first, min(first + passed, length)), (0, max(first + passed - length, 0))):
        for j in range(np.uintp(rings[r, COUNT_AT] + begin * each), np.uintp(rings[r, COUNT_AT] + end * each)):
            counts[slot, j] = 0
        for j in range(rings[r, WORD_AT] + begin * words_each, rings[r, WORD_AT] + end * words_each):
            words[slot, j] = blank[j]


@kernel
def pack_tiles(plan: Plan, tiles: Tiles, slot: Int, out: Bytes, at: Int) -> Int:
    """Write the tiles of an entity into a row; returns the place after them."""
    counts, bits = tiles.counts[slot], tiles.bits[slot]
    index, at = at, _open_index(out, at, len(plan.count_cells))
    for group in range(len(counts) // 8):
        any_of = np.uint32(0)
        for cell in range(8 * group, 8 * group + 8):
            any_of |= counts[cell]
        if any_of:
            mask, at = _open_group(out, index, group, at)
            for bit in range(8):
                if counts[8 * group + bit]:
                    out[mask] |= np.uint8(1 << bit)
                    at = put_varint(out, at, counts[8 * group + bit])
    cells = plan.word_cells
    index, at = at, _open_index(out, at, len(cells))
    last_group, mask = -1, at
    for cell in range(len(cells)):
        if _holds(bits, plan.blank_bits, cells[cell]):
            if cell >> 3 != last_group:
                last_group = cell >> 3
                mask, at = _open_group(out, index, last_group, at)
            out[mask] |= np.uint8(1 << (cell & 7))
            for j in range(cells[cell, AT], cells[cell, AT] + cells[cell, WIDTH]):
                at = put_word(out, at, bits[j])
    return at


@kernel
def index_size(cells: int) -> Int:
    """Bytes of the bits that say which groups hold anything."""
    return (cells + 63) // 64


@kernel
def _open_index(out: Bytes, at: Int, cells: int) -> Int:
    """Begin the bits that say which groups hold anything; returns the place after them."""
    end = at + index_size(cells)
    for i in range(at, end):
        out[i] = 0
    return end


@kernel
def _open_group(out: Bytes, index: Int, group: Int, at: Int) -> tuple[Int, Int]:
    """Mark a group; returns where the byte of its cells is, and the place after that."""
    out[index + (group >> 3)] |= np.uint8(1 << (group & 7))
    out[at] = 0
    return at, at + 1


@kernel
def _holds(bits: Ints, blank_bits: Ints, cell: Ints) -> bool:
    held = False
    for j in range(cell[AT], cell[AT] + cell[WIDTH]):
        held |= bits[j] != blank_bits[j]
    return held


@kernel
def is_marked(row: Bytes, index: Int, group: Int) -> bool:
    """True where a group holds anything."""
    return bool((row[index + (group >> 3)] >> (group & 7)) & 1)


@kernel
def held_cells(row: Bytes, group: Int, cells: Int, at: Int, end: Int) -> tuple[Int, Int]:
    """The byte that says which cells of a marked group are held, and the place after it."""
    if not 0 <= at < end:
        return 0, BROKEN
    held = np.int64(row[at])
    return (held, at + 1) if held >> min(8, cells - 8 * group) == 0 else (0, BROKEN)


@kernel
def unpack_tiles(plan: Plan, tiles: Tiles, slot: Int, newest: Int, row: Bytes, at: Int, end: Int) -> Int:
    """Read the tiles of a row into a slot; returns the place after them."""
    clear_tiles(plan, tiles, slot, newest)
    cells = len(plan.count_cells)
    index, at = at, at + index_size(cells)
    if at > end:
        return BROKEN
    for group in range((cells + 7) // 8):
        if not is_marked(row, index, group):
            continue
        held, at = held_cells(row, group, cells, at, end)
        for bit in range(8):
            if (held >> bit) & 1:
                count, at = get_varint(row, at, end)
                tiles.counts[slot, 8 * group + bit] = count
    cells = len(plan.word_cells)
    index, at = at, at + index_size(cells)
    if not index <= at <= end or index < 0:
        return BROKEN
    for group in range((cells + 7) // 8):
        if not is_marked(row, index, group):
            continue
        held, at = held_cells(row, group, cells, at, end)
        for bit in range(8):
            if (held >> bit) & 1:
                place = plan.word_cells[8 * group + bit, AT]
                for j in range(place, place + plan.word_cells[8 * group + bit, WIDTH]):
                    tiles.bits[slot, j], at = get_word(row, at, end)
    return at


@kernel
def clear_tiles(plan: Plan, tiles: Tiles, slot: Int, newest: Int) -> None:
    """Empty the tiles of a slot whose newest event was at some time."""
    tiles.times[slot, 0] = newest
    for r in range(len(plan.rings)):
        tiles.times[slot, 1 + r] = newest // plan.rings[r, HOP]
    for j in range(tiles.counts.shape[1]):
        tiles.counts[slot, j] = 0
    for j in range(len(plan.blank)):
        tiles.words[slot, j] = plan.blank[j]
