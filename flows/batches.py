"""Columnar micro-batches: what one read of the log brought, as columns. Knows no stream engine."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import polars as pl

from flows.source import LogSlice
from headrace import names
from headrace.arrays import Ints, Mask
from headrace.decoding import BadRecord, decode
from headrace.events import EVENT_SCHEMA
from headrace.record_lines import COLUMNS
from headrace.stores.item_rows import ItemRow
from headrace.stores.log import LogEntry


@dataclass(frozen=True)
class Places:
    """Where events stand in the log: partition, position, line of the entry, time of append in Unix microseconds. Shapes (events,)."""

    partition: Ints
    position: Ints
    index: Ints
    appended_us: Ints

    def __len__(self) -> int:
        return len(self.partition)

    def __getitem__(self, rows: "Mask | Ints | slice") -> "Places":
        return Places(self.partition[rows], self.position[rows], self.index[rows], self.appended_us[rows])

    @classmethod
    def join(cls, parts: "Sequence[Places]") -> "Places":
        columns = [(part.partition, part.position, part.index, part.appended_us) for part in parts]
        nothing = np.zeros(0, np.int64)
        return (
            cls(*(np.concatenate([nothing, *column]) for column in zip(*columns, strict=True)))
            if parts
            else cls(*[nothing] * 4)
        )


NOWHERE: Final = Places.join([])


@dataclass(frozen=True)
class Batch:
    """Events of one slice, in log order inside a partition, and what was left out of them.

    `items`: the rows that operations on items among them become, once they are set apart (flows/items.py), and where those stand.
    """

    slice: LogSlice
    events: pl.DataFrame
    places: Places
    bad: list[tuple[LogEntry, BadRecord]]
    duplicates: Places
    items: Sequence[ItemRow] = ()
    item_places: Places = NOWHERE

    def without(self, duplicate: Mask) -> "Batch":
        if not duplicate.any():
            return self
        return replace(
            self,
            events=self.events.filter(pl.Series(~duplicate)),
            places=self.places[~duplicate],
            duplicates=self.places[duplicate],
        )

    def rows(self) -> pl.DataFrame:
        """With the columns that say where and when each event was appended."""
        return self.events.with_columns(
            pl.Series(names.INGESTED_AT, self.places.appended_us).cast(pl.Datetime("us", "UTC")),
            pl.Series(names.LOG_PARTITION, self.places.partition, dtype=pl.Int32),
            pl.Series(names.LOG_POSITION, self.places.position),
            pl.Series(names.LOG_INDEX, self.places.index, dtype=pl.Int32),
        ).select(EVENT_SCHEMA.names)


def to_batch(piece: LogSlice, columns: Sequence[str] = COLUMNS) -> Batch:
    """The named columns of a slice's events. Lines that are no event are set aside."""
    events, places, bad = place(piece.entries, columns)
    return Batch(piece, events, places, bad, places[:0])


def place(
    entries: Sequence[LogEntry], columns: Sequence[str]
) -> tuple[pl.DataFrame, Places, list[tuple[LogEntry, BadRecord]]]:
    """Entries to columns: the events, where they stand, and the lines that are none."""
    decoded = decode([entry.payload for entry in entries], columns)
    # One column after the other: handing a few short ones to the threads of Polars costs more than it saves.
    events = pl.DataFrame([pl.Series(name, column) for name, column in decoded.columns.items()])
    stamps = np.array([(e.partition, e.position, e.ingested_at_us) for e in entries], np.int64).reshape(-1, 3)
    partition, position, appended_us = stamps[decoded.payload].T.copy()
    return (
        events,
        Places(partition, position, decoded.index, appended_us),
        [(entries[n], each) for n, each in decoded.bad],
    )
