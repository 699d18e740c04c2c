"""What a list keeps of an event, as bytes: its id, then the columns that features read from it.

`timestamp` and `event_id` take no space of their own; a type is one byte, its place among the view's types; an integer or a time in
microseconds is a zigzag varint; a number that may have a fraction is 64 bits; a string is its length and UTF-8, the last column of all
without its length.
"""

from collections.abc import Iterable
from functools import lru_cache

import numpy as np
import polars as pl
import pyarrow as pa

from headrace import names
from headrace.aggregates import columns as cols
from headrace.aggregates.keys import buffers
from headrace.aggregates.wire import MAX_VARINT, copy_bytes, put_identifier, put_signed, put_varint, put_word
from headrace.arrays import Bytes, Ints
from headrace.events import RECORD_SCHEMA
from headrace.kernel import kernel

TIME, ID, TYPE, INTEGER, FLOAT, STRING, REST = range(7)
"""Kinds of columns. REST is a string that ends with its payload."""


@lru_cache
def kinds_of(columns: tuple[str, ...]) -> tuple[int, ...]:
    """The kind of each of a list's columns, strings standing last (`in_order`)."""
    kinds = [_kind(column) for column in columns]
    if kinds and kinds[-1] == STRING:
        kinds[-1] = REST
    return tuple(kinds)


def in_order(columns: Iterable[str]) -> tuple[str, ...]:
    """Columns as a payload has them: strings last."""
    return tuple(sorted(columns, key=lambda column: (_kind(column) == STRING, column)))


def _kind(column: str) -> int:
    known = {names.TIMESTAMP: TIME, names.EVENT_ID: ID, names.TYPE: TYPE}
    if column in known:
        return known[column]
    if column not in RECORD_SCHEMA.names:
        return FLOAT
    declared = RECORD_SCHEMA.field(column).type
    if pa.types.is_string(declared):
        return STRING
    return INTEGER if pa.types.is_integer(declared) or pa.types.is_timestamp(declared) else FLOAT


def payloads(columns: tuple[str, ...], events: pl.DataFrame, codes: Ints) -> tuple[Bytes, Ints, Ints]:
    """The payload of every event: bytes, and where each begins and ends. `codes` are the events' places among the view's types."""
    offsets, text = buffers(events[names.EVENT_ID])
    room = np.diff(offsets) + 2 + MAX_VARINT * (1 + len(columns))
    strings = {c: buffers(events[c]) for c, kind in zip(columns, kinds_of(columns), strict=True) if kind >= STRING}
    for lengths, _ in strings.values():
        room += np.diff(lengths)
    begins = np.cumsum(room) - room
    ends = begins.copy()
    out = np.empty(int(room.sum()), np.uint8)
    _put_identifiers(out, ends, offsets, text)
    for column, kind in zip(columns, kinds_of(columns), strict=True):
        if kind == TYPE:
            _put_codes(out, ends, codes)
        elif kind == INTEGER:
            _put_integers(out, ends, cols.integers(events[column]))
        elif kind == FLOAT:
            _put_words(out, ends, cols.numbers(column, events).view(np.int64))
        elif kind >= STRING:
            _put_strings(out, ends, *strings[column], kind == REST)
    return out, begins, ends


@kernel
def _put_identifiers(out: Bytes, ends: Ints, offsets: Ints, text: Bytes) -> None:
    for i in range(len(ends)):
        ends[i] = put_identifier(out, ends[i], text, offsets[i], offsets[i + 1])


@kernel
def _put_codes(out: Bytes, ends: Ints, codes: Ints) -> None:
    for i in range(len(ends)):
        out[ends[i]] = np.uint8(codes[i])
        ends[i] += 1


@kernel
def _put_integers(out: Bytes, ends: Ints, values: Ints) -> None:
    for i in range(len(ends)):
        ends[i] = put_signed(out, ends[i], values[i])


@kernel
def _put_words(out: Bytes, ends: Ints, values: Ints) -> None:
    for i in range(len(ends)):
        ends[i] = put_word(out, ends[i], values[i])


@kernel
def _put_strings(out: Bytes, ends: Ints, offsets: Ints, text: Bytes, rest: bool) -> None:
    for i in range(len(ends)):
        if not rest:
            ends[i] = put_varint(out, ends[i], offsets[i + 1] - offsets[i])
        ends[i] = copy_bytes(out, ends[i], text, offsets[i], offsets[i + 1])
