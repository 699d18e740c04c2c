"""State in memory to rows and back (headrace.aggregates.rows says what a row is)."""

import numpy as np

from headrace.aggregates.chunks import COUNT, SIZE, Arena, Line
from headrace.aggregates.distinct import MAX_PACKED as MAX_PACKED_VALUE
from headrace.aggregates.distinct import pack_distinct, prune, unpack_distinct
from headrace.aggregates.recent import HEAD, MAX_HEADER, pack_list, unpack_list
from headrace.aggregates.rows import CHECK, NEVER, NEWEST, STARTS, check_of, part_start, put_half
from headrace.aggregates.sessions import MAX_PACKED as MAX_PACKED_INTERVAL
from headrace.aggregates.sessions import drop_old, pack_sessions, unpack_sessions
from headrace.aggregates.tiles import Plan, Tiles, clear_tiles, pack_tiles, unpack_tiles
from headrace.aggregates.wire import BROKEN, MAX_VARINT, put_word, word_at
from headrace.arrays import Bytes, Int, Ints
from headrace.kernel import kernel

LIST, SESSIONS, DISTINCT = range(3)
"""Kinds of parts."""
PART_KIND, KEEP = range(2)
"""Columns of `parts`: the kind, and how long before the newest event sessions and distinct values are needed."""


@kernel
def pack_rows(
    plan: Plan, tiles: Tiles, parts: Ints, lines: Ints, data: Bytes, fingerprint: np.uint64, slots: Ints, out: Bytes
) -> Ints:
    """Write rows one behind the other; returns where each begins, and the end. `out` has `max_sizes` bytes. Shape (slots + 1,)."""
    begins = np.zeros(len(slots) + 1, np.int64)
    for i in range(len(slots)):
        slot, begin = slots[i], begins[i]
        newest = tiles.times[slot, 0]
        put_word(out, begin, np.int64(fingerprint))
        put_word(out, begin + NEWEST, newest)
        at = pack_tiles(plan, tiles, slot, out, begin + STARTS + 4 * len(parts))
        for p in range(len(parts)):
            line = lines[slot, p]
            put_half(out, begin + STARTS + 4 * p, at - begin)
            if parts[p, PART_KIND] == LIST:
                at = pack_list(out, at, data, line)
            elif parts[p, PART_KIND] == SESSIONS:
                drop_old(data, line, parts[p, KEEP])
                at = pack_sessions(out, at, data, line, newest)
            else:
                prune(data, line, newest - parts[p, KEEP])
                at = pack_distinct(out, at, data, line, newest)
        put_half(out, begin + CHECK, check_of(out, begin, at))
        begins[i + 1] = at
    return begins


@kernel
def max_sizes(plan: Plan, parts: Ints, lines: Ints, slots: Ints) -> Ints:
    """A bound on the size of each slot's row. Shape (slots,)."""
    fixed = STARTS + 4 + 6 * len(plan.count_cells) + 9 * len(plan.blank) + len(plan.word_cells)
    sizes = np.empty(len(slots), np.int64)
    for i in range(len(slots)):
        sizes[i] = fixed
        for p in range(len(parts)):
            line = lines[slots[i], p]
            sizes[i] += 4 + MAX_VARINT
            if parts[p, PART_KIND] == LIST:
                sizes[i] += MAX_HEADER + line[SIZE] - line[HEAD]
            else:
                sizes[i] += line[COUNT] * max(MAX_PACKED_INTERVAL, MAX_PACKED_VALUE)
    return sizes


@kernel
def unpack_rows(
    plan: Plan,
    tiles: Tiles,
    parts: Ints,
    lines: Ints,
    data: Bytes,
    arena: Arena,
    slots: Ints,
    rows: Bytes,
    begins: Ints,
) -> tuple[Bytes, Int]:
    """Read sound rows into slots, one of no bytes as never seen. Returns the data, and the first row that is damaged or BROKEN."""
    for i in range(len(slots)):
        begin, end = begins[i], begins[i + 1]
        line_of = lines[slots[i]]
        for p in range(len(parts)):
            _empty(line_of[p])
        if begin == end:
            clear_tiles(plan, tiles, slots[i], NEVER)
            continue
        newest = word_at(rows, begin + NEWEST)
        stop = part_start(rows, begin, end, len(parts), 0)
        at = unpack_tiles(plan, tiles, slots[i], newest, rows, begin + STARTS + 4 * len(parts), stop)
        if at != stop:
            return data, i
        for p in range(len(parts)):
            stop = part_start(rows, begin, end, len(parts), p + 1)
            line = line_of[p]
            if parts[p, PART_KIND] == LIST:
                data, at = unpack_list(rows, at, stop, data, arena, line)
            elif parts[p, PART_KIND] == SESSIONS:
                data, at = unpack_sessions(rows, at, stop, newest, data, arena, line)
            else:
                data, at = unpack_distinct(rows, at, stop, newest, data, arena, line)
            if at != stop:
                return data, i
    return data, BROKEN


@kernel
def _empty(line: Line) -> None:
    line[COUNT] = line[SIZE] = line[HEAD] = 0
