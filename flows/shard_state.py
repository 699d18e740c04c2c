"""One shard in the hands of a worker: the state of its entities in memory, and the positions that it includes."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import polars as pl

from flows.batches import Places
from flows.source import LogSlice
from flows.split import SplitBatch
from headrace.aggregates.fold import ViewState
from headrace.aggregates.layout import Layout
from headrace.arrays import Ints
from headrace.stores.change_feed import is_announced
from headrace.stores.commits import ShardCommit
from headrace.stores.shards import OwnedShard, ShardStatus

MAX_CACHED_ENTITIES: Final = 200_000
"""Of each view in a shard. Beyond it the memory is emptied: rows are read again from the store."""


@dataclass(frozen=True)
class ViewPart:
    """What a batch means to one view of a shard: the events that are not included yet."""

    view: str
    state: ViewState
    events: pl.DataFrame
    entities: pl.Series


class ShardState:
    def __init__(self, owned: OwnedShard, status: ShardStatus, layouts: Mapping[str, Layout], shards: int) -> None:
        self.owned = owned
        self.positions = dict(status.positions)
        self._complete = dict(status.complete)
        self._counted = dict(status.counted)
        self._shards = shards
        self._states = {name: ViewState(layout) for name, layout in layouts.items()}
        self._announced = frozenset(
            name for name, layout in layouts.items() if is_announced([layout.spec.entity_column])
        )

    @property
    def entities(self) -> int:
        """In memory, those of each view counted."""
        return sum(len(state) for state in self._states.values())

    @property
    def nbytes(self) -> int:
        """What they take."""
        return sum(state.nbytes for state in self._states.values())

    def parts(self, split: SplitBatch, may_empty: bool) -> Iterator[ViewPart]:
        """The views that a batch changes. `may_empty`: all that was folded is committed, so memory that is full may be emptied."""
        for name, rows in split.rows[self.owned.shard].items():
            if may_empty and len(self._states[name]) > MAX_CACHED_ENTITIES:
                self._states[name] = ViewState(self._states[name].layout)
            spec = self._states[name].layout.spec
            new = self._not_included(split.batch.slice, split.batch.places, rows)
            if len(new):
                events = pl.DataFrame([split.batch.events[column] for column in spec.columns])[new]
                yield ViewPart(name, self._states[name], events, events[spec.entity_column])

    def _not_included(self, piece: LogSlice, places: Places, rows: Ints) -> Ints:
        if all(after == self.positions.get(p, 0) for p, after in piece.after.items()):
            return rows
        wanted = np.zeros(len(rows), np.bool_)
        for partition in self._followed(piece.after):
            here = places.partition[rows] == partition
            wanted |= here & (places.position[rows] > self.positions.get(partition, 0))
        return rows[wanted]

    def _followed(self, after: Mapping[int, int]) -> list[int]:
        """Partitions where a batch leaves no gap behind what the shard includes."""
        return [partition for partition, position in after.items() if position <= self.positions.get(partition, 0)]

    def advance(self, split: SplitBatch, parts: list[ViewPart]) -> ShardCommit:
        """Fold the parts, whose entities are all loaded, and move the positions on."""
        piece = split.batch.slice
        for part in parts:
            part.state.fold(part.events)
        rows = {part.view: part.state.take_packed() for part in parts}
        plain = self._item_rows(split)
        counters = self._count(split)
        followed = self._followed(piece.after)
        for partition in followed:
            self.positions[partition] = max(self.positions.get(partition, 0), piece.positions[partition])
            if partition in piece.complete and self.positions[partition] <= piece.positions[partition]:
                self._complete[partition] = max(self._complete.get(partition, 0), piece.complete[partition])
        positions = {partition: self.positions[partition] for partition in followed}
        complete = {partition: self._complete[partition] for partition in followed if partition in self._complete}
        return ShardCommit(rows, positions, complete, counters, self._announced, plain)

    def _item_rows(self, split: SplitBatch) -> dict[str, list[tuple[str, bytes]]]:
        """Packed rows by view, in the order of the log, of the operations on items that are not included yet."""
        batch = split.batch
        rows: dict[str, list[tuple[str, bytes]]] = {}
        if batch.items:
            numbers = self._not_included(batch.slice, batch.item_places, split.items[self.owned.shard])
            for row in (batch.items[number] for number in numbers.tolist()):
                rows.setdefault(row.view, []).append((row.item_id, row.pack()))
        return rows

    def _count(self, split: SplitBatch) -> dict[str, int]:
        """Each partition's counts go to one shard, which counts what it has not counted yet."""
        own = [p for p in self._followed(split.batch.slice.after) if p % self._shards == self.owned.shard]
        counts: dict[str, int] = {}
        for kind, places in split.counted.items():
            for partition in own:
                reached = max(self.positions.get(partition, 0), self._counted.get(partition, 0))
                found = (places.partition == partition) & (places.position > reached)
                counts[kind] = counts.get(kind, 0) + int(np.count_nonzero(found))
        return counts
