"""Packed rows of plain feature views: any Feast value type, numbers at fixed places, the newest write by (timestamp, created).

    row = u64 fingerprint | i64be timestamp | i64be created | u8 present, a field | 8 bytes a number | per other field: u32 length, bytes

The two times are big-endian so that the server's script can compare them. Times in Unix microseconds.
"""

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt
import xxhash

from headrace.aggregates.layout import StateMismatchError

_INTEGERS: Final = frozenset({"INT32", "INT64", "UNIX_TIMESTAMP", "BOOL"})
_FLOATS: Final = frozenset({"FLOAT", "DOUBLE"})
_NUMBERS: Final = _INTEGERS | _FLOATS
_U32 = struct.Struct("<I")


class FeastValue(Protocol):
    """What is used of Feast's `Value` message."""

    string_val: str

    def WhichOneof(self, oneof_group: str) -> str | None: ...
    def SerializeToString(self) -> bytes: ...


@dataclass(frozen=True)
class PlainLayout:
    """How one plain view's rows are packed. `fields` are (name, name of the Feast value type) in the order of the view."""

    view: str
    fields: tuple[tuple[str, str], ...]
    ttl_us: int | None = None

    @cached_property
    def fingerprint(self) -> int:
        return int(xxhash.xxh64_intdigest(repr((1, self.view, self.fields)).encode()))

    @cached_property
    def dtype(self) -> np.dtype[np.void]:
        head: list[tuple[str, str] | tuple[str, str, tuple[int]]] = [
            ("@fingerprint", "<u8"), ("@timestamp", ">i8"), ("@created", ">i8"), ("@present", "u1", (len(self.fields),)),
        ]  # fmt: skip
        numbers = [(name, "<i8" if kind in _INTEGERS else "<f8") for name, kind in self.fields if kind in _NUMBERS]
        return np.dtype([*head, *numbers])

    def pack(self, values: Mapping[str, FeastValue], timestamp_us: int, created_us: int) -> bytes:
        """One row. Fields that are missing, or hold no value, are null."""
        fixed = np.zeros((), self.dtype)
        fixed["@fingerprint"], fixed["@timestamp"], fixed["@created"] = self.fingerprint, timestamp_us, created_us
        parts: list[bytes] = []
        for index, (name, kind) in enumerate(self.fields):
            value = values.get(name)
            which = value.WhichOneof("val") if value is not None else None
            if value is None or which is None or which == "null_val":
                if kind not in _NUMBERS:
                    parts.append(_U32.pack(0))
                continue
            fixed["@present"][index] = True
            if kind in _NUMBERS:
                fixed[name] = getattr(value, which)
            else:
                body = value.string_val.encode() if which == "string_val" else value.SerializeToString()
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
            if kind in _NUMBERS:
                found: list[Any] = self._fixed[name].tolist()
                if kind == "BOOL":
                    found = [bool(value) for value in found]
            else:
                found = [
                    _python(body[other], kind) if here else None for body, here in zip(others, present, strict=True)
                ]
                other += 1
            columns[name] = [value if here else None for value, here in zip(found, present, strict=True)]
        return columns

    def present_at(self, t_us: int) -> list[bool]:
        """Which rows exist and are not past the view's TTL."""
        return [raw is not None and not gone for raw, gone in zip(self._raws, self._expired(t_us), strict=True)]

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


def _python(body: bytes, kind: str) -> Any:
    if kind == "STRING":
        return body.decode()
    # Arrays, maps and the like are kept as Feast's own message. Its import takes seconds: only views that have them pay.
    from feast.protos.feast.types.Value_pb2 import Value

    value = Value.FromString(body)
    which = value.WhichOneof("val")
    if which is None:
        return None
    found: Any = getattr(value, which)
    return list(found.val) if which.endswith(("_list_val", "_set_val")) else found
