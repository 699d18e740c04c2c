"""The parts of states that vary in length: chunks of one byte array, each of a power of two bytes.

A *part* is one list, one session group or one set of distinct values of one entity. Its *line* of eight numbers says where its chunk
lies and what it holds; a part that was never used has a line of zeros. Chunks that were outgrown are used again.
"""

from typing import Final

import numpy as np

from headrace.aggregates.wire import copy_bytes, put_word, word_at
from headrace.arrays import Bytes, Int, Ints
from headrace.kernel import kernel

Line = Ints
"""Shape (LINE,): the numbers below."""
Arena = Ints
"""Shape (ARENA,): the end of what is given out; then, by size class, the first free chunk + 1, which holds the next + 1."""

START: Final = 0
SIZE: Final = 1
"""Bytes in use, of ROOM."""
ROOM: Final = 2
COUNT: Final = 3
"""How many entries, intervals or values."""
LINE: Final = 8
ARENA: Final = 64
_SMALLEST: Final = 5
"""The smallest chunk has 2**5 bytes."""


@kernel
def reserve(data: Bytes, arena: Arena, line: Line, need: Int) -> Bytes:
    """Give a part room for `need` bytes, its content moved along. Returns the data, a longer copy where it was full."""
    room = line[ROOM]
    if need <= room:
        return data
    size_class = _class_of(need)
    start = arena[size_class] - 1
    if start >= 0:
        arena[size_class] = word_at(data, start)
    else:
        start = arena[0]
        arena[0] += 1 << size_class
        data = _with_length(data, arena[0])
    copy_bytes(data, start, data, line[START], line[START] + line[SIZE])
    if room > 0:
        old_class = _class_of(room)
        put_word(data, line[START], arena[old_class])
        arena[old_class] = line[START] + 1
    line[START] = start
    line[ROOM] = 1 << size_class
    return data


@kernel
def shift(data: Bytes, start: Int, end: Int, by: Int) -> None:
    """Move data[start:end] by some places; the two may overlap."""
    if by < 0:
        while by <= -8 and start + 8 <= end:
            put_word(data, start + by, word_at(data, start))
            start += 8
        for i in range(start, end):
            data[i + by] = data[i]
    else:
        while by >= 8 and start + 8 <= end:
            end -= 8
            put_word(data, end + by, word_at(data, end))
        for i in range(end - 1, start - 1, -1):
            data[i + by] = data[i]


@kernel
def _class_of(size: Int) -> Int:
    size_class = _SMALLEST
    while (1 << size_class) < size:
        size_class += 1
    return size_class


@kernel
def _with_length(data: Bytes, length: Int) -> Bytes:
    if length <= len(data):
        return data
    longer = np.empty(max(length, len(data) + len(data) // 2), np.uint8)
    copy_bytes(longer, 0, data, 0, len(data))
    return longer
