"""Feeding the log: events of a table become entries of each partition; the log's byte bound holds the feeder back."""

import time
from collections.abc import Callable, Iterator
from typing import Any, Final

import polars as pl
import pyarrow as pa

from headrace import names
from headrace.events import RECORD_SCHEMA, encode_records
from headrace.hashing import shards_of
from headrace.stores.log import EventLog, LogFullError

ENTRY_EVENTS: Final = 500
TIMES: Final = [field.name for field in RECORD_SCHEMA if pa.types.is_timestamp(field.type)]
_MEASURE_BYTES: Final = 8 * 1024**2
_POLL_S: Final = 0.2

Sleep = Callable[[float], None]


class Feeder:
    """Appends events in the order given. In flight is one call: at most ENTRY_EVENTS events of each partition."""

    def __init__(self, log: EventLog, max_bytes: int, patience_s: float = 30.0, sleep: Sleep = time.sleep) -> None:
        self._log = log
        self._max_bytes = max_bytes
        self._patience_s = patience_s
        self._sleep = sleep
        self._measured = log.size_bytes()
        self._since = 0

    def append(self, events: pl.DataFrame) -> None:
        """Append records (columns of RECORD_SCHEMA). Raises LogFullError after `patience_s` without room."""
        parts: dict[int, list[dict[str, Any]]] = {}
        partitions = shards_of(events[names.USER_KEY], self._log.partitions)
        for partition, record in zip(partitions.tolist(), records_of(events), strict=True):
            parts.setdefault(partition, []).append(record)
        for start in range(0, max(map(len, parts.values()), default=0), ENTRY_EVENTS):
            batch = {p: records[start : start + ENTRY_EVENTS] for p, records in parts.items() if start < len(records)}
            payloads = {p: encode_records(records) for p, records in batch.items()}
            self._wait_for_room(sum(map(len, payloads.values())))
            self._log.append(payloads, {p: len(records) for p, records in batch.items()})

    def _wait_for_room(self, coming: int) -> None:
        """Wait until `coming` more bytes fit. The size is asked for every few megabytes, and while room is short."""
        waited_s = 0.0
        while self._since >= _MEASURE_BYTES or self._measured + self._since + coming > self._max_bytes:
            self._measured, self._since = self._log.size_bytes(), 0
            if self._measured + coming > self._max_bytes:
                if waited_s >= self._patience_s:
                    raise LogFullError(
                        f"the event log holds {self._measured} bytes and has no room for {coming} more, its bound is "
                        f"{self._max_bytes} (HEADRACE_LOG_MAX_BYTES): repeat the load to append what is missing"
                    )
                self._sleep(_POLL_S)
                waited_s += _POLL_S
        self._since += coming


def records_of(events: pl.DataFrame) -> Iterator[dict[str, Any]]:
    """Rows of RECORD_SCHEMA as the log holds them: flat, times in Unix microseconds, nulls left out."""
    frame = events.select(RECORD_SCHEMA.names).with_columns(pl.col(TIMES).dt.epoch("us"))
    return ({name: value for name, value in row.items() if value is not None} for row in frame.iter_rows(named=True))
