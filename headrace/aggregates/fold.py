"""The incremental engine: micro-batches of events folded into the state of a view. Knows no stream engine and no store.

Order of arrival does not matter: tiles add, lists keep (timestamp, event_id) order, sessions merge. What makes that exact is
that every read is at or after the newest event folded (docs/features.md).
"""

from bisect import insort
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import polars as pl

from headrace import names
from headrace.aggregates import spec as sp
from headrace.aggregates.expressions import evaluate
from headrace.aggregates.layout import Entry, Interval, Layout, RecentList, Ring, pack_entry

_CLOCK_SKEW_US = 3_600 * 1_000_000
_TYPE_CODE = {event_type: code for code, event_type in enumerate(names.EVENT_TYPES)}

Ints = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


class ViewState:
    """State of the entities of one view in memory: a cache over the store, which is the truth."""

    def __init__(self, layout: Layout, capacity: int = 256) -> None:
        self.layout = layout
        self._fixed = np.full(capacity, layout.empty, layout.dtype)
        self._slots: dict[str, int] = {}
        self._keys: list[str] = []
        self._lists: list[list[list[Entry]]] = []
        self._sessions: list[list[list[Interval]]] = []
        self._dirty: set[int] = set()

    def __len__(self) -> int:
        return len(self._keys)

    def missing(self, keys: Iterable[str]) -> list[str]:
        """Keys that must be loaded before events of theirs are folded, each once."""
        return [key for key in dict.fromkeys(keys) if key not in self._slots]

    def load(self, key: str, raw: bytes | None) -> None:
        """Take in a stored row; None for an entity that has none. Raises StateMismatchError."""
        slot = len(self._keys)
        if slot == len(self._fixed):
            self._fixed = np.concatenate([self._fixed, np.full(slot, self.layout.empty, self.layout.dtype)])
        if raw is None:
            self._lists.append([[] for _ in self.layout.lists])
            self._sessions.append([[] for _ in self.layout.sessions])
        else:
            self._fixed[slot], lists, sessions = self.layout.unpack(raw)
            self._lists.append(lists)
            self._sessions.append(sessions)
        self._slots[key] = slot
        self._keys.append(key)

    def take_changed(self) -> dict[str, bytes]:
        """Rows changed since the last call, packed."""
        changed = {
            self._keys[slot]: self.layout.pack(self._fixed[slot], self._lists[slot], self._sessions[slot])
            for slot in self._dirty
        }
        self._dirty.clear()
        return changed

    def fold(self, events: pl.DataFrame) -> None:
        """Fold events of this view's types, whose entities are all loaded. `events` has at least `spec.columns`."""
        if events.is_empty():
            return
        spec = self.layout.spec
        slots = np.fromiter((self._slots[key] for key in events[spec.entity_column]), np.int64, events.height)
        codes = np.fromiter((_TYPE_CODE[event_type] for event_type in events[names.TYPE]), np.int64, events.height)
        timestamps = micros(events[names.TIMESTAMP])
        values = expression_values(self.layout, events)
        np.maximum.at(self._fixed["newest"], slots, timestamps)
        for ring in self.layout.rings:
            self._fold_ring(ring, slots, timestamps, codes, values)
        for index, recent in enumerate(self.layout.lists):
            self._fold_list(index, recent, slots, timestamps, of_types(codes, recent.types), events)
        if self.layout.sessions:
            in_time = micros(events[names.RECEIVED_AT]) - timestamps <= spec.lateness_us
            for index, group in enumerate(self.layout.sessions):
                self._fold_sessions(index, slots, timestamps, of_types(codes, group.types) & in_time)
        self._dirty.update(slots.tolist())

    def _fold_ring(
        self, ring: Ring, slots: Ints, timestamps: Ints, codes: Ints, values: Mapping[str, npt.NDArray[np.float64]]
    ) -> None:
        tiles = timestamps // ring.hop_us
        heads = self._advance(ring, slots, tiles)
        retained = tiles > heads - ring.length
        for counter in ring.counters:
            chosen = retained & of_types(codes, counter.types)
            if counter.expression is not None:
                value = values[counter.expression]
                chosen &= ~np.isnan(value)
            at = (slots[chosen], tiles[chosen] % ring.length)
            cells = self._fixed[ring.tiles(counter)]
            if counter.kind == sp.COUNT:
                np.add.at(cells, at, np.uint32(1))
            elif counter.kind == sp.SUM:
                np.add.at(cells, at, value[chosen])
            else:
                (np.fmin if counter.kind == sp.MIN else np.fmax).at(cells, at, value[chosen])

    def _advance(self, ring: Ring, slots: Ints, tiles: Ints) -> Ints:
        """Move heads up to the newest tile of each entity, emptying the tiles passed over; returns each event's new head."""
        touched, inverse = np.unique(slots, return_inverse=True)
        old = self._fixed[ring.head][touched]
        new = old.copy()
        np.maximum.at(new, inverse, tiles)
        moved = new > old
        if moved.any():
            rows, steps = touched[moved], np.minimum(new - old, ring.length)[moved]
            distance = (new[moved, None] - np.arange(ring.length)) % ring.length  # of each place from the new head
            passed = distance < steps[:, None]
            for counter in ring.counters:
                name = ring.tiles(counter)
                block = self._fixed[name][rows]
                self._fixed[name][rows] = np.where(passed, self.layout.empty[name], block)
            self._fixed[ring.head][rows] = new[moved]
        return np.asarray(new[inverse])

    def _fold_list(
        self, index: int, recent: RecentList, slots: Ints, timestamps: Ints, chosen: Mask, events: pl.DataFrame
    ) -> None:
        rows = np.flatnonzero(chosen)
        ids = events[names.EVENT_ID].to_list()
        columns = [list_column(events, column) for column in recent.columns]
        for row, slot, timestamp in zip(rows.tolist(), slots[rows].tolist(), timestamps[rows].tolist(), strict=True):
            entry_values = [column[row] for column in columns]
            if None in entry_values:
                continue
            entries = self._lists[slot][index]
            event_id = ids[row]
            if len(entries) == recent.n and (timestamp, event_id) < entries[0][:2]:
                continue
            entry = (timestamp, event_id, pack_entry(timestamp, event_id, entry_values, recent.columns))
            if not entries or entries[-1] < entry:
                entries.append(entry)
            else:
                insort(entries, entry)
            if len(entries) > recent.n:
                del entries[0]

    def _fold_sessions(self, index: int, slots: Ints, timestamps: Ints, chosen: Mask) -> None:
        gap = self.layout.spec.session_gap_us
        # What can still be joined to the current session: an event in time is at most this much older than the newest.
        keep = self.layout.spec.lateness_us + gap + _CLOCK_SKEW_US
        for slot, timestamp in zip(slots[chosen].tolist(), timestamps[chosen].tolist(), strict=True):
            intervals = self._sessions[slot][index]
            self._sessions[slot][index] = _prune(add_to_sessions(intervals, timestamp, gap), keep)


