"""Steps of the dataflows as plain functions and small objects that know no stream engine."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import polars as pl
import pyarrow as pa

from flows.source import LogSlice
from headrace import names
from headrace.aggregates.fold import events_of
from headrace.aggregates.spec import ViewSpec
from headrace.events import EVENT_SCHEMA, BadRecord, decode_payload
from headrace.identity import shard_of
from headrace.stores.log import EventLog, LogEntry

DUPLICATES, DEAD, EVENTS, LATE = "duplicates", "dead_letters", "events", "late"


@dataclass(frozen=True)
class Batch:
    """Events of one slice in log order (EVENT_SCHEMA), and what was left out of it: (partition, position, kind)."""

    events: pl.DataFrame
    positions: Mapping[int, int]
    complete: Mapping[int, int]
    bad: list[tuple[LogEntry, BadRecord]] = field(default_factory=list)
    left_out: list[tuple[int, int, str]] = field(default_factory=list)


def decode(piece: LogSlice) -> Batch:
    """Entries to columns. Lines that are no event are set aside."""
    tables: list[pa.Table] = []
    bad: list[tuple[LogEntry, BadRecord]] = []
    for entry in piece.entries:
        table, wrong = decode_payload(entry.payload)
        bad.extend((entry, record) for record in wrong)
        tables.append(_place(table, entry))
    events = pl.from_arrow(pa.concat_tables(tables) if tables else EVENT_SCHEMA.empty_table())
    assert isinstance(events, pl.DataFrame)
    return Batch(events, piece.positions, piece.complete, bad, [(e.partition, e.position, DEAD) for e, _ in bad])


def _place(table: pa.Table, entry: LogEntry) -> pa.Table:
    """The table with the columns that say where and when it was appended."""
    count = table.num_rows
    columns = {
        names.INGESTED_AT: pa.array([entry.ingested_at_us] * count, pa.timestamp("us", tz="UTC")),
        names.LOG_PARTITION: pa.array([entry.partition] * count, pa.int32()),
        names.LOG_POSITION: pa.array([entry.position] * count, pa.int64()),
    }
    for name, column in columns.items():
        table = table.append_column(name, column)
    return table.select(EVENT_SCHEMA.names)


class Deduplicator:
    """Drops an event if an earlier position of its partition, within the horizon of append time, holds its event_id.

    A function of the log alone: on the first batch of a partition the horizon before it is read again, so the answer is the same
    after a restart and for every reader.
    """

    def __init__(self, log: EventLog, horizon_us: int) -> None:
        self._log = log
        self._horizon_us = horizon_us
        self._seen: dict[int, dict[str, int]] = {}

    def __call__(self, batch: Batch) -> Batch:
        events = batch.events
        if events.is_empty():
            return batch
        columns = (names.LOG_PARTITION, names.LOG_POSITION, names.EVENT_ID, names.INGESTED_AT)
        keep: list[bool] = []
        left_out = list(batch.left_out)
        rows = zip(*(_plain(events[name]) for name in columns), strict=True)
        for partition, position, event_id, ingested_at_us in rows:
            if partition not in self._seen:
                self._seen[partition] = {}
                self._recall(partition, position, ingested_at_us)
            fresh = self._first_time(self._seen[partition], event_id, ingested_at_us)
            keep.append(fresh)
            if not fresh:
                left_out.append((partition, position, DUPLICATES))
        return Batch(events.filter(pl.Series(keep)), batch.positions, batch.complete, batch.bad, left_out)

    def _recall(self, partition: int, before: int, ingested_at_us: int) -> None:
        """Take in what the log holds of the horizon before a position."""
        position = self._log.position_at(ingested_at_us - self._horizon_us)
        while entries := self._log.read({partition: position}, 256):
            for entry in entries:
                if entry.position >= before:
                    return
                table, _ = decode_payload(entry.payload)
                for event_id in table[names.EVENT_ID].to_pylist():
                    self._first_time(self._seen[partition], event_id, entry.ingested_at_us)
                position = entry.position

    def _first_time(self, seen: dict[str, int], event_id: str, ingested_at_us: int) -> bool:
        """Append time grows inside a partition, so the dictionary stays in its order and expires from the front."""
        oldest = ingested_at_us - self._horizon_us
        while seen and (first := next(iter(seen))) is not None and seen[first] < oldest:
            del seen[first]
        known = seen.pop(event_id, None) is not None
        seen[event_id] = ingested_at_us
        return not known


def _plain(column: pl.Series) -> list[object]:
    return (column.dt.timestamp("us") if column.dtype.is_temporal() else column).to_list()


@dataclass(frozen=True)
class ShardBatch:
    """What one slice means to one shard: by view, the events of its entities."""

    shard: int
    events: dict[str, pl.DataFrame]
    positions: Mapping[int, int]
    complete: Mapping[int, int]
    counted: list[tuple[int, int, str]]


class ShardSplitter:
    """Routes each view's events to the shard of their entity. Every shard gets every slice, for its positions."""

    def __init__(self, specs: Mapping[str, ViewSpec], shards: int, lateness_us: int) -> None:
        self._specs = specs
        self._shards = shards
        self._lateness_us = lateness_us
        self._shard_of: dict[str, int] = {}

    def __call__(self, batch: Batch) -> Iterator[tuple[str, ShardBatch]]:
        place = (names.LOG_PARTITION, names.LOG_POSITION)
        by_view = {
            name: self._partition(events_of(spec, batch.events, place), spec.entity_column)
            for name, spec in self._specs.items()
        }
        counted = self._count(batch)
        for shard in range(self._shards):
            parts = {name: parts[shard] for name, parts in by_view.items() if shard in parts}
            own = [entry for entry in counted if entry[0] % self._shards == shard]
            yield str(shard), ShardBatch(shard, parts, batch.positions, batch.complete, own)

    def _partition(self, events: pl.DataFrame, entity_column: str) -> dict[int, pl.DataFrame]:
        if events.is_empty():
            return {}
        keys = events[entity_column].to_list()
        if len(self._shard_of) > 1_000_000:
            self._shard_of.clear()
        for key in keys:
            if key not in self._shard_of:
                self._shard_of[key] = shard_of(key, self._shards)
        numbers = pl.Series("@shard", [self._shard_of[key] for key in keys])
        split = events.with_columns(numbers).partition_by("@shard", as_dict=True, include_key=False)
        return {int(shard): part for (shard,), part in split.items()}

    def _count(self, batch: Batch) -> list[tuple[int, int, str]]:
        """Each partition's counts go to one shard, which counts what its positions did not cover yet."""
        events = batch.events
        late = (events[names.RECEIVED_AT] - events[names.TIMESTAMP]).dt.total_microseconds() > self._lateness_us
        places = list(zip(events[names.LOG_PARTITION], events[names.LOG_POSITION], late, strict=True))
        return [
            *batch.left_out,
            *((partition, position, EVENTS) for partition, position, _ in places),
            *((partition, position, LATE) for partition, position, is_late in places if is_late),
        ]
