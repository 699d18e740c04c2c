"""Reading a source through the validation of the API: records as columns, and a dead letter for each row refused."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import orjson
import polars as pl
import pyarrow as pa
from pydantic import TypeAdapter, ValidationError

from headrace import names
from headrace.clock import from_micros, to_micros
from headrace.decoding import decode_payload
from headrace.events import RECORD_SCHEMA, Identifier, Refusal, parse, to_record
from headrace.ingest.progress import Report
from headrace.ingest.source import BadRow, ItemRow, ProfileRow, RawEvent, Source, content_id
from headrace.stores.dead_letters import DeadLetter

_CHUNK: Final = 20_000
_RAW_CHARS: Final = 4_096
_IDENTIFIER: Final[TypeAdapter[str]] = TypeAdapter(Identifier)


@dataclass
class Content:
    """What a source holds, before any shift of time."""

    events: pl.DataFrame
    """Accepted events as RECORD_SCHEMA, in the source's order, repeated ones included."""
    bytes: int
    """Their size in the log."""
    items: list[ItemRow] = field(default_factory=list)
    profiles: list[ProfileRow] = field(default_factory=list)
    refused: int = 0
    first_refusal: str | None = None


@dataclass(frozen=True)
class Limits:
    """What an accepted event, and all of them together, may be. `check_bytes` raises when the sum is too much."""

    event_bytes: int
    latest_us: int | None
    check_bytes: Callable[[int], None]


class Reader:
    """Turns a source's rows into Content; hands refused rows on as dead letters, a chunk at a time."""

    def __init__(self, source: Source, limits: Limits, keep: Callable[[list[DeadLetter]], object]) -> None:
        self._source = source
        self._limits = limits
        self._keep = keep
        self._lines: list[bytes] = []
        self._origins: list[str] = []
        self._letters: list[DeadLetter] = []
        self._tables: list[pa.Table] = []
        self._content = Content(pl.DataFrame(), bytes=0)

    def read(self, progress: Report | None = None) -> Content:
        """All of the source. Rows refused are counted and kept, whatever becomes of the rest."""
        content = self._content
        for count, row in enumerate(self._source.read(), start=1):
            match row:
                case RawEvent():
                    self._take(row)
                case ItemRow():
                    if self._is_identifier(row.item_id, names.ITEM_ID, row):
                        content.items.append(row)
                case ProfileRow():
                    if self._is_identifier(row.user_id, names.USER_ID, row):
                        content.profiles.append(row)
                case BadRow():
                    self._refuse(row.origin, row.field, row.reason, row.raw)
            if count % _CHUNK == 0:
                self._flush()
                if progress:
                    progress("read", count, 0)
        self._flush()
        content.events = _frame(pa.concat_tables([RECORD_SCHEMA.empty_table(), *self._tables]))
        return content

    def _take(self, row: RawEvent) -> None:
        event = parse(row.raw)
        if isinstance(event, Refusal):
            return self._refuse(row.origin, event.field, event.reason, row.raw)
        timestamp_us = to_micros(event.timestamp)
        latest_us = self._limits.latest_us
        if latest_us is not None and timestamp_us > latest_us:
            reason = (
                f"{event.timestamp.isoformat()} is ahead of the clock, at most {from_micros(latest_us).isoformat()}"
            )
            return self._refuse(row.origin, names.TIMESTAMP, reason, row.raw)
        line = orjson.dumps(to_record(event, timestamp_us, timestamp_us))
        if len(line) > self._limits.event_bytes:
            reason = f"{len(line)} bytes, the bound is {self._limits.event_bytes} (HEADRACE_MAX_EVENT_BYTES)"
            return self._refuse(row.origin, "event", reason, row.raw)
        self._lines.append(line)
        self._origins.append(row.origin)
        if row.item is not None:
            self._content.items.append(row.item)

    def _is_identifier(self, value: str, field: str, row: ItemRow | ProfileRow) -> bool:
        """Whether events could name it; a row that none can is refused."""
        try:
            _IDENTIFIER.validate_python(value)
        except ValidationError as error:
            self._refuse(self._source.name, field, error.errors(include_url=False)[0]["msg"], row._asdict())
            return False
        return True

    def _refuse(self, origin: str, field: str, reason: str, raw: Any) -> None:
        text = raw if isinstance(raw, str) else orjson.dumps(raw).decode()
        key = content_id("ingest", "\x1f".join((self._source.name, origin, field, text)))
        self._letters.append(DeadLetter(key, origin, field, reason, text[:_RAW_CHARS]))
        self._content.refused += 1
        self._content.first_refusal = self._content.first_refusal or f"{origin}, {field}: {reason}"

    def _flush(self) -> None:
        """Pack the lines gathered so far into columns, and hand the letters on."""
        if self._lines:
            table, bad = decode_payload(b"\n".join(self._lines))
            for record in bad:
                self._refuse(self._origins[record.index], "event", record.reason, record.raw.decode())
            self._tables.append(table.select(RECORD_SCHEMA.names))
            self._content.bytes += sum(map(len, self._lines)) + len(self._lines)
            self._lines, self._origins = [], []
            self._limits.check_bytes(self._content.bytes)
        if self._letters:
            self._keep(self._letters)
            self._letters = []


def _frame(table: pa.Table) -> pl.DataFrame:
    frame = pl.from_arrow(table)
    assert isinstance(frame, pl.DataFrame)
    return frame
