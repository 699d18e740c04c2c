"""`replay`: the lake of one stack streamed into the log of another, empty one, as it arrived, at a chosen speed."""

import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import polars as pl
from deltalake import DeltaTable

from headrace import names
from headrace.clock import Clock, system_clock
from headrace.events import RECORD_SCHEMA
from headrace.ingest.feed import ENTRY_EVENTS, Feeder, Sleep
from headrace.ingest.plain_rows import copy_tables
from headrace.ingest.progress import Report
from headrace.settings import MICROS, Settings
from headrace.stores.lake import EventLake
from headrace.stores.log import EventLog, open_log
from headrace.stores.redis_client import connect

# Sleeping less would make entries of single events at high rates.
_TICK_S: Final = 0.02
_REMEDY: Final = "replay into an empty stack of its own (another HEADRACE_DATA)"


class ReplayError(RuntimeError):
    """The replay was refused; nothing was appended."""


@dataclass(frozen=True)
class ReplayReport:
    events: int
    first_event_us: int | None
    last_event_us: int | None
    seconds: float
    """Wall time that the stream took."""


def replay(
    lake_dir: Path,
    settings: Settings,
    *,
    speed: float | None,
    clock: Clock = system_clock,
    progress: Report | None = None,
    sleep: Sleep = time.sleep,
) -> ReplayReport:
    """Stream the events of `lake_dir` in order of arrival (`received_at`, timestamp, event_id), times unchanged.

    `lake_dir` is a lake folder or the data directory that holds one. At speed 1.0 the gaps are those of the history, at
    60 a minute takes a second, with None or 0 it goes as fast as the log takes it. Catalogue and profiles are copied first.
    Raises ReplayError if there is no lake or if this stack holds events already.
    """
    if speed is not None and speed < 0:
        raise ValueError(f"speed is {speed}: give a number above 0, or 0 to go as fast as possible")
    origin = _lake_under(lake_dir)
    with closing(connect(settings)) as client:
        log = open_log(client, settings)
        _check_empty(log, settings)
        order = (names.RECEIVED_AT, names.TIMESTAMP, names.EVENT_ID)
        events = EventLake(origin).scan(RECORD_SCHEMA.names).sort(*order).collect()
        copy_tables(origin, settings.lake_dir)
        started_us = clock()
        feeder = Feeder(log, settings.log_max_bytes, sleep=sleep)
        _stream(events, feeder, ENTRY_EVENTS * log.partitions, speed, clock, progress, sleep)
    first_us, last_us = events.select(
        first=pl.col(names.TIMESTAMP).dt.epoch("us").min(), last=pl.col(names.TIMESTAMP).dt.epoch("us").max()
    ).row(0)
    return ReplayReport(events.height, first_us, last_us, (clock() - started_us) / MICROS)


def _stream(
    events: pl.DataFrame,
    feeder: Feeder,
    slice_events: int,
    speed: float | None,
    clock: Clock,
    progress: Report | None,
    sleep: Sleep,
) -> None:
    arrivals_us = events[names.RECEIVED_AT].dt.epoch("us").to_numpy()
    started_us = clock()
    done = 0
    while done < events.height:
        due = events.height
        if speed:
            reached_us = arrivals_us[0] + (clock() - started_us) * speed
            due = int(np.searchsorted(arrivals_us, reached_us, side="right"))
            if due == done:
                sleep(max(_TICK_S, (arrivals_us[done] - reached_us) / speed / MICROS))
                continue
        step = min(due - done, slice_events)
        feeder.append(events.slice(done, step))
        done += step
        if progress:
            progress("replay", done, events.height)


def _lake_under(folder: Path) -> Path:
    for lake_dir in (folder, folder / "lake"):
        if DeltaTable.is_deltatable(str(lake_dir / names.EVENTS_TABLE)):
            return lake_dir
    raise ReplayError(f"{folder} holds no event lake: name a folder with an `{names.EVENTS_TABLE}` table in it")


def _check_empty(log: EventLog, settings: Settings) -> None:
    if any(log.end().values()):
        raise ReplayError(f"the event log of {settings.data} is not empty: {_REMEDY}")
    if not EventLake(settings.lake_dir).scan([names.EVENT_ID]).head(1).collect().is_empty():
        raise ReplayError(f"the event lake at {settings.lake_dir} is not empty: {_REMEDY}")
