"""Feast's `Value` messages, a column at a time, in the wire format of protobuf: building 25,000 of them one by one takes 30 ms.

A message is its fields one after another: `tag = number << 3 | kind`, then a varint (kind 0), 8 bytes (1), 4 bytes (5), or a length and
so many bytes (2). See https://protobuf.dev/programming-guides/encoding.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
from feast.protos.feast.serving.ServingService_pb2 import GetOnlineFeaturesResponse
from feast.protos.feast.types.Value_pb2 import Value

from headrace.kernel import kernel
from headrace.stores.online_raw import NO_SUCH_KEY, Bytes, Ints, RawRows
from headrace.stores.plain_rows import Mask

VARINT, EIGHT_BYTES, LENGTH, FOUR_BYTES = 0, 1, 2, 5
_ROOM: Final = 11
"""A tag, and the longest varint."""
_FIELDS: Final = {
    "INT32": "int32_val",
    "INT64": "int64_val",
    "UNIX_TIMESTAMP": "unix_timestamp_val",
    "BOOL": "bool_val",
    "FLOAT": "float_val",
    "DOUBLE": "double_val",
    "STRING": "string_val",
}
_KINDS: Final = {"FLOAT": FOUR_BYTES, "DOUBLE": EIGHT_BYTES, "STRING": LENGTH}
_VALUES: Final = GetOnlineFeaturesResponse.FeatureVector.DESCRIPTOR.fields_by_name["values"].number << 3 | LENGTH


@dataclass(frozen=True)
class ValueColumn:
    """A value for each of n entities: its message in the wire's format, no bytes for null."""

    messages: RawRows

    def value(self, entity: int) -> Value:
        message = self.messages.part(entity, entity + 1).to_list()[0]
        return Value() if message is None else Value.FromString(message)

    def vector(self, entities: Ints) -> bytes:
        """The field `values` of a FeatureVector with the values of these entities, in this order."""
        raws = self.messages
        lengths = np.maximum(raws.lengths, 0)[entities]
        out = np.empty(int(lengths.sum()) + len(entities) * _ROOM, np.uint8)
        return out[: _join(raws.buffer, raws.starts[entities], lengths, _VALUES, out)].tobytes()


def number_values(numbers: npt.NDArray[np.generic], present: Mask, kind: str) -> ValueColumn:
    """Values of a column of int64 or float64, null where not present. `kind` is the name of Feast's value type."""
    tag, wire = _tag(kind)
    bits = _BITS[wire](np.where(present, numbers, 0))
    out, lengths = np.empty((len(bits), _ROOM), np.uint8), np.empty(len(bits), np.int64)
    _write_numbers(bits, present, tag, wire, out, lengths)
    return ValueColumn(RawRows(out.ravel(), np.arange(len(bits)) * _ROOM, lengths))


def text_values(texts: RawRows) -> ValueColumn:
    """Values of a column of strings in UTF-8."""
    tag, _ = _tag("STRING")
    out = np.empty(int(np.maximum(texts.lengths, 0).sum()) + len(texts) * _ROOM, np.uint8)
    starts, lengths = np.empty(len(texts), np.int64), np.empty(len(texts), np.int64)
    _write_texts(texts.buffer, texts.starts, texts.lengths, tag, out, starts, lengths)
    return ValueColumn(RawRows(out, starts, lengths))


def message_values(values: Sequence[Value | None]) -> ValueColumn:
    """Values that are there already, None for null."""
    return ValueColumn(RawRows.join([None if value is None else value.SerializeToString() for value in values]))


def _tag(kind: str) -> tuple[int, int]:
    wire = _KINDS.get(kind, VARINT)
    number: int = Value.DESCRIPTOR.fields_by_name[_FIELDS[kind]].number
    assert number < 16, "a tag is one byte"
    return number << 3 | wire, wire


_BITS: Final = {
    VARINT: lambda numbers: numbers.astype(np.int64).view(np.uint64),
    EIGHT_BYTES: lambda numbers: numbers.astype(np.float64).view(np.uint64),
    FOUR_BYTES: lambda numbers: numbers.astype(np.float32).view(np.uint32).astype(np.uint64),
}


@kernel
def _write_numbers(
    bits: npt.NDArray[np.uint64], present: Mask, tag: int, wire: int, out: npt.NDArray[np.uint8], lengths: Ints
) -> None:
    for row in range(len(bits)):
        if not present[row]:
            lengths[row] = NO_SUCH_KEY
            continue
        out[row, 0] = tag
        if wire == VARINT:
            lengths[row] = _write_varint(bits[row], out[row], 1)
            continue
        width = 8 if wire == EIGHT_BYTES else 4
        for byte in range(width):
            out[row, 1 + byte] = (bits[row] >> np.uint64(8 * byte)) & np.uint64(255)
        lengths[row] = 1 + width


@kernel
def _write_texts(buffer: Bytes, begins: Ints, sizes: Ints, tag: int, out: Bytes, starts: Ints, lengths: Ints) -> None:
    at = 0
    for row in range(len(begins)):
        starts[row] = at
        if sizes[row] < 0:
            lengths[row] = NO_SUCH_KEY
            continue
        out[at] = tag
        at = _write_varint(np.uint64(sizes[row]), out, at + 1)
        out[at : at + sizes[row]] = buffer[begins[row] : begins[row] + sizes[row]]
        at += sizes[row]
        lengths[row] = at - starts[row]


@kernel
def _join(buffer: Bytes, starts: Ints, lengths: Ints, tag: int, out: Bytes) -> int:
    """Each message behind its tag and length; returns how many bytes of `out` are used."""
    at = 0
    for row in range(len(starts)):
        out[at] = tag
        at = _write_varint(np.uint64(lengths[row]), out, at + 1)
        out[at : at + lengths[row]] = buffer[starts[row] : starts[row] + lengths[row]]
        at += lengths[row]
    return at


@kernel
def _write_varint(value: np.uint64, out: Bytes, at: int) -> int:
    """Seven bits a byte, the lowest first; returns the place behind it."""
    while value >= np.uint64(128):
        out[at] = (value & np.uint64(127)) | np.uint64(128)
        value >>= np.uint64(7)
        at += 1
    out[at] = value
    return at + 1
