"""Feast's `Value` messages, all of a view at once, in the wire format of protobuf: 25,000 of them one by one take 30 ms to build.

A message is its fields one after another: `tag = number << 3 | kind`, then a varint (kind 0), 8 bytes (1), a length and so many bytes
(2), or 4 bytes (5). See https://protobuf.dev/programming-guides/encoding.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Final

import numpy as np
import numpy.typing as npt
from feast.protos.feast.serving.ServingService_pb2 import GetOnlineFeaturesResponse
from feast.protos.feast.types.Value_pb2 import Value

from headrace.kernel import kernel
from headrace.stores.online_raw import Bytes, Ints

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
_VALUES: Final = GetOnlineFeaturesResponse.FeatureVector.DESCRIPTOR.fields_by_name["values"].number << 3 | LENGTH
Bits = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class ValueTable:
    """Values of k features of n entities.

    `kinds` are names of Feast's value types. Numbers are in `bits` (k, n): integers in two's complement, FLOAT and DOUBLE as the bits
    of a float64. All else lies in `buffer` from `starts` on, for `lengths` bytes (k, n): strings in UTF-8, values of other kinds as
    whole messages. A length of NULL means null, for numbers too.
    """

    kinds: Sequence[str]
    bits: Bits
    starts: Ints
    lengths: Ints
    buffer: Bytes

    def vectors(self, entities: Ints) -> list[bytes]:
        """Of each feature the field `values` of a FeatureVector: the values of these entities, in this order."""
        wires = np.array([_KINDS[kind][1] if kind in _KINDS else WHOLE for kind in self.kinds], np.int64)
        tags = np.array([_tag(kind) for kind in self.kinds], np.int64)
        bits = self.bits
        for row in np.flatnonzero(wires == FOUR_BYTES):
            bits = bits.copy()
            bits[row] = bits[row].view(np.float64).astype(np.float32).view(np.uint32)
        size = int(np.maximum(self.lengths, 0)[:, entities].sum()) + len(self.kinds) * len(entities) * _ROOM
        out, ends = np.empty(size, np.uint8), np.empty(len(self.kinds) + 1, np.int64)
        _write(wires, tags, bits, self.starts, self.lengths, self.buffer, entities, _VALUES, out, ends)
        data, cuts = out[: ends[-1]].tobytes(), ends.tolist()
        return [data[cuts[row] : cuts[row + 1]] for row in range(len(self.kinds))]


@cache
def _tag(kind: str) -> int:
    """The one byte that begins a Value of this kind."""
    if kind not in _KINDS:
        return 0
    name, wire = _KINDS[kind]
    return int(Value.DESCRIPTOR.fields_by_name[name].number) << 3 | wire


@kernel
def _write(
    wires: Ints,
    tags: Ints,
    bits: Bits,
    starts: Ints,
    lengths: Ints,
    buffer: Bytes,
    entities: Ints,
    field: int,
    out: Bytes,
    ends: Ints,
) -> None:
    """Each value behind `field` and its length; those of feature f end at `ends[f + 1]`."""
    at = ends[0] = 0
    for row in range(len(wires)):
        for entity in entities:
            out[at] = field
            at += 1
            length = lengths[row, entity]
            if length < 0:
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
                if wires[row] == LENGTH:
                    at = _write_varint(np.uint64(1 + _varint_size(np.uint64(length)) + length), out, at)
                    out[at] = tags[row]
                    at += 1
                at = _write_varint(np.uint64(length), out, at)
                start = starts[row, entity]
                out[at : at + length] = buffer[start : start + length]
                at += length
        ends[row + 1] = at


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
