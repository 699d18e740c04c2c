"""Lines of JSON as the log holds them, cut into columns by compiled code: each line is judged by itself, whatever stands beside it.

`scan` takes the canonical form of a record: one flat object of known columns without white space, each value null or of its column's
type and range, and with what every engine relies on (a known type, its item, keys that are not too long). What else a line may be is
for headrace.decoding, which reads it with a full JSON parser.

One module, long as it is: its kernels are one scanner, and all of them know how a line's cells are laid
out: a change of one is a change of what the others may take for granted.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from headrace import names
from headrace.arrays import Bytes, Ints
from headrace.events import MAX_TEXT_BYTES, NEEDS_ITEM, RECORD_SCHEMA, SCHEMA_VERSION
from headrace.kernel import kernel
from headrace.memory import address_of, byte_at, word_at

Words = npt.NDArray[np.uint64]
Lengths = npt.NDArray[np.int32]

PADDING: Final = b"\n" * 32
"""What `scan` needs behind the last line: it reads eight bytes at a time, and compares none with the end."""
LAST_MOMENT_US: Final = 253_402_300_800_000_000 - 1
"""The end of the year 9999, where calendars in other libraries end too."""
NO_VALUE: Final = -1
ESCAPED: Final = 1 << 30
"""Added to the length of a text that holds escapes."""

_TEXT, _WHOLE, _SMALL, _TIME, _REAL = range(5)
_LARGEST_EXPONENT: Final = 307  # every number below 1e308 is finite
COLUMNS: Final = tuple(RECORD_SCHEMA.names)


class Scan(NamedTuple):
    """What `scan` found. Shapes: N lines, C columns.

    `cut` (N + 1,): where lines begin. `good` (N,): which are records. `lengths` (C, N): NO_VALUE for null, for texts and reals the
    bytes in the payload. `values` (C, N): where those bytes begin; for whole numbers the value itself.
    """

    cut: Ints
    good: npt.NDArray[np.bool_]
    values: Ints
    lengths: Lengths


def _kind(field: pa.Field) -> int:
    if pa.types.is_string(field.type):
        return _TEXT
    if pa.types.is_timestamp(field.type):
        return _TIME
    if pa.types.is_floating(field.type):
        return _REAL
    return _SMALL if field.type == pa.int32() else _WHOLE


def _quoted(words: Sequence[str]) -> tuple[Words, Words, Ints]:
    """Words with their closing quote as three 64-bit numbers each, the masks of what counts in them, and their lengths in bytes."""
    cells = np.zeros((len(words), 24), np.uint8)
    masks = np.zeros_like(cells)
    for row, word in enumerate(words):
        text = np.frombuffer(f'{word}"'.encode(), np.uint8)
        cells[row, : len(text)], masks[row, : len(text)] = text, 255
    return cells.view("<u8"), masks.view("<u8"), np.array([len(word.encode()) for word in words])


_KINDS: Final = np.array([_kind(field) for field in RECORD_SCHEMA], np.int64)
_WORDS, _MASKS, _SIZES = _quoted(COLUMNS)
_TYPE_WORDS, _TYPE_MASKS, _TYPE_SIZES = _quoted(names.RECORD_TYPES)
_NEEDS_ITEM: Final = np.array([kind in NEEDS_ITEM or kind in names.ITEM_OPERATIONS for kind in names.RECORD_TYPES])
_REQUIRED: Final = np.array(
    [COLUMNS.index(name) for name in ("event_id", "type", "user_key", "timestamp", "received_at")]
)
_BOUNDED: Final = np.array([COLUMNS.index(name) for name in ("event_id", "user_key", "item_id")])
_TYPE: Final = COLUMNS.index(names.TYPE)
_ITEM: Final = COLUMNS.index(names.ITEM_ID)
_VERSION: Final = COLUMNS.index("schema_version")
_ONES: Final = np.uint64(0x0101010101010101)
_TENS: Final = 10.0 ** np.arange(23)
_HIGHS: Final = np.uint64(0x8080808080808080)
_QUOTE, _BACKSLASH, _COLON, _COMMA, _OPEN, _CLOSE, _NEWLINE, _MINUS, _POINT, _SLASH = (
    34,
    92,
    58,
    44,
    123,
    125,
    10,
    45,
    46,
    47,
)


def scan(payload: bytes) -> Scan:
    """Cut the lines out of `payload`, each ended by a newline, with PADDING behind the last one."""
    data = np.frombuffer(payload, np.uint8)
    return Scan(*_scan(data, _count_newlines(data) - len(PADDING)))


def texts(payload: bytes, begins: Ints, lengths: Lengths) -> tuple[Ints, Bytes]:
    """Texts of one column: (len + 1,) where each begins, and their bytes end to end, escapes resolved."""
    cut = np.empty(len(begins) + 1, np.int64)
    out = np.empty(int((np.maximum(lengths, 0) & ~ESCAPED).sum()), np.uint8)
    _copy_texts(np.frombuffer(payload, np.uint8), begins, lengths, cut, out)
    return cut, out[: cut[-1]]


def reals(payload: bytes, begins: Ints, lengths: Lengths) -> npt.NDArray[np.float64]:
    """Numbers of one column, each the float that is nearest to what is written; NaN for null. Shape (len,)."""
    numbers = np.empty(len(begins), np.float64)
    for row in _parse_reals(np.frombuffer(payload, np.uint8), begins, lengths, numbers).tolist():
        numbers[row] = float(payload[begins[row] : begins[row] + lengths[row]])
    return numbers


@kernel
def _count_newlines(data: Bytes) -> int:
    count = 0
    for byte in data:
        count += byte == _NEWLINE
    return count


@kernel
def _scan(payload: Bytes, lines: int):  # type: ignore[no-untyped-def]  # a tuple as Scan names it
    width = len(_KINDS)
    values = np.empty(lines * width, np.int64)
    lengths = np.full(lines * width, NO_VALUE, np.int32)
    good = np.zeros(lines, np.bool_)
    cut = np.empty(lines + 1, np.int64)
    # Producers write the fields in one order or in few: the two columns that came last after each one are tried first.
    likely, second = np.zeros(width + 1, np.int64), np.zeros(width + 1, np.int64)
    start = address_of(payload)
    at = start
    for line in range(lines):
        cut[line] = at - start
        before, sound = width, byte_at(at) == _OPEN
        while sound:
            column = _column_at(at + 1, likely[before], second[before])
            place = column * lines + line
            if column < 0 or lengths[place] != NO_VALUE:
                break
            if column != likely[before]:
                second[before], likely[before] = likely[before], column
            before = column
            at += _SIZES[column] + 4  # the two quotes, the colon, and the value's first byte
            kind = _KINDS[column]
            end, value, length = _scan_value(at, kind)
            sound = end > 0
            if sound:
                values[place] = value - start if kind in (_TEXT, _REAL) else value
                lengths[place] = length
                at = end
                if byte_at(at) != _COMMA:
                    good[line] = (
                        byte_at(at) == _CLOSE
                        and byte_at(at + 1) == _NEWLINE
                        and _is_record(start, values, lengths, line, lines)
                    )
                    break
        while byte_at(at) != _NEWLINE:
            at += 1
        at += 1
    cut[lines] = at - start
    return cut, good, values.reshape(width, lines), lengths.reshape(width, lines)


@kernel
def _column_at(at: int, likely: int, second: int) -> int:
    """The column whose name, its quotes and its colon stand at `at`, -1 if none do."""
    if byte_at(at) != _QUOTE:
        return -1
    if _is_word(at + 1, _WORDS, _MASKS, _SIZES, likely):
        column = likely
    elif _is_word(at + 1, _WORDS, _MASKS, _SIZES, second):
        column = second
    else:
        column = -1
        for other in range(len(_KINDS)):
            if _is_word(at + 1, _WORDS, _MASKS, _SIZES, other):
                column = other
    return column if column >= 0 and byte_at(at + _SIZES[column] + 2) == _COLON else -1


@kernel
def _is_word(at: int, words: Words, masks: Words, sizes: Ints, word: int) -> bool:
    """Whether a word and its closing quote stand at `at`."""
    return bool(
        (word_at(at) ^ words[word, 0]) & masks[word, 0] == 0
        and (sizes[word] < 8 or (word_at(at + 8) ^ words[word, 1]) & masks[word, 1] == 0)
        and (sizes[word] < 16 or (word_at(at + 16) ^ words[word, 2]) & masks[word, 2] == 0)
    )


@kernel
def _scan_value(at: int, kind: int) -> tuple[int, int, int]:
    """Where the value ends, what Scan keeps of it, and its length; an end of 0 if it is not what the column holds."""
    if byte_at(at) == 110:  # null
        return (
            (at + 4 if byte_at(at + 1) == 117 and byte_at(at + 2) == 108 and byte_at(at + 3) == 108 else 0),
            0,
            NO_VALUE,
        )
    if kind == _TEXT:
        end, escaped = _scan_text(at)
        return end + 1 if end else 0, at + 1, (end - at - 1) | escaped
    if kind == _REAL:
        end = _scan_real(at)
        return end, at, end - at
    end, number = _scan_whole(at)
    if (kind == _TIME and not 0 <= number <= LAST_MOMENT_US) or (kind == _SMALL and not -(2**31) <= number < 2**31):
        end = 0
    return end, number, end - at


@kernel
def _scan_text(at: int) -> tuple[int, int]:
    """Where the closing quote of the string at `at` stands, 0 for what is none; ESCAPED or 0."""
    if byte_at(at) != _QUOTE:
        return 0, 0
    escaped = 0
    at += 1
    while True:
        special = _specials(word_at(at))
        while special == 0:
            at += 8
            special = _specials(word_at(at))
        at += _first(special)
        byte = byte_at(at)
        if byte == _QUOTE:
            return at, escaped
        if byte == _BACKSLASH:
            escaped = ESCAPED
            size = _escape(at)[1]
            at = at + size if size else 0
        else:
            at = _after_character(at)
        if at == 0:
            return 0, 0


@kernel
def _specials(word: np.uint64) -> np.uint64:
    """The high bit of each byte that does not stand for itself in a string: quote, backslash, control, beyond ASCII.

    Exact up to and including the first one; a borrow may mark bytes above it. After haszero and hasless of "Bit Twiddling Hacks".
    """
    quote, backslash = word ^ (_ONES * np.uint64(_QUOTE)), word ^ (_ONES * np.uint64(_BACKSLASH))
    control = word - _ONES * np.uint64(32)
    return (word | (((quote - _ONES) | (backslash - _ONES) | control) & ~word)) & _HIGHS


@kernel
def _first(marks: np.uint64) -> int:
    """Number of the lowest byte that is marked in its high bit."""
    below = (marks & (~marks + np.uint64(1))) - np.uint64(1)
    return np.int64(((below & _ONES) * _ONES) >> np.uint64(56)) - 1  # type: ignore[return-value]


@kernel
def _after_character(at: int) -> int:
    """Behind a character of two to four bytes of UTF-8 (RFC 3629, section 4), 0 if it is none."""
    lead, low, high = byte_at(at), 0x80, 0xBF
    if 0xC2 <= lead <= 0xDF:
        more = 1
    elif 0xE0 <= lead <= 0xEF:
        more = 2
        low, high = (0xA0 if lead == 0xE0 else low), (0x9F if lead == 0xED else high)
    elif 0xF0 <= lead <= 0xF4:
        more = 3
        low, high = (0x90 if lead == 0xF0 else low), (0x8F if lead == 0xF4 else high)
    else:
        return 0
    if not low <= byte_at(at + 1) <= high:
        return 0
    for i in range(2, more + 1):
        if not 0x80 <= byte_at(at + i) <= 0xBF:
            return 0
    return at + more + 1


@kernel
def _after_digits(at: int) -> int:
    while 48 <= byte_at(at) <= 57:
        at += 1
    return at


@kernel
def _scan_whole(at: int) -> tuple[int, int]:
    """Where an integer of at most 18 digits ends, and what it is; 0 for what is none."""
    start = at + 1 if byte_at(at) == _MINUS else at
    end, number = start, 0
    while 48 <= byte_at(end) <= 57:
        number = number * 10 + (byte_at(end) - 48)
        end += 1
    sound = start < end <= start + 18 and (byte_at(start) != 48 or end == start + 1)
    return (end if sound else 0), (number if start == at else -number)


@kernel
def _scan_real(at: int) -> int:
    """Where a number ends, 0 for what is none, or not below 1e308."""
    start = at + 1 if byte_at(at) == _MINUS else at
    at = _after_digits(start)
    magnitude = at - start - 1
    if magnitude < 0 or (magnitude > 0 and byte_at(start) == 48):
        return 0
    if byte_at(at) == _POINT:
        start = at + 1
        at = _after_digits(start)
        if at == start:
            return 0
    if byte_at(at) | 32 == 101:  # e
        sign = byte_at(at + 1)
        end, exponent = _scan_exponent(at + 2 if sign == _MINUS or sign == 43 else at + 1)
        at, magnitude = end, magnitude + (-exponent if sign == _MINUS else exponent)
    return at if magnitude <= _LARGEST_EXPONENT else 0


@kernel
def _scan_exponent(at: int) -> tuple[int, int]:
    end = _after_digits(at)
    exponent = 0
    for i in range(at, end):
        exponent = min(exponent * 10 + (byte_at(i) - 48), 1_000_000)
    return (end if end > at else 0), exponent


@kernel
def _is_record(start: int, values: Ints, lengths: Lengths, line: int, lines: int) -> bool:
    """Whether a line's values are what every engine relies on."""
    for column in _REQUIRED:
        if lengths[column * lines + line] == NO_VALUE:
            return False
    for column in _BOUNDED:
        length = lengths[column * lines + line]
        if length != NO_VALUE and length & ~ESCAPED > MAX_TEXT_BYTES:
            return False
    version = _VERSION * lines + line
    if lengths[version] != NO_VALUE and not 1 <= values[version] <= SCHEMA_VERSION:
        return False
    for code in range(len(_NEEDS_ITEM)):
        if _is_word(start + values[_TYPE * lines + line], _TYPE_WORDS, _TYPE_MASKS, _TYPE_SIZES, code):
            return lengths[_ITEM * lines + line] != NO_VALUE or not _NEEDS_ITEM[code]
    return False


