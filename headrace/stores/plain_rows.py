"""Packed rows of plain feature views: any Feast value type, numbers at fixed places, the newest write by (timestamp, created).

    row = u64 fingerprint | i64be timestamp | i64be created | u8 present, a field | 8 bytes a number | per other field: u32 length, bytes

The two times are big-endian so that the server's script can compare them. Times in Unix microseconds.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import xxhash
from feast import FeatureView, ValueType
from feast.protos.feast.types.Value_pb2 import Value as ValueProto

from headrace.aggregates.layout import StateMismatchError

_INTEGERS: Final = {
    ValueType.INT32: "int32_val",
    ValueType.INT64: "int64_val",
    ValueType.UNIX_TIMESTAMP: "unix_timestamp_val",
    ValueType.BOOL: "bool_val",
}
_FLOATS: Final = {ValueType.FLOAT: "float_val", ValueType.DOUBLE: "double_val"}
_U32 = struct.Struct("<I")


@dataclass(frozen=True)
class PlainLayout:
    """How one plain view's rows are packed. `fields` are (name, Feast value type) in the order of the view."""

    view: str
    fields: tuple[tuple[str, ValueType], ...]
    ttl_us: int | None = None

    @classmethod
    def of(cls, view: FeatureView) -> "PlainLayout":
        entity_columns = {column.name for column in view.entity_columns}
        fields = tuple((f.name, f.dtype.to_value_type()) for f in view.features if f.name not in entity_columns)
        return cls(view.name, fields, int(view.ttl.total_seconds() * 1_000_000) or None if view.ttl else None)

    @cached_property
    def fingerprint(self) -> int:
        return int(
            xxhash.xxh64_intdigest(repr((1, self.view, [(name, kind.name) for name, kind in self.fields])).encode())
        )

    @cached_property
    def dtype(self) -> np.dtype[np.void]:
        head: list[tuple[str, str] | tuple[str, str, tuple[int]]] = [
            ("@fingerprint", "<u8"), ("@timestamp", ">i8"), ("@created", ">i8"), ("@present", "u1", (len(self.fields),)),
        ]  # fmt: skip
        numbers = [
            (name, "<i8" if kind in _INTEGERS else "<f8")
            for name, kind in self.fields
            if kind in _INTEGERS or kind in _FLOATS
        ]
        return np.dtype([*head, *numbers])

    def pack(self, values: dict[str, ValueProto], timestamp_us: int, created_us: int) -> bytes:
        """One row. Fields that are missing, or hold no value, are null."""
        fixed = np.zeros((), self.dtype)
        fixed["@fingerprint"], fixed["@timestamp"], fixed["@created"] = self.fingerprint, timestamp_us, created_us
        parts: list[bytes] = []
        for index, (name, kind) in enumerate(self.fields):
            value = values.get(name)
            which = value.WhichOneof("val") if value is not None else None
            present = which not in (None, "null_val")
            fixed["@present"][index] = present
            if kind in _INTEGERS or kind in _FLOATS:
                if present:
                    fixed[name] = getattr(value, which)
            else:
                body = (
                    (value.string_val.encode() if which == "string_val" else value.SerializeToString())
                    if present
                    else b""
                )
                parts += [_U32.pack(len(body)), body]
        return fixed.tobytes() + b"".join(parts)

    def rows(self, raws: Sequence[bytes | None]) -> "PlainRows":
        """Rows as fetched, ready to read. Raises StateMismatchError on a row of another definition."""
        return PlainRows(self, raws)


class PlainRows:
    """Rows of one plain view, fetched at one moment."""

    def __init__(self, layout: PlainLayout, raws: Sequence[bytes | None]) -> None:
        self.layout = layout
        self._raws = list(raws)
        size = layout.dtype.itemsize
        empty = np.zeros((), layout.dtype).tobytes()
        expected = layout.fingerprint.to_bytes(8, "little")
        for raw in self._raws:
            if raw is not None and (len(raw) < size or raw[:8] != expected):
                raise StateMismatchError(
                    f"a stored row of view '{layout.view}' has another schema: materialize the view again"
                )
        self._fixed: npt.NDArray[np.void] = np.frombuffer(
            b"".join(empty if raw is None else raw[:size] for raw in self._raws), layout.dtype
        )

    def __len__(self) -> int:
        return len(self._raws)

    def timestamps_us(self) -> list[int | None]:
        """Time of each row, None where there is none."""
        return [None if raw is None else int(t) for raw, t in zip(self._raws, self._fixed["@timestamp"], strict=True)]

    def values(self, t_us: int | None = None) -> dict[str, list[Any]]:
        """Python values by field, None for null; past the view's TTL at `t_us` everything is null."""
        gone = self._expired(t_us)
        others = [self._others(raw) for raw in self._raws]
        columns: dict[str, list[Any]] = {}
        other = 0
        for index, (name, kind) in enumerate(self.layout.fields):
            present = (self._fixed["@present"][:, index] != 0) & ~gone
            if kind in _INTEGERS or kind in _FLOATS:
                found: list[Any] = self._fixed[name].tolist()
                if kind is ValueType.BOOL:
                    found = [bool(value) for value in found]
            else:
                found = [_python(body[other], kind) if body else None for body in others]
                other += 1
            columns[name] = [value if here else None for value, here in zip(found, present, strict=True)]
        return columns

    def protos(self, t_us: int) -> list[dict[str, ValueProto] | None]:
        """Feast values of each row, None for a row that is missing or past the view's TTL."""
        gone = self._expired(t_us)
        return [
            None if raw is None or gone[row] else self._row_protos(row, self._others(raw))
            for row, raw in enumerate(self._raws)
        ]

    def _row_protos(self, row: int, others: list[bytes]) -> dict[str, ValueProto]:
        protos = {}
        rest = iter(others)
        for index, (name, kind) in enumerate(self.layout.fields):
            present = bool(self._fixed["@present"][row, index])
            if kind in _INTEGERS or kind in _FLOATS:
                field = (_INTEGERS | _FLOATS)[kind]
                protos[name] = ValueProto(**{field: self._fixed[name][row].item()}) if present else ValueProto()
            else:
                body = next(rest)
                protos[name] = _proto(body, kind) if present else ValueProto()
        return protos

    def _expired(self, t_us: int | None) -> npt.NDArray[np.bool_]:
        if self.layout.ttl_us is None or t_us is None:
            return np.zeros(len(self._raws), np.bool_)
        return np.asarray(t_us - self._fixed["@timestamp"].astype(np.int64) > self.layout.ttl_us)

    def _others(self, raw: bytes | None) -> list[bytes]:
        """Bodies of the fields that are no numbers."""
        if raw is None:
            return []
        offset, bodies = self.layout.dtype.itemsize, []
        while offset < len(raw):
            length = _U32.unpack_from(raw, offset)[0]
            bodies.append(raw[offset + 4 : offset + 4 + length])
            offset += 4 + length
        return bodies


def _proto(body: bytes, kind: ValueType) -> ValueProto:
    return ValueProto(string_val=body.decode()) if kind is ValueType.STRING else ValueProto.FromString(body)


def _python(body: bytes, kind: ValueType) -> Any:
    if kind is ValueType.STRING:
        return body.decode()
    value = ValueProto.FromString(body)
    which = value.WhichOneof("val")
    found = getattr(value, which) if which else None
    return list(found.val) if which and which.endswith(("_list_val", "_set_val")) else found
