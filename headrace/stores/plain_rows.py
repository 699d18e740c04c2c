"""Packed rows of plain feature views: any Feast value type, fixed places for all but the bytes, read as columns.

    row = u64 fingerprint | i64be timestamp | i64be created | u8 present, a field | 8 bytes a number | u32 end, another field | bodies

The two times are big-endian so that the server's script can compare them. `ends` count from where the bodies begin, in the order of
the fields. Times in Unix microseconds.
"""

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from itertools import pairwise
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import xxhash

from headrace.aggregates.rows import StateMismatchError
from headrace.arrays import Bytes, Ints, Mask
from headrace.kernel import kernel
from headrace.stores.online_raw import NO_SUCH_KEY, RawRows

INTEGERS: Final = frozenset({"INT32", "INT64", "UNIX_TIMESTAMP", "BOOL"})
FLOATS: Final = frozenset({"FLOAT", "DOUBLE"})
NUMBERS: Final = INTEGERS | FLOATS
STRING: Final = "STRING"
UNIX_TIMESTAMP: Final = "UNIX_TIMESTAMP"
FORMAT: Final = 2
"""Part of every fingerprint: raise it when rows are laid out another way."""

_TIMES = struct.Struct(">qq")
_OTHER_SCHEMA: Final = "a stored row of view '{}' has another schema: materialize the view again"
_DAMAGED: Final = "a stored row of view '{}' is damaged: materialize the view again"


class FeastValue(Protocol):
    """What is used of Feast's `Value` message."""

    string_val: str

    def WhichOneof(self, oneof_group: str) -> str | None: ...
    def SerializeToString(self) -> bytes: ...


class RowValueError(ValueError):
    """A value that does not fit the type of its field."""


