"""Payloads of the log to columns: compiled code takes the canonical lines, a full JSON parser judges the others, one by one.

What a line becomes depends on the line alone, never on its neighbours, so that every reader of the log sees the same events.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa

from headrace import names
from headrace.arrays import Ints
from headrace.events import MAX_TEXT_BYTES, NEEDS_ITEM, RECORD_SCHEMA, SCHEMA_VERSION
from headrace.record_lines import COLUMNS, LAST_MOMENT_US, NO_VALUE, PADDING, Scan, reals, scan, texts

_REQUIRED: Final = ("event_id", "type", "user_key", "timestamp", "received_at")
_BOUNDED: Final = ("event_id", "user_key", "item_id")
_REAL_BOUND: Final = 1e308


@dataclass(frozen=True)
class BadRecord:
    """A line of a log entry that is no event: goes to the dead letters."""

    index: int
    reason: str
    raw: bytes


@dataclass(frozen=True)
class Decoded:
    """Records of several payloads, in order. `payload` and `index`, both (rows,): which payload a row is from, and its line there."""

    columns: dict[str, pa.Array]
    payload: Ints
    index: Ints
    bad: list[tuple[int, BadRecord]]
    """With the number of the payload that the line is from."""


def decode_payload(payload: bytes) -> tuple[pa.Table, list[BadRecord]]:
    """Columns of one payload, and the lines that are no event.

    The table has `RECORD_SCHEMA` and a column `log_index`, the line's number. Columns that a record lacks are null, so
    an older version of the contract decodes.
    """
    decoded = decode([payload])
    table = pa.table(
        {name: decoded.columns[name].cast(RECORD_SCHEMA.field(name).type) for name in COLUMNS}, RECORD_SCHEMA
    )
    index = pa.array(decoded.index, pa.int32())
    return table.append_column(pa.field(names.LOG_INDEX, pa.int32()), index), [record for _, record in decoded.bad]


def decode(payloads: Sequence[bytes], columns: Sequence[str] = COLUMNS) -> Decoded:
    """The named record columns of all payloads, joined; every line is judged by all of its columns."""
    joined = b"".join([part for payload in payloads for part in (payload, b"\n")] + [PADDING])
    found = scan(joined)
    bad: dict[int, tuple[str, bytes]] = {}
    starts = np.cumsum([0, *(len(payload) + 1 for payload in payloads)])
    first_lines = np.searchsorted(found.cut, starts)
    payload_of = np.repeat(np.arange(len(payloads)), np.diff(first_lines))
    index = np.arange(len(payload_of)) - first_lines[payload_of]
    if not found.good.all():
        joined, bad = _read_the_others(joined, found)
        found = scan(joined)
        assert int(found.good.sum()) + len(bad) == len(index), "a record in canonical form was not taken"
    good = found.good
    kept = slice(None) if good.all() else good
    places = {name: COLUMNS.index(name) for name in columns}
    return Decoded(
        {name: _column(name, joined, found.values[c, kept], found.lengths[c, kept]) for name, c in places.items()},
        payload_of[kept],
        index[kept],
        [(int(payload_of[line]), BadRecord(int(index[line]), reason, raw)) for line, (reason, raw) in bad.items()],
    )


def _read_the_others(joined: bytes, found: Scan) -> tuple[bytes, dict[int, tuple[str, bytes]]]:
    """The payload with its unusual records in canonical form, and why other lines are none: {line: (reason, line)}."""
    pieces, bad, done = [], {}, 0
    for line in np.flatnonzero(~found.good).tolist():
        start, end = int(found.cut[line]), int(found.cut[line + 1]) - 1
        raw = joined[start:end]
        pieces.append(joined[done:start])
        try:
            pieces.append(canonical(raw))
        except ValueError as error:
            bad[line] = (str(error).splitlines()[0], raw)
        done = end
    return b"".join([*pieces, joined[done:]]), bad


def canonical(line: bytes) -> bytes:
    """The line as `headrace.record_lines` takes it. Raises ValueError if it is no record, with the reason."""
    value = orjson.loads(line)
    if not isinstance(value, dict):
        raise ValueError(f"not an object but {type(value).__name__}")
    version = value.get("schema_version")
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise ValueError(
            f"schema_version {version} is newer than {SCHEMA_VERSION}, which this process knows: update it"
        )
    record = {name: value[name] for name in COLUMNS if value.get(name) is not None}
    for name, item in record.items():
        _check_value(name, item)
    for name in _REQUIRED:
        if name not in record:
            raise ValueError(f"{name} is missing")
    for name in _BOUNDED:
        if len(str(record.get(name, "")).encode()) > MAX_TEXT_BYTES:
            raise ValueError(f"{name} is longer than {MAX_TEXT_BYTES} bytes")
    if record["type"] not in names.RECORD_TYPES:
        raise ValueError(f"type {record['type'][:64]!r} is unknown")
    if (record["type"] in NEEDS_ITEM or record["type"] in names.ITEM_OPERATIONS) and "item_id" not in record:
        raise ValueError(f"item_id is needed for type {record['type']}")
    return orjson.dumps(record)


def _check_value(name: str, value: Any) -> None:
    """Raises ValueError unless a value is what its column holds."""
    kind = RECORD_SCHEMA.field(name).type
    if pa.types.is_string(kind):
        sound, wanted = isinstance(value, str), "a string"
    elif pa.types.is_floating(kind):
        sound, wanted = _is_number(value, float) and abs(value) < _REAL_BOUND, "a number below 1e308"
    elif pa.types.is_timestamp(kind):
        sound, wanted = _is_number(value) and 0 <= value <= LAST_MOMENT_US, "Unix microseconds between 1970 and 9999"
    elif name == "schema_version":
        sound, wanted = _is_number(value) and value >= 1, "a version from 1"
    else:
        bound = 2**31 if kind == pa.int32() else 10**18
        sound, wanted = _is_number(value) and -bound < value < bound, f"a whole number below {bound}"
    if not sound:
        raise ValueError(f"{name} is {str(value)[:64]!r} ({type(value).__name__}), not {wanted}")


def _is_number(value: Any, *also: type) -> bool:
    return isinstance(value, (int, *also)) and not isinstance(value, bool)


def _column(name: str, payload: bytes, values: Ints, lengths: npt.NDArray[np.int32]) -> pa.Array:
    """One column of RECORD_SCHEMA (its strings large), from what `scan` kept of it."""
    kind = RECORD_SCHEMA.field(name).type
    null = lengths == NO_VALUE
    if name == "schema_version":
        values, null = np.where(null, SCHEMA_VERSION, values), np.zeros_like(null)
    buffers: tuple[npt.NDArray[Any], ...]
    if pa.types.is_string(kind):
        kind, buffers = pa.large_string(), texts(payload, values, lengths)
    elif pa.types.is_floating(kind):
        buffers = (reals(payload, values, lengths),)
    else:
        buffers = (values.astype(np.int32 if kind == pa.int32() else np.int64, copy=False),)
    valid = pa.py_buffer(np.packbits(~null, bitorder="little")) if null.any() else None
    return pa.Array.from_buffers(kind, len(values), [valid, *map(pa.py_buffer, buffers)])
