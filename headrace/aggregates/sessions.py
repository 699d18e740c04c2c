"""Sessions of one entity: disjoint intervals of event time, more than a gap apart, oldest first.

In a chunk, an interval is three words: first, last, events. In a row, newest interval first, it is three varints: how long before the
next interval's first (before the entity's newest event) it ended, how long it lasted, events.
"""

from typing import Final

import numpy as np

from headrace.aggregates.chunks import COUNT, SIZE, START, Arena, Line, reserve, shift
from headrace.aggregates.rows import part_start
from headrace.aggregates.wire import BROKEN, MAX_VARINT, get_varint, put_varint, put_word, word_at
from headrace.arrays import Bytes, Int, Ints, Mask
from headrace.kernel import kernel

INTERVAL: Final = 24
"""Bytes of an interval in a chunk."""
MAX_PACKED: Final = 3 * MAX_VARINT
_LAST, _EVENTS = 8, 16


@kernel
def fold_sessions(
    slots: Ints,
    times: Ints,
    chosen: Mask,
    gap: int,
    data: Bytes,
    arena: Arena,
    lines: Ints,
    part: int,
) -> Bytes:
    """Add the chosen events; sessions that are no more than `gap` apart become one. Returns the data."""
    for i in range(len(slots)):
        if chosen[i]:
            line = lines[slots[i], part]
            data = reserve(data, arena, line, line[SIZE] + INTERVAL)
            _add(data, line, times[i], gap)
    return data


@kernel
def _add(data: Bytes, line: Line, time: Int, gap: Int) -> None:
    start, end = line[START], line[START] + line[SIZE]
    after = end  # the first interval that lies wholly behind the event's reach
    while after > start and word_at(data, after - INTERVAL) > time + gap:
        after -= INTERVAL
    first, last, events, at = time, time, np.int64(1), after
    while at > start and word_at(data, at - INTERVAL + _LAST) >= time - gap:
        at -= INTERVAL
        first = min(first, word_at(data, at))
        last = max(last, word_at(data, at + _LAST))
        events += word_at(data, at + _EVENTS)
    moved = at + INTERVAL - after
    if moved != 0 and after < end:
        shift(data, after, end, moved)
    put_word(data, at, first)
    put_word(data, at + _LAST, last)
    put_word(data, at + _EVENTS, events)
    line[SIZE] += moved
    line[COUNT] = line[SIZE] // INTERVAL


@kernel
def drop_old(data: Bytes, line: Line, keep: Int) -> None:
    """Drop sessions that ended more than `keep` before the newest did."""
    if line[COUNT] == 0:
        return
    start, end = line[START], line[START] + line[SIZE]
    oldest, at = word_at(data, end - INTERVAL + _LAST) - keep, start
    while word_at(data, at + _LAST) < oldest:
        at += INTERVAL
    if at > start:
        shift(data, at, end, start - at)
        line[SIZE] -= at - start
        line[COUNT] = line[SIZE] // INTERVAL


@kernel
def pack_sessions(out: Bytes, at: Int, data: Bytes, line: Line, newest: Int) -> Int:
    """Write the intervals of a chunk into a row; returns the place after them."""
    at = put_varint(out, at, line[COUNT])
    begin = newest
    for i in range(line[COUNT] - 1, -1, -1):
        place = line[START] + i * INTERVAL
        last = word_at(data, place + _LAST)
        at = put_varint(out, at, begin - last)
        begin = word_at(data, place)
        at = put_varint(out, at, last - begin)
        at = put_varint(out, at, word_at(data, place + _EVENTS))
    return at


@kernel
def unpack_sessions(
    row: Bytes, at: Int, end: Int, newest: Int, data: Bytes, arena: Arena, line: Line
) -> tuple[Bytes, Int]:
    """Read the intervals of a row into a chunk; returns the data and the place after them."""
    count, at = get_varint(row, at, end)
    if not 0 <= count <= end - at:
        return data, BROKEN
    data = reserve(data, arena, line, count * INTERVAL)
    line[COUNT], line[SIZE] = count, count * INTERVAL
    begin = newest
    for i in range(count - 1, -1, -1):
        first, last, events, at = _interval(row, at, end, begin)
        begin = first
        place = line[START] + i * INTERVAL
        put_word(data, place, first)
        put_word(data, place + _LAST, last)
        put_word(data, place + _EVENTS, events)
    return data, at


@kernel
def _interval(row: Bytes, at: Int, end: Int, begin: Int) -> tuple[Int, Int, Int, Int]:
    before, at = get_varint(row, at, end)
    lasted, at = get_varint(row, at, end)
    events, at = get_varint(row, at, end)
    return begin - before - lasted, begin - before, events, at


@kernel
def current_sessions(
    rows: Bytes, begins: Ints, newest: Ints, alive: Mask, parts: int, part: int, gap: int, t_us: int
) -> tuple[Ints, Ints, Int]:
    """Events and length in microseconds of each row's session that is open at t, 0 where there is none.

    And the first row that is damaged, or BROKEN. Shapes (rows,).
    """
    events, lengths = np.zeros(len(newest), np.int64), np.zeros(len(newest), np.int64)
    for row in range(len(newest)):
        if not alive[row]:
            continue
        begin, stop = begins[row], begins[row + 1]
        end = part_start(rows, begin, stop, parts, part + 1)
        count, at = get_varint(rows, part_start(rows, begin, stop, parts, part), end)
        if count > 0:
            first, last, held, at = _interval(rows, at, end, newest[row])
            if t_us - last <= gap:
                events[row], lengths[row] = held, last - first
        if at == BROKEN:
            return events, lengths, row
    return events, lengths, BROKEN
