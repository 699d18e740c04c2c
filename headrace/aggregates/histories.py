"""The as-of read of lists: which entries of the packed rows a feature takes, and the values in their payloads."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np
import pyarrow as pa

from headrace.aggregates import payloads as pay
from headrace.aggregates.recent import get_entry, list_bounds
from headrace.aggregates.rows import StateMismatchError, damaged, part_start
from headrace.aggregates.spec import ViewSpec
from headrace.aggregates.wire import (
    BROKEN,
    copy_bytes,
    get_signed,
    get_varint,
    get_word,
    identifier_end,
    put_identifier_text,
)
from headrace.arrays import Bytes, Floats, Int, Ints, Mask
from headrace.kernel import kernel

_UUID_TEXT: Final = 36


@dataclass(frozen=True)
class Column:
    """A column of some rows' lists: row i has the values offsets[i] to offsets[i + 1]."""

    offsets: Ints
    values: Ints | Floats | pa.Array | list[str]

    def lists(self) -> list[list[object]]:
        """A Python list for each row."""
        values: list[object] = list(self.values) if isinstance(self.values, list) else self.values.tolist()
        return [values[a:b] for a, b in pairwise(self.offsets.tolist())]

    def lasts(self) -> list[object]:
        """The last value of each row, None where it has none."""
        return [values[-1] if values else None for values in self.lists()]

    def arrow(self, declared: pa.DataType) -> pa.Array:
        """The lists, or the last values where the type is no list's."""
        if pa.types.is_list(declared):
            values = self.values
            values = values if isinstance(values, pa.Array) else pa.array(values, declared.value_type)
            return pa.ListArray.from_arrays(pa.array(self.offsets, pa.int32()), values, type=declared)
        return pa.array(self.lasts(), declared)


@dataclass(frozen=True)
class Histories:
    """The entries of one list in some rows: row i has the entries firsts[i] to firsts[i + 1]."""

    spec: ViewSpec
    kinds: Ints
    rows: Bytes
    firsts: Ints
    times: Ints
    starts: Ints
    ends: Ints

    def column(self, which: int, since: Int, n: int, alive: Mask) -> Column:
        """A column of the newest n entries of each row at or after a time. Raises StateMismatchError."""
        offsets, picked = _pick(self.firsts, self.times, since, n, alive)
        kind = self.kinds[which]
        if kind == pay.TIME:
            return Column(offsets, self.times[picked])
        firsts, lasts = _fields(self.rows, self.starts[picked], self.ends[picked], self.kinds, which)
        if (lasts < 0).any():
            raise StateMismatchError(damaged(self.spec))
        if kind >= pay.STRING or kind == pay.ID:
            return Column(offsets, self._strings(*_texts(self.rows, firsts, lasts, kind)))
        numbers = _numbers(self.rows, firsts, lasts, kind)
        if kind == pay.TYPE:
            if (numbers >= len(self.spec.types)).any():
                raise StateMismatchError(damaged(self.spec))
            return Column(offsets, [self.spec.types[number] for number in numbers.tolist()])
        return Column(offsets, numbers.view(np.float64) if kind == pay.FLOAT else numbers)

    def _strings(self, text: Bytes, begins: Ints) -> pa.Array:
        offsets = pa.py_buffer(begins.astype(np.int32))
        strings = pa.StringArray.from_buffers(len(begins) - 1, offsets, pa.py_buffer(text))
        try:
            strings.validate(full=True)
        except pa.ArrowInvalid as error:
            raise StateMismatchError(damaged(self.spec)) from error
        return strings


def read_histories(
    spec: ViewSpec, kinds: Ints, rows: Bytes, begins: Ints, newest: Ints, parts: int, part: int
) -> Histories:
    """The entries of a list. Raises StateMismatchError."""
    firsts, times, starts, ends = _entries(rows, begins, newest, parts, part)
    if firsts[-1] == BROKEN:
        raise StateMismatchError(damaged(spec))
    return Histories(spec, kinds, rows, firsts, times, starts, ends)


