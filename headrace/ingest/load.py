"""`ingest`: a source's history into the log, or with `bulk` straight into the lake.

Everything is read and validated before anything but dead letters is written, so a source that is refused leaves the
stack as it was. A second load of the same content appends nothing: the lake's event ids say what is loaded already, and
what the lake flow has not written yet is caught by the flows' own dedup.
"""

from contextlib import closing
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Literal

import polars as pl
import pyarrow as pa

from headrace import names
from headrace.clock import Clock, system_clock, to_micros
from headrace.events import EVENT_SCHEMA
from headrace.ingest.feed import ENTRY_EVENTS, TIMES, Feeder
from headrace.ingest.plain_rows import add_rows, item_table, profile_table
from headrace.ingest.progress import Report
from headrace.ingest.source import Source
from headrace.ingest.validate import Limits, Reader
from headrace.settings import MICROS, Settings
from headrace.stores.dead_letters import DeadLetters
from headrace.stores.lake import EventLake
from headrace.stores.log import open_log
from headrace.stores.redis_client import connect

# An allocator rounds the log's entries up by at most a quarter.
_LOG_OVERHEAD: Final = 1.25
_LAKE_WAIT_S: Final = 30.0


class IngestError(RuntimeError):
    """The load was refused; nothing was appended."""


@dataclass(frozen=True)
class IngestReport:
    """What became of a source's rows. The log takes repeated events and the flows drop them; bulk drops them itself.

    Log: read = refused + already_loaded + appended. Bulk: of what is new, the repeated ones are not appended either.
    """

    source: str
    path: Literal["log", "bulk"]
    read: int
    refused: int
    first_refusal: str | None
    """Where, which field and why; all of them are in the dead letters."""
    duplicates: int
    """Rows whose event_id stood earlier in the same source."""
    already_loaded: int
    """Accepted rows whose event_id the lake holds."""
    appended: int
    types: dict[str, int]
    """Distinct accepted events by type."""
    items: int
    """Catalogue rows appended."""
    profiles: int
    """Profile rows appended."""
    shift_us: int
    """Added to every time."""
    last_event_us: int | None
    """Time of the newest event after the shift."""
    bulk_position: int | None = None
    """Number of this bulk load; a backfill has to follow it (`headrace backfill`)."""


def ingest(
    source: Source,
    settings: Settings,
    *,
    bulk: bool = False,
    shift_to_now: bool = False,
    clock: Clock = system_clock,
    progress: Report | None = None,
) -> IngestReport:
    """Load a source, its catalogue and its profiles.

    With `shift_to_now` one constant is added to all times so that the last event is now; content that is in the lake
    already keeps the constant it was loaded with. Raises IngestError, SourceError, LogUnavailableError.
    """
    with closing(connect(settings)) as client:
        log = open_log(client, settings)
        lake = EventLake(settings.lake_dir)
        limits = Limits(
            event_bytes=settings.max_event_bytes,
            latest_us=None if shift_to_now else clock() + round(settings.clock_ahead_s * MICROS),
            check_bytes=lambda size: None if bulk else _check_bound(source.name, size, settings.log_max_bytes),
        )
        content = Reader(source, limits, DeadLetters(client).add).read(progress)
        events = content.events
        if bulk:
            # Else it could write what the lake flow is about to write too.
            lake.wait_for(log.end(), _LAKE_WAIT_S)
        loaded = _loaded(lake, events)
        shift_us = _shift(events, loaded, clock()) if shift_to_now else 0
        new = events.join(loaded, on=names.EVENT_ID, how="anti")
        already_loaded = events.height - new.height
        new = new.with_columns(pl.col(TIMES) + pl.duration(microseconds=shift_us)).sort(names.TIMESTAMP, names.EVENT_ID)
        if bulk:
            new = new.unique(names.EVENT_ID, keep="first", maintain_order=True)
        elif new.height:
            coming = round(content.bytes * new.height / events.height * _LOG_OVERHEAD)
            _check_bound(source.name, log.size_bytes() + coming, settings.log_max_bytes)
        items = add_rows(settings.lake_dir, names.ITEMS_TABLE, item_table(content.items, shift_us))
        profiles = add_rows(settings.lake_dir, names.PROFILES_TABLE, profile_table(content.profiles, shift_us))
        position = None
        if bulk and new.height:
            position = _append_to_lake(lake, new, clock())
        elif new.height:
            _append_to_log(Feeder(log, settings.log_max_bytes), new, ENTRY_EVENTS * log.partitions, progress)
    distinct = events.unique(names.EVENT_ID)
    newest = events[names.TIMESTAMP].max()
    return IngestReport(
        source=source.name,
        path="bulk" if bulk else "log",
        read=events.height + content.refused,
        refused=content.refused,
        first_refusal=content.first_refusal,
        duplicates=events.height - distinct.height,
        already_loaded=already_loaded,
        appended=new.height,
        types=dict(sorted(distinct[names.TYPE].value_counts().iter_rows())),
        items=items,
        profiles=profiles,
        shift_us=shift_us,
        last_event_us=to_micros(newest) + shift_us if isinstance(newest, datetime) else None,
        bulk_position=position,
    )


