"""The last n events of one entity, oldest first, in the order (timestamp, event_id).

A chunk holds the same bytes as a row, which are changed in place:

    entry = varint time since the entry before (since `base` for the first) | varint length | payload
    payload = event_id | the columns that features read (headrace.aggregates.payloads)
    packed list = varint entries | varint base | varint length | entries

An event in order is appended and the oldest entry leaves by moving the head; the bytes before the head go when room is needed.
"""

from typing import Final

from headrace.aggregates.chunks import COUNT, ROOM, SIZE, START, Arena, Line, reserve, shift
from headrace.aggregates.wire import (
    BROKEN,
    MAX_VARINT,
    copy_bytes,
    get_varint,
    identifier_end,
    precedes,
    put_varint,
    varint_size,
)
from headrace.arrays import Bytes, Int, Ints, Mask
from headrace.kernel import kernel

HEAD: Final = 4
"""Where the first entry begins, from the chunk's start."""
BASE: Final = 5
NEWEST: Final = 6
"""Time of the last entry."""
LAST: Final = 7
"""Where the last entry begins, from the chunk's start."""
MAX_HEADER: Final = 3 * MAX_VARINT
"""Most bytes that a packed list has before its entries."""
_MAX_GROWTH: Final = 3 * MAX_VARINT
"""Most bytes that an event adds besides its payload."""


@kernel
def fold_list(
    slots: Ints,
    times: Ints,
    chosen: Mask,
    payload: Bytes,
    begins: Ints,
    ends: Ints,
    limit: int,
    data: Bytes,
    arena: Arena,
    lines: Ints,
    part: int,
) -> Bytes:
    """Add the chosen events, whose payloads are payload[begins[i]:ends[i]]. Returns the data."""
    for i in range(len(slots)):
        if chosen[i]:
            data = _add(data, arena, lines[slots[i], part], times[i], payload, begins[i], ends[i], limit)
    return data


@kernel
def _add(data: Bytes, arena: Arena, line: Line, time: Int, payload: Bytes, begin: Int, end: Int, limit: Int) -> Bytes:
    data = _make_room(data, arena, line, end - begin + _MAX_GROWTH)
    if line[COUNT] == 0:
        line[BASE] = line[NEWEST] = time
    if time < line[NEWEST] or (
        time == line[NEWEST] and line[COUNT] > 0 and _is_before_last(data, line, payload, begin)
    ):
        return _insert(data, line, time, payload, begin, end, limit)
    line[LAST] = line[SIZE]
    at = _put_entry(data, line[START] + line[SIZE], time - line[NEWEST], payload, begin, end)
    line[SIZE] = at - line[START]
    line[NEWEST] = time
    line[COUNT] += 1
    if line[COUNT] > limit:
        _drop_first(data, line)
    return data


@kernel
def _make_room(data: Bytes, arena: Arena, line: Line, need: Int) -> Bytes:
    """So that `need` more bytes fit; what lies before the head is given up first."""
    if line[SIZE] + need <= line[ROOM]:
        return data
    head = line[HEAD]
    if head > 0:
        shift(data, line[START] + head, line[START] + line[SIZE], -head)
        line[HEAD] = 0
        line[SIZE] -= head
        line[LAST] -= head
    spare = line[SIZE] // 8  # so that the next moves are far between
    return reserve(data, arena, line, line[SIZE] + need + spare)


@kernel
def _put_entry(data: Bytes, at: Int, since: Int, payload: Bytes, begin: Int, end: Int) -> Int:
    at = put_varint(data, at, since)
    at = put_varint(data, at, end - begin)
    return copy_bytes(data, at, payload, begin, end)


@kernel
def get_entry(data: Bytes, at: Int, end: Int) -> tuple[Int, Int, Int]:
    """Time since the entry before, where the payload begins, where the entry ends."""
    since, at = get_varint(data, at, end)
    length, at = get_varint(data, at, end)
    if at == BROKEN or not 0 <= length <= end - at:
        return 0, 0, BROKEN
    return since, at, at + length


