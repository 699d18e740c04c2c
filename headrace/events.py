"""The event contract: what a client may send, what the log holds, and the columns that every engine reads.

An event has three forms, each defined here once:

- `EventIn`: JSON from a client. Strict: unknown fields, wrong types and missing fields are refused with field and reason.
- a *record*: one line of JSON in a log entry, flat, times in Unix microseconds, stamped by the door (`stamp`).
- a row of `EVENT_SCHEMA`: Arrow columns, in the flows and in the lake (headrace.decoding makes them of records).

docs/events.md documents each field.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any, Final, Literal

import orjson
import pyarrow as pa
from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    model_validator,
)

from headrace import names
from headrace.clock import to_micros
from headrace.identity import user_key
from headrace.settings import MICROS

SCHEMA_VERSION: Final = 1  # compiled into kernels, as is the next
MAX_PROPERTIES_BYTES: Final = 8_192
MAX_NUMBER: Final = 1e15
"""Size of the largest number: sums of squares of products of a few of them are far from what a float64 holds."""
MODEL_VERSION_CHARS: Final = 128
"""An impression says so much of the name of the bundle that ranked it."""
MAX_TEXT_BYTES: Final = 4 * 128 + len(names.ANONYMOUS_PREFIX)
"""UTF-8 of the longest identifier, or key made of one."""

EventType = Literal[
    "impression", "view", "dwell", "scroll", "click", "search", "add_to_cart", "remove_from_cart",
    "begin_checkout", "purchase", "rate", "like", "dislike", "hide", "identify",
]  # fmt: skip
Identifier = Annotated[str, StringConstraints(min_length=1, max_length=128, pattern=r"^[^\x00-\x1f\x7f]+$")]


def _text_or_moment(value: object) -> object:
    """JSON has no times: a string, never a number that might be seconds or milliseconds."""
    if isinstance(value, datetime) or (isinstance(value, str) and value[4:5] == "-"):
        return value
    raise ValueError("must be a string, ISO 8601 with a time zone")


def _since_1970(moment: datetime) -> datetime:
    """Times are kept as Unix microseconds from 0."""
    if moment.year < 1971 and moment < datetime(1970, 1, 1, tzinfo=UTC):
        raise ValueError("must not be before 1970")
    return moment


Moment = Annotated[AwareDatetime, Field(strict=False), BeforeValidator(_text_or_moment), AfterValidator(_since_1970)]

NEEDS_ITEM: Final = frozenset(names.EVENT_TYPES) - {
    names.SCROLL,
    names.SEARCH,
    names.BEGIN_CHECKOUT,
    names.IDENTIFY,
}
NEEDS_VALUE: Final = frozenset({names.DWELL, names.SCROLL, names.RATE})
IMPRESSION_FIELDS: Final = ("score", "source", "model_version", "as_of", "propensity")


class Context(BaseModel):
    """Where the event happened. All optional."""

    model_config = ConfigDict(extra="forbid", strict=True)

    device: str | None = Field(None, max_length=64)
    page: str | None = Field(None, max_length=2048)
    referrer: str | None = Field(None, max_length=2048)
    country: str | None = Field(None, max_length=64)
    locale: str | None = Field(None, max_length=32)


def check_user(user_id: str | None, anonymous_id: str | None) -> None:
    """Raises ValueError unless these ids say who it is."""
    if user_id is None and anonymous_id is None:
        raise ValueError("one of user_id and anonymous_id is needed")
    if user_id is not None and user_id.startswith(names.ANONYMOUS_PREFIX):
        raise ValueError(f"user_id must not begin with '{names.ANONYMOUS_PREFIX}': that prefix marks anonymous users")


def first_error(error: ValidationError) -> tuple[str, str]:
    """Field and reason of the first thing that is wrong; no field where it is the whole."""
    first = error.errors(include_url=False, include_input=False)[0]
    return ".".join(str(part) for part in first["loc"]), first["msg"].removeprefix("Value error, ")


class EventIn(BaseModel):
    """One behaviour event as a client sends it. `event_id` is made by the client and makes retries harmless."""

    # Errors may be logged, and a log must not hold who did what.
    model_config = ConfigDict(extra="forbid", strict=True, hide_input_in_errors=True)

    event_id: Identifier
    type: EventType
    user_id: Identifier | None = None
    anonymous_id: Identifier | None = None
    session_id: Identifier | None = None
    item_id: Identifier | None = None
    timestamp: Annotated[Moment, Field(description="When it happened: ISO 8601 with a time zone.")]
    request_id: Identifier | None = Field(None, description="The recommendation that this event answers.")
    position: int | None = Field(None, ge=0, le=2**31 - 1, description="Place in that recommendation, from 0.")
    score: float | None = Field(None, allow_inf_nan=False)
    source: str | None = Field(None, max_length=64)
    model_version: str | None = Field(None, max_length=MODEL_VERSION_CHARS)
    as_of: Moment | None = None
    propensity: float | None = Field(None, gt=0, le=1)
    value: float | None = Field(
        None,
        ge=-MAX_NUMBER,
        le=MAX_NUMBER,
        allow_inf_nan=False,
        description="Seconds of a dwell, depth of a scroll, a rating.",
    )
    price: float | None = Field(None, ge=0, le=MAX_NUMBER, allow_inf_nan=False)
    quantity: int | None = Field(None, ge=1, le=1_000_000)
    query: str | None = Field(None, max_length=1024)
    context: Context | None = None
    properties: dict[str, Any] | None = None
    schema_version: int = Field(SCHEMA_VERSION, ge=1, le=SCHEMA_VERSION)

    @model_validator(mode="after")
    def _check_fields_that_the_type_needs(self) -> "EventIn":
        check_user(self.user_id, self.anonymous_id)
        if self.type == names.IDENTIFY and (self.user_id is None or self.anonymous_id is None):
            raise ValueError("identify links two ids: it needs user_id and anonymous_id")
        if self.type in NEEDS_ITEM and self.item_id is None:
            raise ValueError(f"item_id is needed for type {self.type}")
        if self.type in NEEDS_VALUE and self.value is None:
            raise ValueError(f"value is needed for type {self.type}")
        if self.type == names.SEARCH and self.query is None:
            raise ValueError("query is needed for type search")
        if self.type != names.IMPRESSION:
            for name in IMPRESSION_FIELDS:
                if getattr(self, name) is not None:
                    raise ValueError(f"{name} belongs to type impression alone, not to {self.type}")
        if self.properties is not None and len(_json(self.properties)) > MAX_PROPERTIES_BYTES:
            raise ValueError(f"properties exceed {MAX_PROPERTIES_BYTES} bytes of JSON")
        return self


def _json(properties: dict[str, Any]) -> bytes:
    try:
        return orjson.dumps(properties)
    except TypeError as error:  # orjson's own bound on depth
        raise ValueError(f"properties cannot be written as JSON: {error}") from error


_TIME = pa.timestamp("us", tz="UTC")
_RECORD_FIELDS: Final[list[tuple[str, pa.DataType]]] = [
    ("event_id", pa.string()),
    ("type", pa.string()),
    ("user_key", pa.string()),
    ("user_id", pa.string()),
    ("anonymous_id", pa.string()),
    ("session_id", pa.string()),
    ("item_id", pa.string()),
    ("timestamp", _TIME),
    ("client_timestamp", _TIME),
    ("received_at", _TIME),
    ("request_id", pa.string()),
    ("position", pa.int32()),
    ("score", pa.float64()),
    ("source", pa.string()),
    ("model_version", pa.string()),
    ("as_of", _TIME),
    ("propensity", pa.float64()),
    ("value", pa.float64()),
    ("price", pa.float64()),
    ("quantity", pa.int64()),
    ("query", pa.string()),
    ("context_device", pa.string()),
    ("context_page", pa.string()),
    ("context_referrer", pa.string()),
    ("context_country", pa.string()),
    ("context_locale", pa.string()),
    ("properties", pa.string()),
    ("schema_version", pa.int32()),
]
RECORD_SCHEMA: Final = pa.schema(_RECORD_FIELDS)
"""Columns of a record."""
EVENT_SCHEMA: Final = pa.schema(
    [
        *_RECORD_FIELDS,
        (names.INGESTED_AT, _TIME),
        (names.LOG_PARTITION, pa.int32()),
        (names.LOG_POSITION, pa.int64()),
        (names.LOG_INDEX, pa.int32()),
    ]
)
"""Columns of an event in the flows and in the lake: a record, when it was appended, and where it stands in the log."""


class ClockError(ValueError):
    """A timestamp further ahead of its arrival than the bound."""


@dataclass(frozen=True)
class Refusal:
    """Why one event of a batch was refused."""

    index: int
    field: str
    reason: str


def parse(raw: object, index: int = 0) -> EventIn | Refusal:
    """Validate one decoded JSON value against the contract."""
    try:
        return EventIn.model_validate(raw)
    except ValidationError as error:
        field, reason = first_error(error)
        return Refusal(index, field or "event", reason)


def stamp(event: EventIn, received_at_us: int, clock_ahead_us: int) -> dict[str, Any]:
    """The record of an event that arrived at `received_at_us`, with the rule of clocks applied.

    A timestamp ahead of arrival by at most `clock_ahead_us` becomes the arrival time, the original kept as
    `client_timestamp`. Raises ClockError beyond that.
    """
    timestamp = to_micros(event.timestamp)
    client_timestamp = None
    if timestamp > received_at_us:
        if timestamp - received_at_us > clock_ahead_us:
            ahead = (timestamp - received_at_us) / MICROS
            raise ClockError(
                f"{event.timestamp.isoformat()} is {ahead:.1f} s ahead of arrival, the bound is {clock_ahead_us / MICROS:.0f} s: "
                "correct the client's clock"
            )
        timestamp, client_timestamp = received_at_us, timestamp
    return to_record(event, timestamp, received_at_us, client_timestamp)


def to_record(
    event: EventIn, timestamp_us: int, received_at_us: int, client_timestamp_us: int | None = None
) -> dict[str, Any]:
    """The flat record of a validated event. Nulls are left out."""
    record = event.model_dump(exclude_none=True, exclude={"context", "properties", "timestamp", "as_of"})
    record["user_key"] = user_key(event.user_id, event.anonymous_id)
    record["timestamp"] = timestamp_us
    record["received_at"] = received_at_us
    if client_timestamp_us is not None:
        record["client_timestamp"] = client_timestamp_us
    if event.as_of is not None:
        record["as_of"] = to_micros(event.as_of)
    if event.context is not None:
        record |= {f"context_{key}": value for key, value in event.context.model_dump(exclude_none=True).items()}
    if event.properties is not None:
        record["properties"] = orjson.dumps(event.properties).decode()
    return record


def encode_records(records: Iterable[dict[str, Any]]) -> bytes:
    """The payload of one log entry: a line of JSON for each record."""
    return b"\n".join(orjson.dumps(record) for record in records)
