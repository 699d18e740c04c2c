"""The collection API, an application of its own without torch: a failing model never stops collection.

An event is acknowledged only once it is on disk in the event log. Each bad event of a batch is refused with its index,
field and reason while the good ones go in.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

import orjson
from fastapi import Depends, FastAPI, Request
from fastapi.openapi.utils import get_openapi
from starlette.responses import Response

from headrace import names
from headrace.clock import Clock, system_clock
from headrace.events import ClockError, EventIn, Refusal, parse, stamp
from headrace.settings import MICROS, Settings
from headrace.stores.tokens import EVENTS
from serving.acknowledge import Acknowledger, acknowledgement_docs
from serving.auth import Keys, require
from serving.committer import GroupCommitter, Record, log_writer
from serving.metrics import CollectorMetrics, exposition
from serving.web import (
    PROBLEM_SCHEMA,
    REFUSALS,
    Problem,
    SlashAtMount,
    add_docs,
    json_response,
    new_app,
    problem_docs,
    read_json,
    with_security,
)


@dataclass(frozen=True)
class Batch:
    """The events of one request, validated: records to append, and refusals in the order of the request."""

    records: list[Record]
    refused: list[dict[str, Any]]


class EventValidator:
    """Decides about each event of a request: a stamped record, or a refusal with index, event id, field and reason."""

    def __init__(self, settings: Settings, clock: Clock) -> None:
        self._clock = clock
        self._clock_ahead_us = int(settings.clock_ahead_s * MICROS)
        self._max_event_bytes = settings.max_event_bytes
        self._max_batch_events = settings.max_batch_events

    def validate(self, body: Any) -> Batch:
        """Raises `Problem` (413, 422) when the body as a whole is no batch; a bad event is only refused."""
        received_at_us = self._clock()
        batch = Batch([], [])
        for index, raw in enumerate(self._events_of(body)):
            outcome = self._validate_one(raw, index, received_at_us)
            if isinstance(outcome, Refusal):
                batch.refused.append(
                    {"index": index, "event_id": _event_id(raw), "field": outcome.field, "reason": outcome.reason}
                )
            else:
                batch.records.append(outcome)
        return batch

    def _events_of(self, body: Any) -> list[Any]:
        match body:
            case {"events": list(events)}:
                if len(body) > 1:
                    raise Problem(422, "there are fields next to events", 'send {"events": [...]} alone')
            case {"events": _}:
                raise Problem(422, "events is not a list", 'send {"events": [...]}')
            case list(events):
                pass
            case dict():
                return [body]
            case _:
                raise Problem(
                    422, "the body is no event", 'send one event object, a JSON array of them, or {"events": [...]}'
                )
        if not events:
            raise Problem(422, "the batch holds no event", "send at least one")
        if len(events) > self._max_batch_events:
            raise Problem(
                413, f"{len(events)} events in one batch, at most {self._max_batch_events}", "send smaller batches"
            )
        return list(events)

    def _validate_one(self, raw: object, index: int, received_at_us: int) -> Record | Refusal:
        try:
            size = len(orjson.dumps(raw))
        except TypeError:
            return Refusal(index, "event", "it is nested more than 250 levels deep")
        if size > self._max_event_bytes:
            return Refusal(index, "event", f"it has {size} bytes, at most {self._max_event_bytes}")
        event = parse(raw, index)
        if isinstance(event, Refusal):
            return event
        try:
            return stamp(event, received_at_us, self._clock_ahead_us)
        except ClockError as error:
            return Refusal(index, names.TIMESTAMP, str(error))


def _event_id(raw: object) -> str | None:
    """What the client called a refused event, so that it can find it again; cut, since nothing about it is checked."""
    value = raw.get(names.EVENT_ID) if isinstance(raw, dict) else None
    return value[:128] if isinstance(value, str) else None


def build_collector(settings: Settings, clock: Clock = system_clock) -> FastAPI:
    """The application, to be mounted at `names.EVENTS_PATH`."""
    metrics = CollectorMetrics(settings.metrics_dir)
    validator = EventValidator(settings, clock)
    committer = GroupCommitter(log_writer(settings), metrics)
    again = "send the same events, with the same event_id, again after Retry-After seconds"
    acknowledger = Acknowledger(committer, metrics, EVENTS, "event", again, _metric_field)
    may_write = require(Keys(settings.event_keys, "HEADRACE_EVENT_KEYS"))
    may_read = require(Keys(settings.read_keys, "HEADRACE_READ_KEYS"))

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await committer.close()

    app = new_app(_TITLE, _DESCRIPTION, lifespan=lifespan)
    app.add_middleware(SlashAtMount)
    add_docs(app, may_write, lambda: collector_openapi(app))

    @app.post("/", **_EVENTS_DOCS)
    async def post_events(request: Request) -> Response:
        may_write(request)  # as a dependency it would be called in another thread, which costs as much as the rest
        batch = validator.validate(await read_json(request.headers, request.receive, settings.max_body_bytes))
        return json_response(await acknowledger.take(batch.records, batch.refused))

    @app.get("/metrics", dependencies=[Depends(may_read)], include_in_schema=False)
    def get_metrics() -> Response:
        return Response(exposition(metrics.registry), media_type="text/plain; version=0.0.4")

    return app


def _metric_field(field: str) -> str:
    """A label with few values: a client's own field names must not become metrics."""
    first = field.split(".")[0]
    return first if first in EventIn.model_fields or first == "event" else "unknown"


def documented() -> FastAPI:
    """What stands in the documents, with nothing behind it: a collector opens files to count in."""
    app = new_app(_TITLE, _DESCRIPTION)

    @app.post("/", **_EVENTS_DOCS)
    def post_events() -> None: ...

    return app


def collector_openapi(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI document, with the schema of an event (the body itself is read raw)."""
    document = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
    event = EventIn.model_json_schema(ref_template="#/components/schemas/{model}")
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    schemas |= event.pop("$defs", {}) | {"EventIn": event, "Problem": PROBLEM_SCHEMA}
    document["servers"] = [{"url": names.EVENTS_PATH}]
    return with_security(document)


_TITLE, _DESCRIPTION = "Headrace collector", "Behaviour events in."
_EVENT = {"$ref": "#/components/schemas/EventIn"}
_EXAMPLE = {
    "event_id": "0198c1a2-7b3c-7d10-8a55-5d2f1c3b4a69",
    "type": "click",
    "user_id": "u-17",
    "item_id": "i-4711",
    "timestamp": "2026-01-31T12:00:00.250Z",
    "request_id": "r-93",
    "position": 2,
}
_EVENTS_DOCS: Final[dict[str, Any]] = {
    "summary": "Record one event or a batch",
    "description": "Acknowledged once on disk. `event_id` makes retries harmless: the same id counts once.",
    "responses": {
        **acknowledgement_docs("events", "e.2-1831234567890", ("event_id", "field", "reason")),
        **REFUSALS,
        413: problem_docs("Body or batch too large."),
        422: problem_docs("No event was accepted."),
    },
    "openapi_extra": {
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {
                    "schema": {
                        "oneOf": [
                            _EVENT,
                            {"type": "array", "items": _EVENT},
                            {
                                "type": "object",
                                "required": ["events"],
                                "properties": {"events": {"type": "array", "items": _EVENT}},
                            },
                        ]
                    },
                    "examples": {"one": {"value": _EXAMPLE}, "batch": {"value": {"events": [_EXAMPLE]}}},
                }
            },
        }
    },
}
