"""The as-of read of lists: which entries of the packed rows a feature takes, and the values in their payloads."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

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
_FEW: Final = 200
"""Texts that Python takes apart faster than Arrow."""


@dataclass(frozen=True)
class Histories:
    """The entries of one list in some rows: row i has the entries firsts[i] to firsts[i + 1].

    `cells` (columns, entries + 1) has what each entry holds: a number, a float's bits, a type's place, or where the text of a string
    begins, and the end, in `text`.
    """

    spec: ViewSpec
    kinds: Ints
    firsts: Ints
    times: Ints
    cells: Ints
    text: Bytes

    def newest(self, since: Int, n: int, alive: Mask) -> tuple[Ints, Ints]:
        """The newest n entries of each row at or after a time, none where it is not alive: the first, and the one past the last."""
        return _newest(self.firsts, self.times, since, n, alive)

    def column(self, which: int) -> list[Any]:
        """A column of all entries. Raises StateMismatchError on text that is none."""
        kind = self.kinds[which]
        if _is_text(kind):
            return self._few_texts(which) if len(self.times) <= _FEW else list(self._texts(which).to_pylist())
        if kind == pay.TYPE:
            types = self.spec.types
            return [types[place] for place in self.cells[which, :-1].tolist()]
        values: list[Any] = self._numbers(which).tolist()
        return values

    def arrow(self, which: int, begins: Ints, ends: Ints, declared: pa.DataType) -> pa.Array:
        """The lists of a column that `newest` tells of, or their last values where the type is no list's. Raises as `column` does."""
        is_list = pa.types.is_list(declared)
        values = self._values(which, declared.value_type if is_list else declared)
        if not is_list:
            return values.take(pa.array(ends - 1, mask=begins == ends))
        offsets = np.concatenate([[0], np.cumsum(ends - begins)])
        picked = np.repeat(begins - offsets[:-1], ends - begins) + np.arange(offsets[-1])
        return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), values.take(pa.array(picked)), type=declared)

    def _values(self, which: int, kind: pa.DataType) -> pa.Array:
        if _is_text(self.kinds[which]):
            return self._texts(which)
        return pa.array(self.column(which) if self.kinds[which] == pay.TYPE else self._numbers(which), kind)

    def _texts(self, which: int) -> pa.Array:
        offsets = pa.py_buffer(self.cells[which].astype(np.int32))
        texts = pa.StringArray.from_buffers(len(self.times), offsets, pa.py_buffer(self.text))
        try:
            texts.validate(full=True)
        except pa.ArrowInvalid as error:
            raise StateMismatchError(damaged(self.spec)) from error
        return texts

    def _few_texts(self, which: int) -> list[str]:
        begins = self.cells[which].tolist()
        data = self.text[begins[0] : begins[-1]].tobytes()
        try:
            text = data.decode()
            if len(text) == len(data):  # a character is a byte, so a piece needs no decoding of its own
                return [text[a - begins[0] : b - begins[0]] for a, b in pairwise(begins)]
            return [data[a - begins[0] : b - begins[0]].decode() for a, b in pairwise(begins)]
        except UnicodeDecodeError as error:
            raise StateMismatchError(damaged(self.spec)) from error

    def _numbers(self, which: int) -> Ints | Floats:
        cells = self.cells[which, :-1]
        return cells.view(np.float64) if self.kinds[which] == pay.FLOAT else cells


def _is_text(kind: Int) -> bool:
    return bool(kind >= pay.STRING or kind == pay.ID)


def read_histories(spec: ViewSpec, kinds: Ints, rows: Bytes, begins: Ints, parts: int, part: int) -> Histories:
    """The entries of a list. Raises StateMismatchError."""
    firsts, times, cells, text = _decode(rows, begins, parts, part, kinds, len(spec.types))
    if firsts[-1] == BROKEN:
        raise StateMismatchError(damaged(spec))
    return Histories(spec, kinds, firsts, times, cells, text)


