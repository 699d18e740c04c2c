"""An event on its way out: completed with an id and a time, checked against the contract, made JSON."""

import os
import uuid
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

import orjson
from pydantic import ValidationError
from typing_extensions import TypedDict

from headrace import names
from headrace.client.errors import RefusedError
from headrace.clock import Clock, from_micros
from headrace.events import EventIn, first_error
from headrace.identity import user_key

NewId = Callable[[], str]


class ContextFields(TypedDict, total=False):
    """Where it happens (docs/events.md)."""

    device: str
    page: str
    referrer: str
    country: str
    locale: str


class EventFields(TypedDict, total=False):
    """An event's fields but its type (docs/events.md). `event_id` and `timestamp` are made where they are left out."""

    event_id: str
    user_id: str | None
    anonymous_id: str | None
    session_id: str | None
    item_id: str | None
    timestamp: datetime | str
    request_id: str | None
    position: int | None
    score: float | None
    source: str | None
    model_version: str | None
    as_of: datetime | str | None
    propensity: float | None
    value: float | None
    price: float | None
    quantity: int | None
    query: str | None
    context: ContextFields | None
    properties: dict[str, Any] | None
    schema_version: int


def new_event_id(clock: Clock, entropy: Callable[[int], bytes] = os.urandom) -> str:
    """A UUID of version 7 (RFC 9562): 48 bits of Unix milliseconds, then 74 random ones."""
    millis, chance = clock() // 1_000, int.from_bytes(entropy(10))
    high, low = chance >> 68, chance & (1 << 62) - 1
    return str(uuid.UUID(int=millis << 80 | 7 << 76 | high << 64 | 2 << 62 | low))


def encode_event(event: EventIn | Mapping[str, Any], clock: Clock, max_bytes: int) -> tuple[str, bytes]:
    """The id and the JSON of an event; id and time are added where a mapping lacks them.

    Raises RefusedError with the field and the reason.
    """
    if isinstance(event, EventIn):
        checked = event
    else:
        fields = dict(event)
        fields.setdefault(names.EVENT_ID, new_event_id(clock))
        fields.setdefault(names.TIMESTAMP, from_micros(clock()))
        checked = _validated(fields)
    try:
        encoded = orjson.dumps(checked.model_dump(exclude_none=True))
    except TypeError as error:
        raise RefusedError("the event", "event", f"it cannot be written as JSON: {error}") from error
    if len(encoded) > max_bytes:
        reason = f"it has {len(encoded)} bytes, at most {max_bytes} (ClientConfig.max_event_bytes)"
        raise RefusedError("the event", "event", reason)
    return checked.event_id, encoded


def _validated(fields: dict[str, Any]) -> EventIn:
    try:
        return EventIn.model_validate(fields)
    except ValidationError as error:
        field, reason = first_error(error)
        raise RefusedError("the event", field or "event", f"{reason}; docs/events.md has the rules") from error


def user_of(event: Mapping[str, Any]) -> str:
    """The user key of a decoded event."""
    return user_key(event.get("user_id"), event.get("anonymous_id"))