@kernel
def _is_before_last(data: Bytes, line: Line, payload: Bytes, begin: Int) -> bool:
    end = line[START] + line[SIZE]
    _, last, _ = get_entry(data, line[START] + line[LAST], end)
    return precedes(payload, begin, data, last)


@kernel
def _drop_first(data: Bytes, line: Line) -> None:
    since, _, after = get_entry(data, line[START] + line[HEAD], line[START] + line[SIZE])
    line[BASE] += since
    line[HEAD] = after - line[START]
    line[COUNT] -= 1


@kernel
def _insert(data: Bytes, line: Line, time: Int, payload: Bytes, begin: Int, end: Int, limit: Int) -> Bytes:
    """Put an event before the first entry that follows it, whose time is then since the new one."""
    at, size = line[START] + line[HEAD], line[START] + line[SIZE]
    previous, first = line[BASE], True
    since, place, after = get_entry(data, at, size)
    while previous + since < time or (previous + since == time and not precedes(payload, begin, data, place)):
        previous += since
        at, first = after, False
        since, place, after = get_entry(data, at, size)
    if first and line[COUNT] == limit:
        return data
    if first and time < previous:
        since += previous - time
        previous = line[BASE] = time
    _, unchanged = get_varint(data, at, size)  # the next entry, behind its time
    next_since = previous + since - time
    length = varint_size(time - previous) + varint_size(end - begin) + end - begin
    grown = length + varint_size(next_since) - (unchanged - at)
    shift(data, unchanged, size, grown)
    middle = _put_entry(data, at, time - previous, payload, begin, end)
    put_varint(data, middle, next_since)
    is_last = at == line[START] + line[LAST]
    line[LAST] += length if is_last else grown
    line[SIZE] += grown
    line[COUNT] += 1
    if line[COUNT] > limit:
        _drop_first(data, line)
    return data


@kernel
def pack_list(out: Bytes, at: Int, data: Bytes, line: Line) -> Int:
    """Write a chunk's entries into a row; returns the place after them."""
    at = put_varint(out, at, line[COUNT])
    if line[COUNT] == 0:
        return at
    at = put_varint(out, at, line[BASE])
    at = put_varint(out, at, line[SIZE] - line[HEAD])
    return copy_bytes(out, at, data, line[START] + line[HEAD], line[START] + line[SIZE])


@kernel
def unpack_list(row: Bytes, at: Int, end: Int, data: Bytes, arena: Arena, line: Line) -> tuple[Bytes, Int]:
    """Read the entries of a row into a chunk; returns the data and the place after them."""
    count, base, at, after = list_bounds(row, at, end)
    if at == BROKEN:
        return data, BROKEN
    data = reserve(data, arena, line, after - at)
    copy_bytes(data, line[START], row, at, after)
    line[COUNT], line[BASE], line[NEWEST], line[HEAD], line[LAST] = count, base, base, 0, 0
    line[SIZE] = after - at
    place = line[START]
    size = place + line[SIZE]
    for _ in range(count):
        line[LAST] = place - line[START]
        since, payload, place = get_entry(data, place, size)
        if place == BROKEN or identifier_end(data, payload, place) == BROKEN:
            return data, BROKEN
        line[NEWEST] += since
    return data, after if place == size else BROKEN


@kernel
def list_bounds(row: Bytes, at: Int, end: Int) -> tuple[Int, Int, Int, Int]:
    """Entries, base, where the first begins and the last ends."""
    count, at = get_varint(row, at, end)
    if count == 0:
        return 0, 0, at, at
    base, at = get_varint(row, at, end)
    length, at = get_varint(row, at, end)
    if at == BROKEN or not (0 < count <= length <= end - at):
        return 0, 0, BROKEN, BROKEN
    return count, base, at, at + length