@kernel
def _decode(
    rows: Bytes, begins: Ints, parts: int, part: int, kinds: Ints, types: int
) -> tuple[Ints, Ints, Ints, Bytes]:
    """Where each row's entries begin among all, (rows + 1,); the entries' times; cells, and their text, as `Histories` has them.

    The first of these ends with BROKEN where a row is damaged.
    """
    firsts = np.zeros(len(begins), np.int64)
    for row in range(len(begins) - 1):
        count, _, at, _ = _list_of(rows, begins[row], begins[row + 1], parts, part)
        firsts[row + 1] = firsts[row] + count if at != BROKEN and firsts[row] != BROKEN else BROKEN
    entries = np.int64(max(firsts[-1], 0))
    times, cells = np.empty(entries, np.int64), np.zeros((len(kinds), entries + 1), np.int64)
    ends = np.empty((len(kinds), entries), np.int64)
    room = np.int64(0)
    for row in range(len(begins) - 1 if firsts[-1] != BROKEN else 0):
        _, time, at, end = _list_of(rows, begins[row], begins[row + 1], parts, part)
        for i in range(firsts[row], firsts[row + 1]):
            since, start, at = get_entry(rows, at, end)
            time += since
            times[i] = time
            if at == BROKEN or not _find_fields(rows, start, at, kinds, types, cells, ends, i):
                firsts[-1] = BROKEN
                return firsts, times, cells, rows[:0].copy()
            room += _text_room(kinds, cells, ends, i)
    text = np.empty(room, np.uint8)
    at = np.int64(0)
    for column in range(len(kinds)):
        for i in range(entries):
            start, after = cells[column, i], ends[column, i]
            if kinds[column] == pay.TIME:
                cells[column, i] = times[i]
            elif kinds[column] == pay.ID or kinds[column] >= pay.STRING:
                cells[column, i] = at
                is_id = kinds[column] == pay.ID
                at = put_identifier_text(text, at, rows, start) if is_id else copy_bytes(text, at, rows, start, after)
            else:
                cells[column, i] = _number(rows, start, after, kinds[column])
        cells[column, entries] = at
    return firsts, times, cells, text


@kernel
def _find_fields(
    rows: Bytes, start: Int, end: Int, kinds: Ints, types: int, starts: Ints, ends: Ints, entry: Int
) -> bool:
    """Where each column begins and ends in an entry's payload; False where one does not fit. Shapes (columns, entries)."""
    after = identifier_end(rows, start, end)
    for column in range(len(kinds)):
        at = start
        if kinds[column] != pay.ID and kinds[column] != pay.TIME:
            at, after = _field(rows, after, end, kinds[column])
        starts[column, entry], ends[column, entry] = at, after
        if after == BROKEN or (kinds[column] == pay.TYPE and rows[at] >= types):
            return False
    return True


@kernel
def _text_room(kinds: Ints, starts: Ints, ends: Ints, entry: Int) -> Int:
    """Most bytes that the texts of an entry take."""
    room = np.int64(0)
    for column in range(len(kinds)):
        if kinds[column] == pay.ID or kinds[column] >= pay.STRING:
            room += max(_UUID_TEXT, ends[column, entry] - starts[column, entry])
    return room


@kernel
def _newest(firsts: Ints, times: Ints, since: Int, n: int, alive: Mask) -> tuple[Ints, Ints]:
    """As `Histories.newest`. Shapes (rows,)."""
    begins, ends = np.empty(len(alive), np.int64), firsts[1:].copy()
    for row in range(len(alive)):
        begins[row] = max(firsts[row], ends[row] - n) if alive[row] else ends[row]
        while begins[row] < ends[row] and times[begins[row]] < since:
            begins[row] += 1
    return begins, ends


@kernel
def _list_of(rows: Bytes, begin: Int, end: Int, parts: int, part: int) -> tuple[Int, Int, Int, Int]:
    """Entries, base, where the first begins and the last ends, of a row's list."""
    if begin == end:
        return 0, 0, 0, 0
    return list_bounds(rows, part_start(rows, begin, end, parts, part), part_start(rows, begin, end, parts, part + 1))


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
def _number(rows: Bytes, at: Int, end: Int, kind: Int) -> Int:
    """A type's place, an integer, or a float's bits."""
    if kind == pay.TYPE:
        return np.int64(rows[at])
    value, _ = get_signed(rows, at, end) if kind == pay.INTEGER else get_word(rows, at, end)
    return value
