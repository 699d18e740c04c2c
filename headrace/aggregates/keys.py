"""Entity keys to slots: open addressing over xxh64, comparing the keys' bytes. No Python object per event."""

from typing import TypeVar

import numpy as np
import numpy.typing as npt
import polars as pl

from headrace.aggregates.wire import copy_bytes, same_bytes
from headrace.arrays import Bytes, Int, Ints
from headrace.hashing import hash_slices, string_buffers
from headrace.kernel import kernel

HASH, START = range(2)
"""Columns of a key's entry: its xxh64, and where its text begins; it ends where the next one's begins."""
Table = npt.NDArray[np.int32]
T = TypeVar("T", bound=np.generic)
ABSENT = -1


class KeyTable:
    """Keys in the order they were added; a key's slot is its place in that order."""

    def __init__(self) -> None:
        self.keys: list[str] = []
        self._table = np.zeros(64, np.int32)  # slot + 1, at the hash or after it; 0 for free
        self._entries = np.zeros((33, 2), np.int64)
        self._text = np.zeros(512, np.uint8)

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def nbytes(self) -> int:
        """Memory held, the Python strings (about 50 bytes and their text each) included."""
        strings = 58 * len(self) + int(self._entries[len(self), START])
        return self._table.nbytes + self._entries.nbytes + self._text.nbytes + strings

    def find(self, keys: pl.Series) -> Ints:
        """The slot of each key, ABSENT where it has none. Shape (len(keys),)."""
        offsets, text = buffers(keys)
        hashes = hash_slices(text, offsets, np.uint64(0))
        return _find(self._table, self._entries, self._text, hashes.view(np.int64), offsets, text)

    def add(self, keys: pl.Series) -> Ints:
        """Give a slot to each key that has none yet; returns all their slots. Shape (len(keys),)."""
        offsets, text = buffers(keys)
        known = len(self)
        self._make_room(known + len(keys), int(self._entries[known, START] + offsets[-1] - offsets[0]))
        hashes = hash_slices(text, offsets, np.uint64(0))
        slots = _add(self._table, self._entries, self._text, hashes.view(np.int64), offsets, text, known)
        fresh = slots >= known
        if fresh.any():
            self.keys.extend(dict.fromkeys(keys.filter(pl.Series(fresh)).to_list()))
        return slots

    def _make_room(self, keys: int, text: int) -> None:
        if keys >= len(self._entries):
            self._entries = longer(self._entries, 2 * keys + 1)
        if text > len(self._text):
            self._text = longer(self._text, 2 * text)
        if 2 * keys > len(self._table):
            self._table = np.zeros(1 << (2 * keys).bit_length(), np.int32)
            _place(self._table, self._entries, len(self))


def buffers(strings: pl.Series) -> tuple[Ints, Bytes]:
    """Offsets and UTF-8 bytes, both read-only: kernels are compiled once for them."""
    offsets, data = string_buffers(strings)
    offsets.flags.writeable = data.flags.writeable = False
    return offsets, data


def longer(array: npt.NDArray[T], length: int) -> npt.NDArray[T]:
    """A copy with rows of zeros after those of the array."""
    copy = np.zeros((length, *array.shape[1:]), array.dtype)
    copy[: len(array)] = array
    return copy


def grouped(slots: Ints, count: int) -> Ints:
    """The places of the slots, those of one slot together and in their order; slots are below `count`. Shape (len(slots),)."""
    return _grouped(slots, count) if 8 * len(slots) > count else np.argsort(slots, kind="stable")


@kernel
def _grouped(slots: Ints, count: int) -> Ints:
    ends = np.zeros(count + 1, np.int64)
    for slot in slots:
        ends[slot + 1] += 1
    for slot in range(count):
        ends[slot + 1] += ends[slot]
    order = np.empty(len(slots), np.int64)
    for i in range(len(slots)):
        order[ends[slots[i]]] = i
        ends[slots[i]] += 1
    return order


@kernel
def _find(table: Table, entries: Ints, known: Bytes, hashes: Ints, offsets: Ints, text: Bytes) -> Ints:
    slots = np.empty(len(hashes), np.int64)
    for i in range(len(hashes)):
        at = _seat(table, entries, known, hashes[i], text, offsets[i], offsets[i + 1])
        slots[i] = np.int64(table[at]) - 1
    return slots


@kernel
def _add(table: Table, entries: Ints, known: Bytes, hashes: Ints, offsets: Ints, text: Bytes, count: int) -> Ints:
    slots = np.empty(len(hashes), np.int64)
    for i in range(len(hashes)):
        at = _seat(table, entries, known, hashes[i], text, offsets[i], offsets[i + 1])
        if table[at] == 0:
            entries[count, HASH] = hashes[i]
            entries[count + 1, START] = copy_bytes(known, entries[count, START], text, offsets[i], offsets[i + 1])
            count += 1
            table[at] = count
        slots[i] = np.int64(table[at]) - 1
    return slots


@kernel
def _seat(table: Table, entries: Ints, known: Bytes, wanted: Int, text: Bytes, start: Int, end: Int) -> Int:
    """Where in the table a key stands, or would."""
    mask = len(table) - 1
    at = wanted & mask
    while table[at] != 0:
        slot = np.int64(table[at]) - 1
        first, after = entries[slot, START], entries[slot + 1, START]
        alike = entries[slot, HASH] == wanted and after - first == end - start
        if alike and same_bytes(known, first, text, start, end - start):
            return at
        at = (at + 1) & mask
    return at


@kernel
def _place(table: Table, entries: Ints, count: int) -> None:
    """Fill an empty table with the known keys, which all differ."""
    mask = len(table) - 1
    for slot in range(count):
        at = entries[slot, HASH] & mask
        while table[at] != 0:
            at = (at + 1) & mask
        table[at] = slot + 1
