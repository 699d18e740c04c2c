"""The incremental engine: micro-batches of events folded into the state of a view. Knows no stream engine and no store.

Order of arrival does not matter: tiles add, lists keep (timestamp, event_id) order, sessions merge, of a value the newest time counts.
What makes that exact is that every read is at or after the newest event folded (docs/features.md).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np
import polars as pl

from headrace import names
from headrace.aggregates import spec as sp
from headrace.aggregates.chunks import ARENA, LINE
from headrace.aggregates.columns import (
    is_there,
    micros,
    numbers,
    of_types,
    type_codes,
    value_hashes,
)
from headrace.aggregates.distinct import fold_distinct
from headrace.aggregates.keys import ABSENT, KeyTable, grouped, longer
from headrace.aggregates.layout import Layout
from headrace.aggregates.packing import max_sizes, pack_rows, unpack_rows
from headrace.aggregates.payloads import payloads
from headrace.aggregates.recent import fold_list
from headrace.aggregates.rows import NEVER, StateMismatchError, check, damaged, joined
from headrace.aggregates.sessions import fold_sessions
from headrace.aggregates.tiles import HOP, Tiles, fold_tiles
from headrace.arrays import Ints

_PACKED_AT_ONCE: Final = 1_024
"""Rows packed into one buffer, small enough for the processor's cache."""


@dataclass(frozen=True)
class PackedRows:
    """Rows as they are stored: keys[i] has data[begins[i]:begins[i + 1]]."""

    keys: list[str]
    data: bytes
    begins: Ints

    def as_dict(self) -> dict[str, bytes]:
        cuts = self.begins.tolist()
        return {key: self.data[a:b] for key, (a, b) in zip(self.keys, pairwise(cuts), strict=True)}


@dataclass(frozen=True)
class _Batch:
    """Events and, for each in the order of folding, its place among them, slot and time. `codes` are in the events' own order."""

    events: pl.DataFrame
    order: Ints
    slots: Ints
    times: Ints
    codes: Ints


