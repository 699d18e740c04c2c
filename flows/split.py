"""Which events of a batch change which shard, as row numbers; and what is counted of the batch, by log position."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import polars as pl

from flows.batches import Batch, Places
from headrace import names
from headrace.aggregates.columns import concerned, micros, type_codes
from headrace.aggregates.spec import ViewSpec
from headrace.arrays import Ints
from headrace.hashing import shards_of

DUPLICATES, DEAD, EVENTS, LATE, ITEMS = "duplicates", "dead_letters", "events", "late", "item_operations"
COUNTERS: Final = (EVENTS, DUPLICATES, DEAD, LATE, ITEMS)


@dataclass(frozen=True)
class SplitBatch:
    """A batch with, for each shard and view, the rows of its entities' events; `items`: numbers of the shard's item rows."""

    batch: Batch
    rows: Mapping[int, Mapping[str, Ints]]
    counted: Mapping[str, Places]
    """What stands where in the log, by counter."""
    items: Mapping[int, Ints]


class ShardSplitter:
    """Splits for the shards that are wanted at the moment."""

    def __init__(self, specs: Mapping[str, ViewSpec], shards: int, lateness_us: int) -> None:
        self._specs = specs
        self._shards = shards
        self._lateness_us = lateness_us

    def __call__(self, batch: Batch, wanted: Collection[int]) -> SplitBatch:
        rows: dict[int, dict[str, Ints]] = {shard: {} for shard in wanted}
        for name, members in self._split(batch.events, wanted):
            for shard, found in members.items():
                rows[shard][name] = found
        return SplitBatch(batch, rows, self._count(batch), self._split_items(batch, wanted))

    def _split_items(self, batch: Batch, wanted: Collection[int]) -> dict[int, Ints]:
        if not batch.items:
            return {}
        numbers = shards_of([row.item_id for row in batch.items], self._shards)
        return {shard: np.flatnonzero(numbers == shard) for shard in wanted}

    def _split(self, events: pl.DataFrame, wanted: Collection[int]) -> Iterator[tuple[str, dict[int, Ints]]]:
        entities = dict.fromkeys(spec.entity_column for spec in self._specs.values())
        shards = {column: shards_of(events[column], self._shards) for column in entities}
        codes = type_codes(events)
        for name, spec in self._specs.items():
            rows = concerned(spec, events, codes)
            numbers = np.where(rows, shards[spec.entity_column], -1)
            yield name, {shard: np.flatnonzero(numbers == shard) for shard in wanted}

    def _count(self, batch: Batch) -> dict[str, Places]:
        delay_us = micros(batch.events[names.RECEIVED_AT]) - micros(batch.events[names.TIMESTAMP])
        bad = np.array([(entry.partition, entry.position) for entry, _ in batch.bad], np.int64).reshape(-1, 2)
        nothing = np.zeros(len(bad), np.int64)
        return {
            EVENTS: batch.places,
            DUPLICATES: batch.duplicates,
            DEAD: Places(bad[:, 0], bad[:, 1], nothing, nothing),
            LATE: batch.places[delay_us > self._lateness_us],
            ITEMS: batch.item_places,
        }
