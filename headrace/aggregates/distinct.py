"""Distinct values of one entity in any window: exactly up to a bound, beyond it Wegman's adaptive sampling.

A value has the *level* p if its hash begins with p zero bits, and then every lower level too. The answer for a window is the number of
its values at the first level that has no more than BOUND of them, times 2**p. So of each value its newest time is kept, and of the
values only those among the BOUND + 1 newest of some level: what a window holds more of is known to be too many, whichever they are
(P. B. Gibbons, S. Tirthapura, "Distributed streams algorithms for sliding windows", SPAA 2002).

In a chunk, a value is two words, its newest time and its hash, sorted by both. In a row, newest first: how long before the next (before
the entity's newest event) as a varint, and the hash.
"""

from typing import Final

import numpy as np
import numpy.typing as npt

from headrace.aggregates.chunks import COUNT, ROOM, SIZE, START, Arena, Line, reserve, shift
from headrace.aggregates.rows import part_start
from headrace.aggregates.spec import DISTINCT_BOUND
from headrace.aggregates.wire import BROKEN, MAX_VARINT, copy_bytes, get_varint, get_word, put_varint, put_word, word_at
from headrace.arrays import Bytes, Int, Ints, Mask
from headrace.kernel import kernel

VALUE: Final = 16
"""Bytes of a value in a chunk."""
MAX_PACKED: Final = MAX_VARINT + 8
_HASH: Final = 8
_LEVELS: Final = 65


@kernel
def fold_distinct(
    slots: Ints,
    times: Ints,
    chosen: Mask,
    hashes: npt.NDArray[np.uint64],
    data: Bytes,
    arena: Arena,
    lines: Ints,
    part: int,
) -> Bytes:
    """Add the values of the chosen events. Returns the data."""
    for i in range(len(slots)):
        if chosen[i]:
            line = lines[slots[i], part]
            if line[SIZE] + VALUE > line[ROOM] and line[COUNT] > 2 * DISTINCT_BOUND:
                prune(data, line, -(2**62))
            data = reserve(data, arena, line, line[SIZE] + VALUE)
            _add(data, line, times[i], np.int64(hashes[i]))
    return data


@kernel
def _add(data: Bytes, line: Line, time: Int, value: Int) -> None:
    """Put a value at its place in time, whence all newer ones move up; an older time of the same value is taken out."""
    start, end = line[START], line[START] + line[SIZE]
    gap = end  # where the places that move up end: the value's older entry, or the end of all
    for at in range(start, end, VALUE):
        if word_at(data, at + _HASH) == value:
            gap = at
    if gap < end and word_at(data, gap) >= time:
        return
    if gap < end:
        shift(data, gap + VALUE, end, -VALUE)
    else:
        line[SIZE] += VALUE
        line[COUNT] += 1
        end += VALUE
    place = end - VALUE
    while place > start and _is_after(data, place - VALUE, time, value):
        place -= VALUE
    shift(data, place, end - VALUE, VALUE)
    put_word(data, place, time)
    put_word(data, place + _HASH, value)


@kernel
def _is_after(data: Bytes, at: Int, time: Int, value: Int) -> bool:
    other = word_at(data, at)
    return bool(other > time or (other == time and np.uint64(word_at(data, at + _HASH)) > np.uint64(value)))


@kernel
def prune(data: Bytes, line: Line, oldest: Int) -> None:
    """Drop what no window can need: values last seen before `oldest`, and those not among the newest of any level."""
    start, end = line[START], line[START] + line[SIZE]
    if line[COUNT] == 0 or (line[COUNT] <= DISTINCT_BOUND and word_at(data, start) >= oldest):
        return
    newer = np.zeros(_LEVELS, np.int64)  # values of each level that are newer than the one looked at
    kept = end
    for at in range(end - VALUE, start - VALUE, -VALUE):
        if word_at(data, at) < oldest:
            break
        level = _level(word_at(data, at + _HASH))
        if newer[level] <= DISTINCT_BOUND:
            for lower in range(level + 1):
                newer[lower] += 1
            kept -= VALUE
            copy_bytes(data, kept, data, at, at + VALUE)
    if kept > start:
        shift(data, kept, end, start - kept)
        line[SIZE] = end - kept
        line[COUNT] = line[SIZE] // VALUE


@kernel
def _level(value: Int) -> Int:
    """How many zero bits a hash begins with."""
    rest, level = np.uint64(value), 0
    while level < 64 and rest < np.uint64(1 << 63):
        rest <<= np.uint64(1)
        level += 1
    return level


@kernel
def pack_distinct(out: Bytes, at: Int, data: Bytes, line: Line, newest: Int) -> Int:
    """Write the values of a chunk into a row; returns the place after them."""
    at = put_varint(out, at, line[COUNT])
    next_time = newest
    for i in range(line[COUNT] - 1, -1, -1):
        place = line[START] + i * VALUE
        time = word_at(data, place)
        at = put_varint(out, at, next_time - time)
        at = copy_bytes(out, at, data, place + _HASH, place + VALUE)
        next_time = time
    return at


@kernel
def unpack_distinct(
    row: Bytes, at: Int, end: Int, newest: Int, data: Bytes, arena: Arena, line: Line
) -> tuple[Bytes, Int]:
    """Read the values of a row into a chunk; returns the data and the place after them."""
    count, at = get_varint(row, at, end)
    if not 0 <= count <= end - at:
        return data, BROKEN
    data = reserve(data, arena, line, count * VALUE)
    line[COUNT], line[SIZE] = count, count * VALUE
    time = newest
    for i in range(count - 1, -1, -1):
        before, at = get_varint(row, at, end)
        value, at = get_word(row, at, end)
        time -= before
        put_word(data, line[START] + i * VALUE, time)
        put_word(data, line[START] + i * VALUE + _HASH, value)
    return data, at


@kernel
def distinct_since(
    rows: Bytes, begins: Ints, newest: Ints, alive: Mask, parts: int, part: int, since: int
) -> tuple[Ints, Int]:
    """How many values of each row's part were seen at or after a time, an estimate beyond the bound; 0 for rows not alive.

    And the first row that is damaged, or BROKEN. Shape (rows,).
    """
    answers = np.zeros(len(newest), np.int64)
    found = np.empty(_LEVELS, np.int64)
    for row in range(len(newest)):
        if not alive[row]:
            continue
        begin, stop = begins[row], begins[row + 1]
        end = part_start(rows, begin, stop, parts, part + 1)
        count, at = get_varint(rows, part_start(rows, begin, stop, parts, part), end)
        for level in range(_LEVELS):
            found[level] = 0
        time = newest[row]
        for _ in range(count):
            before, at = get_varint(rows, at, end)
            value, at = get_word(rows, at, end)
            time -= before
            if at == BROKEN or time < since:
                break
            for level in range(_level(value) + 1):
                found[level] += 1
        if at == BROKEN:
            return answers, row
        level = 0
        while found[level] > DISTINCT_BOUND:
            level += 1
        answers[row] = found[level] << level
    return answers, BROKEN