class ViewState:
    """State of the entities of one view in memory: a cache over the store, which is the truth."""

    def __init__(self, layout: Layout, capacity: int = 256) -> None:
        self.layout = layout
        self._keys = KeyTable()
        self._tiles = _empty_tiles(layout, capacity)
        self._lines = np.zeros((capacity, len(layout.parts), LINE), np.int64)
        self._data = np.zeros(64, np.uint8)
        self._arena = np.zeros(ARENA, np.int64)
        self._changed = np.zeros(capacity, np.bool_)
        types = layout.spec.types
        self._type_places = np.array([types.index(t) if t in types else -1 for t in names.EVENT_TYPES])

    def __len__(self) -> int:
        return len(self._keys)

    @property
    def nbytes(self) -> int:
        """Memory held."""
        tiles = self._tiles
        arrays = (tiles.times, tiles.counts, tiles.words, self._lines, self._data, self._changed)
        return self._keys.nbytes + sum(array.nbytes for array in arrays)

    def missing(self, keys: Iterable[str] | pl.Series) -> list[str]:
        """Keys that must be loaded before events of theirs are folded, each once, in the order given."""
        wanted = _strings(keys)
        absent = self._keys.find(wanted) == ABSENT
        return list(dict.fromkeys(wanted.filter(pl.Series(absent)).to_list())) if absent.any() else []

    def load(self, key: str, raw: bytes | None) -> None:
        """Take in a stored row; None for an entity that has none. Raises StateMismatchError."""
        self.load_rows([key], [raw])

    def load_rows(self, keys: Sequence[str] | pl.Series, raws: Sequence[bytes | None]) -> None:
        """Take in stored rows, in place of what is held of the keys, which differ. Raises StateMismatchError."""
        rows, begins = joined(self.layout.spec, raws)
        check(self.layout.spec, len(self.layout.parts), rows, begins)
        known = len(self)
        slots = self._keys.add(_strings(keys))
        self._grow()
        if len(rows) == 0 and slots.min(initial=known) >= known:
            return  # slots are handed out empty
        plan, parts = self.layout.plan, self.layout.parts
        self._data, bad_row = unpack_rows(
            plan, self._tiles, parts, self._lines, self._data, self._arena, slots, rows, begins
        )
        if bad_row >= 0:
            raise StateMismatchError(damaged(self.layout.spec))

    def take_changed(self) -> dict[str, bytes]:
        """Rows changed since the last call, packed."""
        changed: dict[str, bytes] = {}
        for some in self.take_packed():
            changed |= some.as_dict()
        return changed

    def take_packed(self) -> list[PackedRows]:
        """Rows changed since the last call, some at a time."""
        changed = np.flatnonzero(self._changed[: len(self)])
        self._changed[changed] = False
        starts = range(0, len(changed), _PACKED_AT_ONCE)
        return [self._pack(changed[start : start + _PACKED_AT_ONCE]) for start in starts]

    def _pack(self, slots: Ints) -> PackedRows:
        plan, parts = self.layout.plan, self.layout.parts
        out = np.empty(int(max_sizes(plan, parts, self._lines, slots).sum()), np.uint8)
        begins = pack_rows(
            plan, self._tiles, parts, self._lines, self._data, np.uint64(self.layout.spec.fingerprint), slots, out
        )
        keys = self._keys.keys
        return PackedRows([keys[slot] for slot in slots.tolist()], out[: begins[-1]].tobytes(), begins)

    def fold(self, events: pl.DataFrame) -> None:
        """Fold events of this view's types, whose entities are all loaded. `events` has at least `spec.columns`.

        Raises KeyError where an entity is not loaded.
        """
        if events.is_empty():
            return
        spec = self.layout.spec
        slots = self._keys.find(events[spec.entity_column])
        if slots.min() == ABSENT:
            unknown = events[spec.entity_column][int(slots.argmin())]
            raise KeyError(f"'{unknown}' of view '{spec.name}' is not loaded: load what `missing` names before folding")
        # An entity's events one behind the other: its state is then in the processor's cache for all but the first.
        order = grouped(slots, len(self))
        batch = _Batch(events, order, slots[order], micros(events[names.TIMESTAMP])[order], type_codes(events))
        self._fold_tiles(batch)
        self._fold_lists(batch)
        if self.layout.sessions:
            self._fold_sessions(batch)
        self._fold_distinct(batch)
        self._changed[slots] = True

    def _fold_tiles(self, batch: "_Batch") -> None:
        values = np.empty((len(self.layout.expressions), len(batch.slots)))
        for row, expression in enumerate(self.layout.expressions):
            values[row] = numbers(expression, batch.events)[batch.order]
        codes = batch.codes[batch.order]
        fold_tiles(self.layout.plan, self._tiles, batch.slots, batch.times, codes, values)

    def _fold_lists(self, batch: "_Batch") -> None:
        for part, recent in enumerate(self.layout.lists):
            chosen = of_types(batch.codes, recent.types)
            for column in recent.columns:
                if not sp.never_null(column, recent.types):
                    chosen &= is_there(column, batch.events)
            payload, begins, ends = payloads(recent.columns, batch.events, self._type_places[batch.codes])
            self._data = fold_list(
                batch.slots, batch.times, chosen[batch.order], payload, begins[batch.order], ends[batch.order], recent.n,
                self._data, self._arena, self._lines, part,
            )  # fmt: skip

    def _fold_sessions(self, batch: "_Batch") -> None:
        spec = self.layout.spec
        in_time = micros(batch.events[names.RECEIVED_AT])[batch.order] - batch.times <= spec.lateness_us
        for part, group in enumerate(self.layout.sessions, len(self.layout.lists)):
            chosen = of_types(batch.codes, group.types)[batch.order] & in_time
            self._data = fold_sessions(
                batch.slots, batch.times, chosen, spec.session_gap_us, self._data, self._arena, self._lines, part
            )

    def _fold_distinct(self, batch: "_Batch") -> None:
        first = len(self.layout.lists) + len(self.layout.sessions)
        for part, values in enumerate(self.layout.distinct, first):
            chosen = of_types(batch.codes, values.types) & is_there(values.expression, batch.events)
            hashes = value_hashes(values.expression, batch.events)
            self._data = fold_distinct(
                batch.slots, batch.times, chosen[batch.order], hashes[batch.order],
                self._data, self._arena, self._lines, part,
            )  # fmt: skip

    def _grow(self) -> None:
        """Room for every key, each slot empty."""
        tiles, capacity = self._tiles, len(self._changed)
        if len(self) <= capacity:
            return
        fresh = _empty_tiles(self.layout, max(len(self), 2 * capacity))
        fresh.times[:capacity], fresh.counts[:capacity], fresh.words[:capacity] = tiles[:3]
        self._tiles = fresh
        self._lines = longer(self._lines, len(fresh.times))
        self._changed = longer(self._changed, len(fresh.times))


def _empty_tiles(layout: Layout, slots: int) -> Tiles:
    plan = layout.plan
    never = np.array([NEVER, *(NEVER // plan.rings[:, HOP])], np.int64)
    words = np.tile(plan.blank, (slots, 1))
    counts = np.zeros((slots, -(-len(plan.count_cells) // 8) * 8), np.uint32)
    return Tiles(np.tile(never, (slots, 1)), counts, words, words.view(np.int64))


def _strings(keys: Iterable[str] | pl.Series) -> pl.Series:
    return keys if isinstance(keys, pl.Series) else pl.Series(list(keys), dtype=pl.String)
