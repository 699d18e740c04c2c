"""Numbers in bytes, as kernels write and read them: varints (LEB128), zigzag varints, 64-bit words, identifiers.

Reads are total: they stop at `end`, and answer the place BROKEN when a value does not end before it. A read at BROKEN gives BROKEN, so
that a row is checked once, after its last value.
"""

from typing import Final

import numpy as np

from headrace.arrays import Bytes, Int
from headrace.kernel import kernel

BROKEN: Final = -1
MAX_VARINT: Final = 10
"""Bytes of the longest varint."""

_UUID_BYTES: Final = 16
_UUID_TEXT: Final = 36
_DASH: Final = 45
_PLACES: Final = np.array([0, 2, 4, 6, 9, 11, 14, 16, 19, 21, 24, 26, 28, 30, 32, 34])
"""Where in the text of a UUID each byte has its two digits."""
_DIGITS: Final = np.full(256, 16)
"""Value of a lowercase hexadecimal digit, 16 for anything else."""
_DIGITS[[ord(digit) for digit in "0123456789abcdef"]] = np.arange(16)
_LOW_BITS = np.uint64(127)
_SEVEN = np.uint64(7)


@kernel
def put_varint(out: Bytes, at: Int, value: Int) -> Int:
    """Write a number as unsigned 64 bits, seven in each byte; returns the place after it."""
    rest = np.uint64(value)
    while rest > _LOW_BITS:
        out[at] = np.uint8((rest & _LOW_BITS) | np.uint64(128))
        rest >>= _SEVEN
        at += 1
    out[at] = np.uint8(rest)
    return at + 1


@kernel
def varint_size(value: Int) -> Int:
    """How many bytes `put_varint` writes."""
    rest, size = np.uint64(value), 1
    while rest > _LOW_BITS:
        rest >>= _SEVEN
        size += 1
    return size


@kernel
def get_varint(data: Bytes, at: Int, end: Int) -> tuple[Int, Int]:
    """The number at a place, and the place after it."""
    if 0 <= at < end and data[at] < 128:
        return np.int64(data[at]), at + 1
    value, shift = np.uint64(0), np.uint64(0)
    while 0 <= at < end and shift < np.uint64(64):
        byte = np.uint64(data[at])
        at += 1
        value |= (byte & _LOW_BITS) << shift
        if byte <= _LOW_BITS:
            return np.int64(value), at
        shift += _SEVEN
    return 0, BROKEN


@kernel
def put_signed(out: Bytes, at: Int, value: Int) -> Int:
    """Write a number of either sign so that small ones are short (zigzag)."""
    return put_varint(out, at, (value << 1) ^ (value >> 63))


@kernel
def get_signed(data: Bytes, at: Int, end: Int) -> tuple[Int, Int]:
    """The inverse of `put_signed`."""
    folded, at = get_varint(data, at, end)
    return np.int64(np.uint64(folded) >> np.uint64(1)) ^ -(folded & 1), at


@kernel
def put_word(out: Bytes, at: Int, value: Int) -> Int:
    """Write 64 bits, little-endian; returns the place after them."""
    word, place = np.uint64(value), np.uintp(at)
    for i in range(8):
        out[place + np.uintp(i)] = np.uint8((word >> np.uint64(8 * i)) & np.uint64(255))
    return at + 8


@kernel
def word_at(data: Bytes, at: Int) -> Int:
    """The 64 bits at a place that is known to hold them."""
    word, place = np.uint64(0), np.uintp(at)
    for i in range(8):
        word |= np.uint64(data[place + np.uintp(i)]) << np.uint64(8 * i)
    return np.int64(word)


@kernel
def get_word(data: Bytes, at: Int, end: Int) -> tuple[Int, Int]:
    """The 64 bits at a place, and the place after them."""
    if at < 0 or at + 8 > end:
        return 0, BROKEN
    return word_at(data, at), at + 8


@kernel
def copy_bytes(out: Bytes, at: Int, data: Bytes, start: Int, end: Int) -> Int:
    """Copy data[start:end]; returns the place after it."""
    to, come_from = np.uintp(at), np.uintp(start)
    for i in range(np.uintp(end - start)):
        out[to + i] = data[come_from + i]
    return at + end - start


@kernel
def same_bytes(data: Bytes, start: Int, others: Bytes, place: Int, size: Int) -> bool:
    """True where data[start:start + size] and others[place:place + size] are the same."""
    while size >= 8:
        if word_at(data, start) != word_at(others, place):
            return False
        start, place, size = start + 8, place + 8, size - 8
    differ = 0
    for i in range(size):
        differ |= data[start + i] ^ others[place + i]
    return differ == 0


@kernel
def put_identifier(out: Bytes, at: Int, text: Bytes, start: Int, end: Int) -> Int:
    """Write text[start:end]: a canonical lowercase UUID as 0 and 16 bytes, any other text as length + 1 and its bytes."""
    if end - start == _UUID_TEXT and _put_uuid(out, at + 1, text, start):
        out[at] = 0
        return at + 1 + _UUID_BYTES
    return copy_bytes(out, put_varint(out, at, end - start + 1), text, start, end)


@kernel
def identifier_end(data: Bytes, at: Int, end: Int) -> Int:
    """The place after an identifier."""
    length, at = get_varint(data, at, end)
    if at == BROKEN:
        return BROKEN
    size = _UUID_BYTES if length == 0 else length - 1
    return at + size if 0 <= size <= end - at else BROKEN


@kernel
def put_identifier_text(out: Bytes, at: Int, data: Bytes, start: Int) -> Int:
    """Write the text of an identifier whose end is known to be sound; returns the place after it."""
    size = _text_size(data, start)
    for i in range(size):
        out[at + i] = _character(data, start, i)
    return at + size


@kernel
def precedes(data: Bytes, at: Int, others: Bytes, place: Int) -> bool:
    """True where the identifier at data[at] comes before the one at others[place], in the order of their texts."""
    size, other_size = _text_size(data, at), _text_size(others, place)
    for i in range(min(size, other_size)):
        one, other = _character(data, at, i), _character(others, place, i)
        if one != other:
            return bool(one < other)
    return bool(size < other_size)


@kernel
def _put_uuid(out: Bytes, at: Int, text: Bytes, start: Int) -> bool:
    """Write the bytes of 36 characters if they are a canonical lowercase UUID; False, and anything written, if not."""
    wrong = 0
    for i in range(_UUID_BYTES):
        place = start + _PLACES[i]
        high, low = _DIGITS[text[place]], _DIGITS[text[place + 1]]
        wrong |= high | low
        out[at + i] = np.uint8(((high & 15) << 4) | (low & 15))
    for dash in (8, 13, 18, 23):
        wrong |= (text[start + dash] ^ _DASH) << 4
    return wrong < 16


@kernel
def _text_size(data: Bytes, at: Int) -> Int:
    length, _ = get_varint(data, at, len(data))
    return _UUID_TEXT if length == 0 else length - 1


@kernel
def _character(data: Bytes, at: Int, i: Int) -> Int:
    """Byte i of an identifier's text."""
    length, at = get_varint(data, at, len(data))
    if length > 0:
        return np.int64(data[at + i])
    if i == 8 or i == 13 or i == 18 or i == 23:
        return _DASH
    digit = i - (i > 8) - (i > 13) - (i > 18) - (i > 23)
    half = (np.int64(data[at + digit // 2]) >> (4 if digit % 2 == 0 else 0)) & 15
    return half + (48 if half < 10 else 87)