@kernel
def _entries(rows: Bytes, begins: Ints, newest: Ints, parts: int, part: int) -> tuple[Ints, Ints, Ints, Ints]:
    """Where each row's entries begin among all, (rows + 1,); of each entry its time and where its payload begins and ends.

    The first of these ends with BROKEN where a row is damaged.
    """
    firsts = np.zeros(len(begins), np.int64)
    for row in range(len(newest)):
        count, _, at, _ = _list_of(rows, begins[row], begins[row + 1], parts, part)
        if at == BROKEN:
            firsts[-1] = BROKEN
            return firsts, firsts, firsts, firsts
        firsts[row + 1] = firsts[row] + count
    times, starts = np.empty(firsts[-1], np.int64), np.empty(firsts[-1], np.int64)
    ends = np.empty(firsts[-1], np.int64)
    for row in range(len(newest)):
        _, time, at, end = _list_of(rows, begins[row], begins[row + 1], parts, part)
        for i in range(firsts[row], firsts[row + 1]):
            since, starts[i], at = get_entry(rows, at, end)
            if at == BROKEN:
                firsts[-1] = BROKEN
                return firsts, times, starts, ends
            time += since
            times[i], ends[i] = time, at
    return firsts, times, starts, ends


@kernel
def _list_of(rows: Bytes, begin: Int, end: Int, parts: int, part: int) -> tuple[Int, Int, Int, Int]:
    """Entries, base, where the first begins and the last ends, of a row's list."""
    if begin == end:
        return 0, 0, 0, 0
    return list_bounds(rows, part_start(rows, begin, end, parts, part), part_start(rows, begin, end, parts, part + 1))


@kernel
def _pick(firsts: Ints, times: Ints, since: Int, n: int, alive: Mask) -> tuple[Ints, Ints]:
    """Of each row that is alive the newest n entries at or after a time: where each row's begin, (rows + 1,), and which they are."""
    offsets = np.zeros(len(firsts), np.int64)
    picked = np.empty(len(times), np.int64)
    for row in range(len(alive)):
        at = offsets[row]
        if alive[row]:
            for entry in range(max(firsts[row], firsts[row + 1] - n), firsts[row + 1]):
                if times[entry] >= since:
                    picked[at] = entry
                    at += 1
        offsets[row + 1] = at
    return offsets, picked[: offsets[-1]]


@kernel
def _fields(rows: Bytes, starts: Ints, ends: Ints, kinds: Ints, which: int) -> tuple[Ints, Ints]:
    """Where a column begins and ends in each payload, BROKEN where it does not fit. Shapes (entries,)."""
    firsts, lasts = np.empty(len(starts), np.int64), np.empty(len(starts), np.int64)
    for i in range(len(starts)):
        at, after = starts[i], identifier_end(rows, starts[i], ends[i])
        for column in range(which + 1):
            if kinds[column] != pay.TIME and kinds[column] != pay.ID:
                at, after = _field(rows, after, ends[i], kinds[column])
        firsts[i], lasts[i] = at, after
    return firsts, lasts


@kernel
def _field(rows: Bytes, at: Int, end: Int, kind: Int) -> tuple[Int, Int]:
    """Where the text or number of a column begins and ends."""
    if at == BROKEN or kind == pay.REST:
        return at, end if at != BROKEN else at
    if kind == pay.STRING:
        length, at = get_varint(rows, at, end)
        return at, at + length if 0 <= length <= end - at and at != BROKEN else BROKEN
    after = at + 1 if kind == pay.TYPE and at < end else BROKEN
    if kind == pay.INTEGER:
        _, after = get_signed(rows, at, end)
    elif kind == pay.FLOAT:
        _, after = get_word(rows, at, end)
    return at, after


@kernel
def _numbers(rows: Bytes, firsts: Ints, lasts: Ints, kind: int) -> Ints:
    """Types' places, integers, or floats as their bits. Shape (entries,)."""
    values = np.empty(len(firsts), np.int64)
    for i in range(len(firsts)):
        if kind == pay.TYPE:
            values[i] = rows[firsts[i]]
        elif kind == pay.INTEGER:
            values[i], _ = get_signed(rows, firsts[i], lasts[i])
        else:
            values[i], _ = get_word(rows, firsts[i], lasts[i])
    return values


@kernel
def _texts(rows: Bytes, firsts: Ints, lasts: Ints, kind: int) -> tuple[Bytes, Ints]:
    """UTF-8 of identifiers or strings, and where each begins, and the end. Shapes (bytes,), (entries + 1,)."""
    room = 0
    for i in range(len(firsts)):
        room += max(_UUID_TEXT, lasts[i] - firsts[i])
    out = np.empty(room, np.uint8)
    begins = np.zeros(len(firsts) + 1, np.int64)
    for i in range(len(firsts)):
        at = begins[i]
        if kind == pay.ID:
            begins[i + 1] = put_identifier_text(out, at, rows, firsts[i])
        else:
            begins[i + 1] = copy_bytes(out, at, rows, firsts[i], lasts[i])
    return out, begins