@dataclass(frozen=True)
class PlainLayout:
    """How one plain view's rows are packed. `fields` are (name, name of the Feast value type) in the order of the view."""

    view: str
    fields: tuple[tuple[str, str], ...]
    ttl_us: int | None = None

    @cached_property
    def fingerprint(self) -> int:
        return int(xxhash.xxh64_intdigest(repr((FORMAT, self.view, self.fields)).encode()))

    @cached_property
    def numbers(self) -> tuple[str, ...]:
        return tuple(name for name, kind in self.fields if kind in NUMBERS)

    @cached_property
    def others(self) -> tuple[str, ...]:
        """Fields whose values vary in length."""
        return tuple(name for name, kind in self.fields if kind not in NUMBERS)

    @cached_property
    def number_places(self) -> dict[str, int]:
        """Where each number comes among the numbers."""
        return {name: place for place, name in enumerate(self.numbers)}

    @cached_property
    def numbers_at(self) -> int:
        """Where the numbers begin in a row."""
        return self.dtype.itemsize - 8 * len(self.numbers) - 4 * len(self.others)

    @cached_property
    def dtype(self) -> np.dtype[np.void]:
        """What every row begins with."""
        kinds = dict(self.fields)
        return np.dtype([
            ("@fingerprint", "<u8"), ("@timestamp", ">i8"), ("@created", ">i8"), ("@present", "u1", (len(self.fields),)),
            *((name, "<i8" if kinds[name] in INTEGERS else "<f8") for name in self.numbers),
            ("@ends", "<u4", (len(self.others),)),
        ])  # fmt: skip

    def place(self, name: str) -> int:
        """The place of a field among all."""
        return self._places[name]

    def pack(self, values: Mapping[str, FeastValue], timestamp_us: int, created_us: int) -> bytes:
        """One row. Fields that are missing, or hold no value, are null. Raises RowValueError."""
        present, numbers, ends, bodies = bytearray(len(self.fields)), [], [], []
        end = 0
        for index, (name, numeric) in enumerate(self._packing):
            value = values.get(name)
            which = value.WhichOneof("val") if value is not None else None
            here = present[index] = which is not None and which != "null_val"
            if numeric:
                numbers.append(getattr(value, which) if here else 0)  # type: ignore[arg-type]
                continue
            if here:
                body = value.string_val.encode() if which == "string_val" else value.SerializeToString()  # type: ignore[union-attr]
                bodies.append(body)
                end += len(body)
            ends.append(end)
        try:
            rest = self._record.pack(*numbers, *ends)
        except struct.error as error:
            raise RowValueError(self._misfit(values)) from error
        return b"".join((self._head, _TIMES.pack(timestamp_us, created_us), present, rest, *bodies))

    @cached_property
    def is_simple(self) -> bool:
        """Whether all values are numbers or strings: then one row can be read alone, by `row`."""
        return all(kind == STRING or (kind in NUMBERS and kind != UNIX_TIMESTAMP) for _, kind in self.fields)

    def row(self, raw: bytes | None) -> "OnePlainRow":
        """One row as fetched, of a layout that is simple. Raises StateMismatchError as `rows` does."""
        return OnePlainRow(self, raw)

    def rows(self, raws: RawRows | Sequence[bytes | None]) -> "PlainRows":
        """Rows as fetched, ready to read. Raises StateMismatchError on a row of another definition."""
        return PlainRows(self, raws if isinstance(raws, RawRows) else RawRows.join(raws))

    @cached_property
    def _places(self) -> dict[str, int]:
        return {name: index for index, (name, _) in enumerate(self.fields)}

    @cached_property
    def _head(self) -> bytes:
        return self.fingerprint.to_bytes(8, "little")

    @cached_property
    def _packing(self) -> tuple[tuple[str, bool], ...]:
        return tuple((name, kind in NUMBERS) for name, kind in self.fields)

    @cached_property
    def _record(self) -> struct.Struct:
        """Numbers and ends."""
        kinds = dict(self.fields)
        letters = ["q" if kinds[name] in INTEGERS else "d" for name in self.numbers]
        return struct.Struct(f"<{''.join(letters)}{len(self.others)}I")

    def _misfit(self, values: Mapping[str, FeastValue]) -> str:
        kinds = {name: kind for name, kind in self.fields if kind in NUMBERS}
        given = {name: values[name].WhichOneof("val") for name in kinds if name in values}
        return f"view '{self.view}': the fields are {kinds}, the values came as {given}; correct the view's schema or the rows"


class OnePlainRow:
    """One row, read like PlainRows of one: a request's, for which columns cost more than the values."""

    def __init__(self, layout: PlainLayout, raw: bytes | None) -> None:
        self.layout = layout
        self._timestamp_us = 0
        self._values: dict[str, list[Any]] = {name: [None] for name, _ in layout.fields}
        if raw is not None:
            self._read(raw)

    def _read(self, raw: bytes) -> None:
        layout = self.layout
        if raw[:8] != layout._head:
            raise StateMismatchError(_OTHER_SCHEMA.format(layout.view))
        fields_at = 8 + _TIMES.size
        numbers_at = fields_at + len(layout.fields)
        bodies_at = numbers_at + layout._record.size
        if len(raw) < bodies_at:
            raise StateMismatchError(_DAMAGED.format(layout.view))
        self._timestamp_us, _ = _TIMES.unpack_from(raw, 8)
        found = layout._record.unpack_from(raw, numbers_at)
        numbers, ends = iter(found[: len(layout.numbers)]), [0, *found[len(layout.numbers) :]]
        if len(raw) != bodies_at + ends[-1] or ends != sorted(ends):
            raise StateMismatchError(_DAMAGED.format(layout.view))
        texts = iter(pairwise(ends))
        for (name, kind), here in zip(layout.fields, raw[fields_at:numbers_at], strict=True):
            if kind in NUMBERS:
                number = next(numbers)
                value: Any = bool(number) if kind == "BOOL" else number
            else:
                start, end = next(texts)
                value = raw[bodies_at + start : bodies_at + end].decode()
            if here:
                self._values[name] = [value]

    def values(self, t_us: int | None = None) -> dict[str, list[Any]]:
        """Each field's value in a list of one, None for null. Past the view's TTL at `t_us` everything is null."""
        ttl_us = self.layout.ttl_us
        if ttl_us is not None and t_us is not None and t_us - self._timestamp_us > ttl_us:
            return {name: [None] for name in self._values}
        return self._values


