"""A stored row: what it begins with, and how it is checked before anything else is read of it.

    row = u64 fingerprint | u32 check | i64 newest | u32 start of each part | tiles | parts

`newest` is the time of the entity's newest event in microseconds, `check` the low half of xxh64 over all that follows it. A row of a
foreign definition, one cut short or damaged, is refused as a whole; reads stay inside the row all the same.
"""

from collections.abc import Sequence
from itertools import accumulate
from typing import Final

import numpy as np

from headrace.aggregates.spec import ViewSpec
from headrace.aggregates.wire import word_at
from headrace.arrays import Bytes, Int, Ints
from headrace.hashing import hash_slice
from headrace.kernel import kernel

NEVER: Final = -(2**62)
"""Stands for 'no event yet' in times and tile numbers; far enough from the limit of int64 to subtract from."""
CHECK: Final = 8
NEWEST: Final = 12
STARTS: Final = 20
"""Where these begin in a row."""
_SOUND, _FOREIGN, _DAMAGED = range(3)
_NO_SEED = np.uint64(0)


class StateMismatchError(RuntimeError):
    """A stored row has another shape than the definition that reads it, or is damaged."""


def joined(spec: ViewSpec, raws: Sequence[bytes | None]) -> tuple[Bytes, Ints]:
    """The bytes of all rows, and where each begins, and the end; None becomes a row of no bytes. Shapes (bytes,), (rows + 1,).

    Raises StateMismatchError for a row that is there and empty.
    """
    if b"" in raws:
        raise StateMismatchError(damaged(spec))
    begins = np.array([*accumulate([0 if raw is None else len(raw) for raw in raws], initial=0)], np.int64)
    return np.frombuffer(b"".join(filter(None, raws)), np.uint8), begins


def check(spec: ViewSpec, parts: int, rows: Bytes, begins: Ints) -> tuple[Ints, int]:
    """The newest event of each row, shape (rows,), NEVER for one of no bytes; and of all. Raises StateMismatchError."""
    newest, of_all, verdict, row = _check_rows(rows, begins, np.uint64(spec.fingerprint), parts)
    if verdict == _FOREIGN:
        found = int.from_bytes(rows[begins[row] : begins[row] + 8].tobytes(), "little")
        raise StateMismatchError(
            f"stored state of view '{spec.name}' has fingerprint {found:016x}, the definition "
            f"has {spec.fingerprint:016x}: run `headrace backfill`"
        )
    if verdict == _DAMAGED:
        raise StateMismatchError(damaged(spec))
    return newest, of_all


def damaged(spec: ViewSpec) -> str:
    return f"a stored row of view '{spec.name}' is damaged: run `headrace backfill`"


@kernel
def _check_rows(rows: Bytes, begins: Ints, fingerprint: np.uint64, parts: int) -> tuple[Ints, int, Int, Int]:
    """As `check`; and whether all rows are sound, or what is wrong with which."""
    newest, of_all = np.empty(len(begins) - 1, np.int64), NEVER
    for i in range(len(newest)):
        newest[i] = NEVER
        begin, end = begins[i], begins[i + 1]
        if begin == end:
            continue
        if end - begin >= 8 and np.uint64(word_at(rows, begin)) != fingerprint:
            return newest, of_all, _FOREIGN, i
        if end - begin < STARTS + 4 * parts or half_at(rows, begin + CHECK) != check_of(rows, begin, end):
            return newest, of_all, _DAMAGED, i
        before = begin + STARTS + 4 * parts
        for p in range(parts + 1):
            start = part_start(rows, begin, end, parts, p)
            if not before <= start <= end:
                return newest, of_all, _DAMAGED, i
            before = start
        newest[i] = word_at(rows, begin + NEWEST)
        of_all = max(of_all, newest[i])
    return newest, of_all, _SOUND, 0


@kernel
def part_start(rows: Bytes, begin: Int, end: Int, parts: Int, part: Int) -> Int:
    """Where a part of a row begins; the row's end for the one past the last."""
    return end if part == parts else begin + half_at(rows, begin + STARTS + 4 * part)


@kernel
def tiles_start(begin: Int, parts: Int) -> Int:
    """Where the tiles of a row begin."""
    return begin + STARTS + 4 * parts


@kernel
def check_of(rows: Bytes, begin: Int, end: Int) -> Int:
    """What the check of a row must be."""
    return np.int64(hash_slice(rows, int(begin) + NEWEST, int(end), _NO_SEED) & np.uint64(0xFFFFFFFF))


@kernel
def put_half(out: Bytes, at: Int, value: Int) -> None:
    """Write 32 bits, little-endian."""
    for i in range(4):
        out[at + i] = np.uint8((value >> (8 * i)) & 255)


@kernel
def half_at(rows: Bytes, at: Int) -> Int:
    """The 32 bits at a place."""
    half = np.int64(0)
    for i in range(4):
        half |= np.int64(rows[at + i]) << (8 * i)
    return half
