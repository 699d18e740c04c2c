"""The as-of read: packed rows and a time t turned into feature values. The same state gives fewer views as t moves on."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from headrace.aggregates import spec as sp
from headrace.aggregates.layout import NEVER, Counter, Layout, Ring, entry_values
from headrace.aggregates.spec import AggregateSpec
from headrace.clock import from_micros

Values = npt.NDArray[np.int64] | npt.NDArray[np.float64] | list[object]
"""One value a row: integers, floats with NaN for null, or Python values (lists, strings) with None for null."""


class TooEarlyError(ValueError):
    """A read at or before an event that the state already holds: tiles cannot subtract."""


class StreamRows:
    """State of some entities of one view, fetched at one moment; values come out for any t after `newest_us`."""

    def __init__(self, layout: Layout, rows: Sequence[bytes | None]) -> None:
        self.layout = layout
        self._rows = list(rows)
        self._fixed = layout.fixed(self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def newest_us(self) -> int:
        """Time of the newest event in these rows, 0 if there is none."""
        return max(0, int(self._fixed["newest"].max())) if len(self._rows) else 0

    @property
    def newest_each_us(self) -> npt.NDArray[np.int64]:
        """Time of the newest event of each row, NEVER where there is none. Shape (len(rows),)."""
        return np.asarray(self._fixed["newest"])

    def values(self, t_us: int, features: Sequence[str] | None = None) -> dict[str, Values]:
        """The named features (all by default) as of t. Raises TooEarlyError unless t is after the newest event."""
        if t_us <= self.newest_us:
            raise TooEarlyError(
                f"view '{self.layout.spec.name}' cannot be read as of {from_micros(t_us).isoformat()}: its state holds an event at "
                f"{from_micros(self.newest_us).isoformat()}; give a time after that"
            )
        rows, fixed = self._alive(t_us)
        unpacked = _Unpacked(self.layout, rows)
        wanted = (
            self.layout.spec.aggregates if features is None else [self.layout.spec.aggregate(name) for name in features]
        )
        return {aggregate.name: self._value(aggregate, t_us, fixed, unpacked) for aggregate in wanted}

    def _alive(self, t_us: int) -> tuple[list[bytes | None], npt.NDArray[np.void]]:
        """Rows with those past the view's TTL taken as never seen."""
        ttl = self.layout.spec.ttl_us
        if ttl is None:
            return self._rows, self._fixed
        expired = (self._fixed["newest"] != NEVER) & (t_us - self._fixed["newest"] > ttl)
        return [None if gone else row for row, gone in zip(self._rows, expired, strict=True)], np.where(
            expired, self.layout.empty, self._fixed
        )

    def _value(self, aggregate: AggregateSpec, t_us: int, fixed: npt.NDArray[np.void], unpacked: "_Unpacked") -> Values:
        if aggregate.tiled:
            return _window(self.layout.ring_of(aggregate), aggregate, t_us, fixed)
        if aggregate.function in sp.LISTED:
            return unpacked.listed(aggregate, t_us)
        return unpacked.session(aggregate, t_us)


def _window(ring: Ring, aggregate: AggregateSpec, t_us: int, fixed: npt.NDArray[np.void]) -> Values:
    head = fixed[ring.head][:, None]
    numbers = head - (head - np.arange(ring.length)) % ring.length
    inside = numbers >= aggregate.window_start(t_us) // ring.hop_us

    def tiles(kind: str) -> npt.NDArray[np.float64]:
        return np.asarray(fixed[ring.tiles(Counter(aggregate.types, aggregate.expression, kind))])

    if aggregate.function == sp.COUNT:
        return np.asarray(np.where(inside, tiles(sp.COUNT), 0).sum(axis=1, dtype=np.int64))
    if aggregate.function == sp.SUM:
        return np.asarray(np.where(inside, tiles(sp.SUM), 0.0).sum(axis=1))
    if aggregate.function == sp.MEAN:
        count = np.where(inside, tiles(sp.COUNT), 0).sum(axis=1, dtype=np.float64)
        total = np.where(inside, tiles(sp.SUM), 0.0).sum(axis=1)
        return np.asarray(np.divide(total, count, out=np.full(len(count), np.nan), where=count > 0))
    reduce = np.fmin if aggregate.function == sp.MIN else np.fmax
    return np.asarray(reduce.reduce(np.where(inside, tiles(aggregate.function), np.nan), axis=1))


class _Unpacked:
    """The parts of varying length, unpacked when the first feature asks for them."""

    def __init__(self, layout: Layout, rows: Sequence[bytes | None]) -> None:
        self._layout = layout
        self._rows = rows
        self._parts: list[tuple[list[list[list[object]]], list[list[tuple[int, int, int]]]]] | None = None

    def _unpack(self) -> list[tuple[list[list[list[object]]], list[list[tuple[int, int, int]]]]]:
        if self._parts is None:
            self._parts = [self._one(row) for row in self._rows]
        return self._parts

    def _one(self, raw: bytes | None) -> tuple[list[list[list[object]]], list[list[tuple[int, int, int]]]]:
        layout = self._layout
        if raw is None:
            return [[] for _ in layout.lists], [[] for _ in layout.sessions]
        _, lists, sessions = layout.unpack(raw)
        values = [
            [[entry[0], *entry_values(entry[2], recent)] for entry in entries]
            for entries, recent in zip(lists, layout.lists, strict=True)
        ]
        return values, sessions

    def listed(self, aggregate: AggregateSpec, t_us: int) -> list[object]:
        index, column = self._layout.list_of(aggregate)
        start = aggregate.window_start(t_us)
        found = [
            [entry[1 + column] for entry in lists[index] if entry[0] >= start][-aggregate.n :]
            for lists, _ in self._unpack()
        ]
        return list(found) if aggregate.function == sp.LAST_N else [values[-1] if values else None for values in found]

    def session(self, aggregate: AggregateSpec, t_us: int) -> Values:
        index = next(i for i, group in enumerate(self._layout.sessions) if group.types == aggregate.types)
        gap = self._layout.spec.session_gap_us
        current = [
            sessions[index][-1] if sessions[index] and t_us - sessions[index][-1][1] <= gap else (0, 0, 0)
            for _, sessions in self._unpack()
        ]
        if aggregate.function == sp.SESSION_COUNT:
            return np.array([count for _, _, count in current], np.int64)
        return np.array([(last - first) / 1_000_000 for first, last, _ in current], np.float64)