class PlainRows:
    """Rows of one plain view, fetched at one moment. Columns have shape (n,)."""

    def __init__(self, layout: PlainLayout, raws: RawRows) -> None:
        self.layout = layout
        self._raws = raws
        records = np.zeros((len(raws), layout.dtype.itemsize), np.uint8)
        _copy_records(raws.buffer, raws.starts, raws.lengths, records)
        self._bytes = records
        self._records = records.view(layout.dtype)[:, 0]
        self._check()

    def __len__(self) -> int:
        return len(self._raws)

    def timestamps_us(self) -> list[int | None]:
        """Time of each row, None where there is none."""
        times = self._records["@timestamp"].tolist()
        return [at if here else None for at, here in zip(times, self._raws.found.tolist(), strict=True)]

    def expired(self, t_us: int | None) -> Mask:
        """Rows past the view's TTL at `t_us`. Rows that do not exist are not."""
        if self.layout.ttl_us is None or t_us is None:
            return np.zeros(len(self), np.bool_)
        age = t_us - self._records["@timestamp"].astype(np.int64)
        return np.asarray((age > self.layout.ttl_us) & self._raws.found)

    def present(self, t_us: int | None = None) -> Mask:
        """Which values are there at `t_us`: not null, their row not past the TTL. Shape (n, fields)."""
        return np.asarray((self._records["@present"] != 0) & ~self.expired(t_us)[:, None])

    def numbers(self, name: str) -> npt.NDArray[Any]:
        """A column of numbers, 0 where there is none. int64 or float64."""
        return np.asarray(self._records[name])

    @property
    def buffer(self) -> Bytes:
        """What the places of `bodies` are in."""
        return self._raws.buffer

    def bits(self, names: Sequence[str]) -> npt.NDArray[np.uint64]:
        """Numbers as they are stored, of fields that are none anything. Shape (len(names), n)."""
        first = self.layout.numbers_at
        numbers = self._bytes[:, first : first + 8 * len(self.layout.numbers)].copy().view(np.uint64)
        if not self.layout.numbers:
            return np.zeros((len(names), len(self)), np.uint64)
        place = self.layout.number_places
        return numbers[:, [place.get(name, 0) for name in names]].T

    def bodies(self, names: Sequence[str]) -> tuple[Ints, Ints]:
        """Where the bodies of fields begin and end in `buffer`: UTF-8 of strings, of all else but numbers Feast's own message.

        Shape (len(names), n) each; of numbers both are 0.
        """
        starts, ends = np.zeros((len(names), len(self)), np.int64), np.zeros((len(names), len(self)), np.int64)
        rows = [row for row, name in enumerate(names) if name in self.layout.others]
        if rows:
            places = [self.layout.others.index(names[row]) for row in rows]
            first = (self._raws.starts + self.layout.dtype.itemsize)[:, None]
            all_ends = self._records["@ends"] + first
            starts[rows] = np.concatenate([first, all_ends[:, :-1]], axis=1)[:, places].T
            ends[rows] = all_ends[:, places].T
        return starts, ends

    def texts(self, names: Sequence[str], present: Mask) -> list[list[str | None]]:
        """Columns of strings; `present` has the shape (len(names), n)."""
        starts, ends = self.bodies(names)
        offsets = np.zeros(starts.size + 1, np.int32)
        np.cumsum(np.where(present, ends - starts, 0), out=offsets[1:])
        data = np.empty(offsets[-1], np.uint8)
        _copy_texts(self.buffer, starts.ravel(), offsets, data)
        bits = np.packbits(present.ravel(), bitorder="little")
        texts = pa.StringArray.from_buffers(starts.size, pa.py_buffer(offsets), pa.py_buffer(data), pa.py_buffer(bits))
        flat: list[str | None] = texts.to_pylist()
        count = len(self)
        return [flat[column * count : (column + 1) * count] for column in range(len(names))]

    def messages(self, name: str, present: Mask) -> list[bytes | None]:
        """A column that is neither numbers nor strings: Feast's own messages, serialized."""
        starts, ends = self.bodies([name])
        return RawRows(self.buffer, starts[0], np.where(present, ends[0] - starts[0], NO_SUCH_KEY)).to_list()

    def values(self, t_us: int | None = None) -> dict[str, npt.NDArray[np.float64] | list[Any]]:
        """Each field's column: floats as an array with NaN for null, all else as a list with None for null.

        Python values are those of Feast's own `to_dict`. Past the view's TTL at `t_us` everything is null.
        """
        present = self.present(t_us)
        complete: list[bool] = np.asarray(present.all(axis=0)).tolist()
        strings = [index for index, (_, kind) in enumerate(self.layout.fields) if kind == STRING]
        texts = iter(self.texts([self.layout.fields[index][0] for index in strings], present.T[strings]))
        columns: dict[str, npt.NDArray[np.float64] | list[Any]] = {}
        for index, (name, kind) in enumerate(self.layout.fields):
            if kind == STRING:
                columns[name] = next(texts)
            elif kind in FLOATS:
                columns[name] = np.where(present[:, index], self.numbers(name), np.nan)
            elif kind in INTEGERS:
                found = _integers(self.numbers(name), kind)
                columns[name] = found if complete[index] else _nulled(found, present[:, index])
            else:
                columns[name] = _feast_values(self.messages(name, present[:, index]), kind)
        return columns

    def _check(self) -> None:
        found = self._raws.found
        foreign = found & (self._records["@fingerprint"] != self.layout.fingerprint)
        if foreign.any():
            raise StateMismatchError(_OTHER_SCHEMA.format(self.layout.view))
        size = self.layout.dtype.itemsize + (self._records["@ends"][:, -1] if self.layout.others else 0)
        backwards = (np.diff(self._records["@ends"].astype(np.int64), axis=1, prepend=0) < 0).any(axis=1)
        if (found & ((self._raws.lengths != size) | backwards)).any():
            raise StateMismatchError(_DAMAGED.format(self.layout.view))