def _check_bound(source: str, size: int, bound: int) -> None:
    if size > bound:
        raise IngestError(
            f"{source} would take the event log to {size} bytes or more, its bound is {bound} "
            "(HEADRACE_LOG_MAX_BYTES): load it with --bulk, then run `headrace backfill`"
        )


def _loaded(lake: EventLake, events: pl.DataFrame) -> pl.DataFrame:
    """Event ids of `events` that the lake holds, each with its time there as `loaded_at`."""
    ids = events.lazy().select(names.EVENT_ID).unique()
    stored = lake.scan([names.EVENT_ID, names.TIMESTAMP]).rename({names.TIMESTAMP: "loaded_at"})
    return stored.join(ids, on=names.EVENT_ID, how="semi").unique(names.EVENT_ID).collect()


def _shift(events: pl.DataFrame, loaded: pl.DataFrame, now_us: int) -> int:
    """Microseconds that take the last event to now, or the shift of an earlier load of the same content."""
    last_us = events.select(pl.col(names.TIMESTAMP).dt.epoch("us").max()).item()
    if last_us is None:
        return 0
    both = events.join(loaded, on=names.EVENT_ID)
    earlier_us = both.select((pl.col("loaded_at") - pl.col(names.TIMESTAMP)).dt.total_microseconds().min()).item()
    to_now_us = now_us - last_us
    return int(to_now_us if earlier_us is None else min(to_now_us, earlier_us))


def _append_to_lake(lake: EventLake, new: pl.DataFrame, ingested_at_us: int) -> int:
    """One commit under the next bulk position, which it returns."""
    position = lake.positions([names.BULK_PARTITION])[names.BULK_PARTITION] + 1
    stood = new.with_columns(
        pl.lit(ingested_at_us).cast(pl.Datetime("us", "UTC")).alias(names.INGESTED_AT),
        pl.lit(names.BULK_PARTITION).alias(names.LOG_PARTITION),
        pl.lit(position).alias(names.LOG_POSITION),
        pl.int_range(pl.len()).alias(names.LOG_INDEX),
    )
    table: pa.Table = stood.select(EVENT_SCHEMA.names).to_arrow().cast(EVENT_SCHEMA)
    if lake.append(table, {names.BULK_PARTITION: position}) < table.num_rows:
        raise IngestError("another bulk load was faster; nothing of this one was written: load it again")
    return position


def _append_to_log(feeder: Feeder, new: pl.DataFrame, slice_events: int, progress: Report | None) -> None:
    for start in range(0, new.height, slice_events):
        feeder.append(new.slice(start, slice_events))
        if progress:
            progress("append", min(start + slice_events, new.height), new.height)