@kernel
def _copy_texts(payload: Bytes, begins: Ints, lengths: Lengths, cut: Ints, out: Bytes) -> None:
    start = address_of(payload)
    to = 0
    for i in range(len(begins)):
        cut[i] = to
        if lengths[i] == NO_VALUE:
            continue
        at = start + begins[i]
        end = at + (lengths[i] & ~ESCAPED)
        if lengths[i] & ESCAPED == 0:
            for j in range(end - at):
                out[np.uint64(to + j)] = byte_at(at + j)
            to += end - at
            continue
        while at < end:
            byte, size = byte_at(at), 1
            if byte == _BACKSLASH:
                byte, size = _escape(at)
            out[to] = byte
            to += 1
            at += size
    cut[len(begins)] = to


@kernel
def _escape(at: int) -> tuple[int, int]:
    """The byte that an escape stands for and the escape's size; size 0 for one that is left to the full parser."""
    kind = byte_at(at + 1)
    if kind in (_QUOTE, _BACKSLASH, _SLASH):
        return kind, 2
    if kind == 98:
        return 8, 2
    if kind == 102:
        return 12, 2
    if kind == 110:
        return 10, 2
    if kind == 114:
        return 13, 2
    if kind == 116:
        return 9, 2
    if kind == 117 and byte_at(at + 2) == 48 and byte_at(at + 3) == 48:  # \u00XX
        high, low = _hex_digit(byte_at(at + 4)), _hex_digit(byte_at(at + 5))
        if 0 <= high < 8 and low >= 0:
            return 16 * high + low, 6
    return 0, 0


