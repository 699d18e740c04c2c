"""Feast's `Value` messages, all of a view at once, in the wire format of protobuf: 25,000 of them one by one take 30 ms to build.

A message is its fields one after another: `tag = number << 3 | kind`, then a varint (kind 0), 8 bytes (1), a length and so many bytes
(2), or 4 bytes (5). See https://protobuf.dev/programming-guides/encoding.
"""

from dataclasses import dataclass
from functools import cache
from typing import Final

import numpy as np
import numpy.typing as npt
from feast.protos.feast.serving.ServingService_pb2 import GetOnlineFeaturesResponse
from feast.protos.feast.types.Value_pb2 import Value

from headrace.arrays import Bytes, Ints
from headrace.kernel import kernel

NULL: Final = -1
"""Length of a value that is null."""
VARINT, EIGHT_BYTES, LENGTH, FOUR_BYTES = 0, 1, 2, 5
WHOLE: Final = 16
"""Not of protobuf: the bytes are the `Value` message itself."""
_ROOM: Final = 24
"""More than a tag, a length, a tag, and a length or a number take."""
_KINDS: Final = {
    "INT32": ("int32_val", VARINT),
    "INT64": ("int64_val", VARINT),
    "UNIX_TIMESTAMP": ("unix_timestamp_val", VARINT),
    "BOOL": ("bool_val", VARINT),
    "FLOAT": ("float_val", FOUR_BYTES),
    "DOUBLE": ("double_val", EIGHT_BYTES),
    "STRING": ("string_val", LENGTH),
}
_PADDED: Final = 5
"""Bytes of a length that is written once what it measures is there; a varint may be longer than it need be."""
_RESULTS: Final = GetOnlineFeaturesResponse.DESCRIPTOR.fields_by_name["results"].number << 3 | LENGTH
_VALUES: Final = GetOnlineFeaturesResponse.FeatureVector.DESCRIPTOR.fields_by_name["values"].number << 3 | LENGTH
Bits = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class ValueTable:
    """Values of k features of n entities.

    `kinds` are names of Feast's value types. Numbers are in `bits` (k, n): integers in two's complement, FLOAT and DOUBLE as the bits
    of a float64. All else lies in `buffer` from `starts` on, for `lengths` bytes (k, n): strings in UTF-8, values of other kinds as
    whole messages. A length of NULL means null, for numbers too.
    """

    kinds: tuple[str, ...]
    bits: Bits
    starts: Ints
    lengths: Ints
    buffer: Bytes

    def results(self, features: Ints, entities: Ints, shared: bytes) -> bytes:
        """The field `results` of a GetOnlineFeaturesResponse: a vector for each of `features`, with the values of `entities`.

        Both are places in the table; a feature of -1 is null throughout. `shared` is what every vector has besides its values.
        """
        wires, tags, singles = _plan(self.kinds)
        bits = self.bits.copy() if len(singles) else self.bits
        for row in singles:
            bits[row] = bits[row].view(np.float64).astype(np.float32).view(np.uint32)
        size = int(np.maximum(self.lengths, 0)[:, entities].sum()) if len(self.kinds) else 0
        out = np.empty(size + len(features) * (len(entities) * _ROOM + len(shared) + _ROOM), np.uint8)
        fields = np.array([_RESULTS, _VALUES], np.int64)
        end = _write(
            wires, tags, bits, self.starts, self.lengths, self.buffer, features, entities,
            np.frombuffer(shared, np.uint8), fields, out,
        )  # fmt: skip
        return out[:end].tobytes()


@cache
def _plan(kinds: tuple[str, ...]) -> tuple[Ints, Ints, list[int]]:
    """Of each kind how it is written and the byte that begins it; which are floats of 4 bytes."""
    wires = np.array([_KINDS[kind][1] if kind in _KINDS else WHOLE for kind in kinds], np.int64)
    numbers = [Value.DESCRIPTOR.fields_by_name[_KINDS[kind][0]].number if kind in _KINDS else 0 for kind in kinds]
    return wires, np.array(numbers, np.int64) << 3 | wires, np.flatnonzero(wires == FOUR_BYTES).tolist()


@kernel
def _write(
    wires: Ints,
    tags: Ints,
    bits: Bits,
    starts: Ints,
    lengths: Ints,
    buffer: Bytes,
    features: Ints,
    entities: Ints,
    shared: Bytes,
    fields: Ints,
    out: Bytes,
) -> int:
    """Vectors behind their field and length, values behind theirs; returns how many bytes of `out` are used."""
    at = 0
    for row in features:
        out[at] = fields[0]
        begin = at + 1 + _PADDED
        at = begin
        for entity in entities:
            out[at] = fields[1]
            at += 1
            if row < 0 or lengths[row, entity] < 0:
                out[at] = 0
                at += 1
            elif wires[row] == VARINT:
                number = bits[row, entity]
                out[at] = 1 + _varint_size(number)
                out[at + 1] = tags[row]
                at = _write_varint(number, out, at + 2)
            elif wires[row] == EIGHT_BYTES or wires[row] == FOUR_BYTES:
                width = 8 if wires[row] == EIGHT_BYTES else 4
                out[at], out[at + 1] = 1 + width, tags[row]
                at += 2
                for byte in range(width):
                    out[at + byte] = (bits[row, entity] >> np.uint64(8 * byte)) & np.uint64(255)
                at += width
            else:
                length = lengths[row, entity]
                if wires[row] == LENGTH:
                    at = _write_varint(np.uint64(1 + _varint_size(np.uint64(length)) + length), out, at)
                    out[at] = tags[row]
                    at += 1
                at = _write_varint(np.uint64(length), out, at)
                out[at : at + length] = buffer[starts[row, entity] : starts[row, entity] + length]
                at += length
        out[at : at + len(shared)] = shared
        at += len(shared)
        size = at - begin
        for byte in range(_PADDED):
            out[begin - _PADDED + byte] = size & 127 | (128 if byte < _PADDED - 1 else 0)
            size >>= 7
    return at


@kernel
def _varint_size(value: np.uint64) -> int:
    size = 1
    while value >= np.uint64(128):
        value >>= np.uint64(7)
        size += 1
    return size


@kernel
def _write_varint(value: np.uint64, out: Bytes, at: int) -> int:
    """Seven bits a byte, the lowest first; returns the place behind it."""
    while value >= np.uint64(128):
        out[at] = (value & np.uint64(127)) | np.uint64(128)
        value >>= np.uint64(7)
        at += 1
    out[at] = value
    return at + 1