def _integers(column: Ints, kind: str) -> list[Any]:
    if kind == "BOOL":
        return np.asarray(column != 0).tolist()  # type: ignore[no-any-return]
    found: list[Any] = column.tolist()
    return [datetime.fromtimestamp(seconds, tz=UTC) for seconds in found] if kind == UNIX_TIMESTAMP else found


def _nulled(values: list[Any], present: Mask) -> list[Any]:
    return [value if here else None for value, here in zip(values, present.tolist(), strict=True)]


def _feast_values(messages: Sequence[bytes | None], kind: str) -> list[Any]:
    """Python values of Feast's messages. Its import takes seconds: only views that have arrays, maps and the like pay."""
    from feast.protos.feast.types.Value_pb2 import Value
    from feast.type_map import feast_value_type_to_python_type
    from feast.value_type import ValueType

    return [
        None if message is None else feast_value_type_to_python_type(Value.FromString(message), ValueType[kind])
        for message in messages
    ]


@kernel
def _copy_records(buffer: Bytes, starts: Ints, lengths: Ints, records: Bytes) -> None:
    """The beginning of each row; zeros remain where there is none, or where it is cut short."""
    size = records.shape[1]
    for row in range(len(starts)):
        if lengths[row] >= size:
            records[row, :] = buffer[starts[row] : starts[row] + size]


@kernel
def _copy_texts(buffer: Bytes, starts: Ints, offsets: npt.NDArray[np.int32], data: Bytes) -> None:
    for place in range(len(starts)):
        length = offsets[place + 1] - offsets[place]
        data[offsets[place] : offsets[place + 1]] = buffer[starts[place] : starts[place] + length]