@kernel
def _hex_digit(byte: int) -> int:
    if 48 <= byte <= 57:
        return byte - 48
    byte |= 32
    return byte - 87 if 97 <= byte <= 102 else -1


@kernel
def _parse_reals(payload: Bytes, begins: Ints, lengths: Lengths, out: npt.NDArray[np.float64]) -> Ints:
    """Numbers of one column; returns the rows that it leaves to Python's own `float`.

    Exact where digits and power of ten are exact themselves: below 2^53 and 10^22 (Clinger 1990, the fast path).
    """
    start = address_of(payload)
    hard = np.empty(len(begins), np.int64)
    count = 0
    for i in range(len(begins)):
        if lengths[i] == NO_VALUE:
            out[i] = np.nan
            continue
        digits, power, exact = _digits(start + begins[i], start + begins[i] + lengths[i])
        if exact:
            number = digits / _TENS[-power] if power < 0 else digits * _TENS[power]
            out[i] = -number if byte_at(start + begins[i]) == _MINUS else number
        else:
            hard[count] = i
            count += 1
    return hard[:count]


@kernel
def _digits(at: int, end: int) -> tuple[int, int, bool]:
    """A number without exponent as digits times a power of ten, and whether both are exact in a float."""
    digits, power, seen_point = 0, 0, False
    if byte_at(at) == _MINUS:
        at += 1
    for i in range(at, end):
        byte = byte_at(i)
        if byte == _POINT:
            seen_point = True
        elif 48 <= byte <= 57 and digits < 2**53 // 10:
            digits = digits * 10 + (byte - 48)
            power -= seen_point
        else:
            return 0, 0, False
    return digits, power, power >= -22