def add_to_sessions(intervals: list[Interval], timestamp: int, gap: int) -> list[Interval]:
    """Sessions after one more event: sorted, disjoint, more than `gap` apart."""
    if intervals and intervals[-1][1] <= timestamp <= intervals[-1][1] + gap:
        first, _, count = intervals[-1]
        return [*intervals[:-1], (first, timestamp, count + 1)]
    before = [interval for interval in intervals if interval[1] < timestamp - gap]
    after = [interval for interval in intervals if interval[0] > timestamp + gap]
    joined = intervals[len(before) : len(intervals) - len(after)]
    first = min([timestamp, *(interval[0] for interval in joined)])
    last = max([timestamp, *(interval[1] for interval in joined)])
    return [*before, (first, last, 1 + sum(interval[2] for interval in joined)), *after]


def _prune(intervals: list[Interval], keep_us: int) -> list[Interval]:
    oldest = intervals[-1][1] - keep_us
    return intervals if intervals[0][1] >= oldest else [interval for interval in intervals if interval[1] >= oldest]


def concerns(spec: sp.ViewSpec) -> pl.Expr:
    """True for events that change a view's state."""
    return pl.col(names.TYPE).is_in(list(spec.types)) & pl.col(spec.entity_column).is_not_null()


def events_of(spec: sp.ViewSpec, events: pl.DataFrame, also: Sequence[str] = ()) -> pl.DataFrame:
    """The events that change a view's state, with the columns it needs and those named."""
    return events.filter(concerns(spec)).select(*dict.fromkeys([*spec.columns, *also]))


def of_types(codes: Ints, types: Sequence[str]) -> Mask:
    wanted = np.zeros(len(names.EVENT_TYPES), np.bool_)
    wanted[[_TYPE_CODE[event_type] for event_type in types]] = True
    return np.asarray(wanted[codes])


def micros(times: pl.Series) -> Ints:
    """Datetime[us] as Unix microseconds. Shape (len(times),)."""
    return times.dt.timestamp("us").to_numpy()


def expression_values(layout: Layout, events: pl.DataFrame) -> dict[str, npt.NDArray[np.float64]]:
    """Each counter's expression over the events, NaN for null."""
    wanted = {
        counter.expression for ring in layout.rings for counter in ring.counters if counter.expression is not None
    }
    columns = {name: _floats(events[name]) for expression in wanted for name in sp.columns_of(expression)}
    return {expression: evaluate(expression, columns) for expression in wanted}


def _floats(column: pl.Series) -> npt.NDArray[np.float64]:
    if not column.dtype.is_numeric():  # `count` of a column that is no number: only null or not matters
        return np.where(column.is_null().to_numpy(), np.nan, 1.0)
    return column.cast(pl.Float64).fill_null(float("nan")).to_numpy()


def list_column(events: pl.DataFrame, column: str) -> list[object]:
    """A list's column as Python values; times in microseconds, expressions as floats, null as None."""
    if column not in events.columns:
        columns = {name: _floats(events[name]) for name in sp.columns_of(column)}
        return [None if value != value else value for value in evaluate(column, columns).tolist()]
    series = events[column]
    return (series.dt.timestamp("us") if series.dtype.is_temporal() else series).to_list()
