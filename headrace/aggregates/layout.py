"""What a view's state looks like: fixed-width tiles first, then what varies in length. One packed row per (view, entity).

A *tile* holds what happened in one hop of event time. A ring of `window / hop + 1` tiles is all that any read at or after the
newest event can need: `[floor_to_hop(t - window), t)` touches no more tiles than that. Tile k lies at place k mod length;
`head` is the number of the newest tile, so older tiles are known by their distance from it.

    row = fixed part (one NumPy record) | per list: u16 count, entries | per session group: u16 count, intervals
    entry = i64 timestamp | u16 length, event_id | per column: its value (see `pack_value`)
    interval = i64 first | i64 last | u32 events
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from headrace import names
from headrace.aggregates import spec as sp
from headrace.aggregates.spec import AggregateSpec, ViewSpec
from headrace.events import RECORD_SCHEMA

NEVER: Final = -(2**62)
"""Stands for 'no event yet' in times and tile numbers; far enough from the limit of int64 to subtract from."""

_U16 = struct.Struct("<H")
_I64 = struct.Struct("<q")
_F64 = struct.Struct("<d")
_INTERVAL = struct.Struct("<qqI")


class StateMismatchError(RuntimeError):
    """A stored row has another shape than the definition that reads it."""


@dataclass(frozen=True)
class Counter:
    """One number per tile: `count`, `sum`, `min` or `max` of what the events of some types say."""

    types: tuple[str, ...]
    expression: str | None
    kind: str


@dataclass(frozen=True)
class Ring:
    """Tiles of one hop, shared by every aggregation with that hop."""

    hop_us: int
    length: int
    counters: tuple[Counter, ...]

    @property
    def head(self) -> str:
        return f"head_{self.hop_us}"

    def tiles(self, counter: Counter) -> str:
        return f"tiles_{self.hop_us}_{self.counters.index(counter)}"


@dataclass(frozen=True)
class RecentList:
    """The last n events of some types, with the columns that features read from them. Events with a null there are skipped."""

    types: tuple[str, ...]
    n: int
    columns: tuple[str, ...]


@dataclass(frozen=True)
class SessionGroup:
    """Sessions of some types, as disjoint intervals of event time."""

    types: tuple[str, ...]


class Layout:
    """The state of one view: where each aggregation finds its numbers, and how a row becomes bytes and back."""

    def __init__(self, spec: ViewSpec) -> None:
        self.spec = spec
        self.rings = tuple(_rings(spec))
        self.lists = tuple(_lists(spec))
        self.sessions = tuple(
            SessionGroup(types)
            for types in dict.fromkeys(a.types for a in spec.aggregates if a.function in sp.SESSIONS)
        )

    @cached_property
    def dtype(self) -> np.dtype[np.void]:
        fields: list[tuple[str, str] | tuple[str, str, tuple[int]]] = [("fingerprint", "<u8"), ("newest", "<i8")]
        for ring in self.rings:
            fields.append((ring.head, "<i8"))
            for counter in ring.counters:
                fields.append((ring.tiles(counter), "<u4" if counter.kind == sp.COUNT else "<f8", (ring.length,)))
        return np.dtype(fields)

    @cached_property
    def empty(self) -> npt.NDArray[np.void]:
        """The fixed part of an entity that was never seen. Shape ()."""
        row = np.zeros((), self.dtype)
        row["fingerprint"] = self.spec.fingerprint
        row["newest"] = NEVER
        for ring in self.rings:
            row[ring.head] = NEVER
            for counter in ring.counters:
                if counter.kind in (sp.MIN, sp.MAX):
                    row[ring.tiles(counter)] = np.nan
        return row

    def ring_of(self, aggregate: AggregateSpec) -> Ring:
        return next(ring for ring in self.rings if ring.hop_us == aggregate.hop_us)

    def list_of(self, aggregate: AggregateSpec) -> tuple[int, int]:
        """Which list an aggregation reads, and which of its columns."""
        for index, recent in enumerate(self.lists):
            if recent.types == aggregate.types and recent.n >= aggregate.n and aggregate.expression in recent.columns:
                return index, recent.columns.index(aggregate.expression)
        raise KeyError(aggregate.name)

    def pack(self, fixed: npt.NDArray[np.void], lists: list[list["Entry"]], sessions: list[list["Interval"]]) -> bytes:
        """Bytes of one row."""
        parts = [fixed.tobytes()]
        for entries in lists:
            parts.append(_U16.pack(len(entries)))
            parts.extend(entry[2] for entry in entries)
        for intervals in sessions:
            parts.append(_U16.pack(len(intervals)))
            parts.extend(_INTERVAL.pack(*interval) for interval in intervals)
        return b"".join(parts)

    def unpack(self, raw: bytes) -> tuple[npt.NDArray[np.void], list[list["Entry"]], list[list["Interval"]]]:
        """The inverse of `pack`. Raises StateMismatchError on a row of another definition, or one that is cut short."""
        fixed = self.fixed([raw])[0]
        try:
            return (fixed, *self._unpack_rest(raw))
        except (struct.error, UnicodeDecodeError) as error:
            raise StateMismatchError(
                f"a stored row of view '{self.spec.name}' is damaged: run `headrace backfill`"
            ) from error

    def _unpack_rest(self, raw: bytes) -> tuple[list[list["Entry"]], list[list["Interval"]]]:
        offset = self.dtype.itemsize
        lists: list[list[Entry]] = []
        for recent in self.lists:
            count, offset = _U16.unpack_from(raw, offset)[0], offset + 2
            entries = []
            for _ in range(count):
                entry, offset = _read_entry(raw, offset, recent)
                entries.append(entry)
            lists.append(entries)
        sessions: list[list[Interval]] = []
        for _ in self.sessions:
            count, offset = _U16.unpack_from(raw, offset)[0], offset + 2
            end = offset + count * _INTERVAL.size
            sessions.append(list(_INTERVAL.iter_unpack(raw[offset:end])))
            offset = end
        return lists, sessions

    def fixed(self, rows: list[bytes | None]) -> npt.NDArray[np.void]:
        """Fixed parts of many rows, None reading as never seen. Shape (len(rows),)."""
        size, empty = self.dtype.itemsize, self.empty.tobytes()
        for raw in rows:
            if raw is not None and (len(raw) < size or raw[:8] != empty[:8]):
                found = int.from_bytes(raw[:8], "little")
                raise StateMismatchError(
                    f"stored state of view '{self.spec.name}' has fingerprint {found:016x}, the definition "
                    f"has {self.spec.fingerprint:016x}: run `headrace backfill`"
                )
        return np.frombuffer(b"".join(empty if raw is None else raw[:size] for raw in rows), self.dtype)


Entry = tuple[int, str, bytes]
"""(timestamp, event_id, packed entry): sorts as the order inside an entity, whose ids differ."""
Interval = tuple[int, int, int]
"""(first, last, events) of one session."""


def pack_entry(timestamp_us: int, event_id: str, values: list[Any], columns: tuple[str, ...]) -> bytes:
    """One list entry. `values` follow `columns`; a `timestamp` column takes no space."""
    identity = event_id.encode()
    parts = [_I64.pack(timestamp_us), _U16.pack(len(identity)), identity]
    parts.extend(
        pack_value(value, column) for value, column in zip(values, columns, strict=True) if column != names.TIMESTAMP
    )
    return b"".join(parts)


def pack_value(value: Any, column: str) -> bytes:
    """A string as u16 length and UTF-8, a time or integer as i64, any other number as f64."""
    kind = _kind(column)
    if kind == "string":
        text: bytes = value.encode()
        return _U16.pack(len(text)) + text
    return _I64.pack(value) if kind == "integer" else _F64.pack(value)


def entry_values(entry: bytes, recent: RecentList) -> list[Any]:
    """The columns of a packed entry, in the order of `recent.columns`; times in microseconds."""
    timestamp = _I64.unpack_from(entry, 0)[0]
    offset = 10 + _U16.unpack_from(entry, 8)[0]
    values: list[Any] = []
    for column in recent.columns:
        if column == names.TIMESTAMP:
            values.append(timestamp)
            continue
        kind = _kind(column)
        if kind == "string":
            length = _U16.unpack_from(entry, offset)[0]
            values.append(entry[offset + 2 : offset + 2 + length].decode())
            offset += 2 + length
        else:
            values.append((_I64 if kind == "integer" else _F64).unpack_from(entry, offset)[0])
            offset += 8
    return values


def _read_entry(raw: bytes, start: int, recent: RecentList) -> tuple[Entry, int]:
    timestamp = _I64.unpack_from(raw, start)[0]
    length = _U16.unpack_from(raw, start + 8)[0]
    offset = start + 10 + length
    event_id = raw[start + 10 : offset].decode()
    for column in recent.columns:
        if column != names.TIMESTAMP:
            offset += 2 + _U16.unpack_from(raw, offset)[0] if _kind(column) == "string" else 8
    return (timestamp, event_id, raw[start:offset]), offset


@cache
def _kind(column: str) -> str:
    if column not in RECORD_SCHEMA.names:
        return "float"
    declared = RECORD_SCHEMA.field(column).type
    if pa.types.is_string(declared):
        return "string"
    return "integer" if pa.types.is_integer(declared) or pa.types.is_timestamp(declared) else "float"


def _rings(spec: ViewSpec) -> Iterator[Ring]:
    tiled = [aggregate for aggregate in spec.aggregates if aggregate.tiled]
    for hop_us in sorted({a.hop_us for a in tiled if a.hop_us is not None}):
        here = [aggregate for aggregate in tiled if aggregate.hop_us == hop_us]
        counters = dict.fromkeys(
            Counter(a.types, a.expression, kind)
            for a in here
            for kind in ((sp.SUM, sp.COUNT) if a.function == sp.MEAN else (a.function,))
        )
        yield Ring(hop_us, max((a.window_us or 0) // hop_us for a in here) + 1, tuple(counters))


def _lists(spec: ViewSpec) -> Iterator[RecentList]:
    """Columns that are never null share one list; a column that may be null skips its own events, so it has its own."""
    groups: dict[tuple[tuple[str, ...], int, str | None], list[str]] = {}
    for aggregate in spec.aggregates:
        if aggregate.function in sp.LISTED and aggregate.expression is not None:
            own = None if sp.never_null(aggregate.expression, aggregate.types) else aggregate.expression
            columns = groups.setdefault((aggregate.types, aggregate.n, own), [])
            if aggregate.expression not in columns:
                columns.append(aggregate.expression)
    for (types, n, _), columns in groups.items():
        yield RecentList(types, n, tuple(columns))
