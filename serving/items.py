"""`POST /v1/items`: the catalogue as its owner says it is. Operations go into the event log, and from there into both stores.

Each is stamped with the time of its arrival, so the order of arrival is the order in which they count; each says all there is to say,
so none needs to be merged with what was before, and any may be sent again.
"""

import threading
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import anyio.to_thread
import orjson
from fastapi import FastAPI, Request
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.responses import Response

from headrace import names
from headrace.clock import Clock
from headrace.events import MAX_NUMBER, Identifier, first_error
from headrace.item_operations import AVAILABLE, ItemOperation, status, to_record, upsert
from headrace.settings import Settings
from headrace.stores.definitions import PlainViews
from headrace.stores.item_fields import MAX_TEXT, ItemFieldError
from headrace.stores.item_rows import NoSuchViewError, row_of
from headrace.stores.plain_rows import PlainLayout
from headrace.stores.tokens import ITEMS
from serving.acknowledge import Acknowledger, acknowledgement_docs
from serving.auth import Keys, require
from serving.committer import GroupCommitter, Record, log_writer
from serving.metrics import ItemsMetrics, RecommenderMetrics
from serving.web import REFUSALS, Problem, json_response, problem_docs, read_json

MAX_OPERATIONS: Final = 1_000
UPSERT, AVAILABILITY, DELETE = "upsert", "availability", "delete"
LISTS: Final = (UPSERT, AVAILABILITY, DELETE)
"""In the order in which the operations of one request count."""


class UpsertIn(BaseModel):
    """All there is to say of an item: what is left out is not known of it any more."""

    model_config = ConfigDict(extra="forbid", strict=True)

    item_id: Identifier
    title: str | None = Field(None, max_length=MAX_TEXT)
    category: str | None = Field(None, max_length=MAX_TEXT)
    brand: str | None = Field(None, max_length=MAX_TEXT)
    price: float | None = Field(None, ge=0, le=MAX_NUMBER, allow_inf_nan=False)
    available: bool = True
    properties: dict[str, Any] | None = Field(
        None, description="Further fields that the view `item_catalogue` declares, by name."
    )


class AvailabilityIn(BaseModel):
    """Whether an item can be had."""

    model_config = ConfigDict(extra="forbid", strict=True)

    item_id: Identifier
    available: bool


class _DeleteIn(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    item_id: Identifier


class ItemRefusedError(ValueError):
    """One operation of a request, with the field that is wrong."""

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"{field}: {reason}")
        self.field = field
        self.reason = reason


@dataclass(frozen=True)
class ItemBatch:
    """The operations of one request, validated: records to append, and refusals in the order of the request."""

    records: list[Record] = field(default_factory=list)
    refused: list[dict[str, Any]] = field(default_factory=list)


class ItemValidator:
    """Decides about each operation: a stamped record, or a refusal with list, index, item id, field and reason."""

    def __init__(self, settings: Settings, clock: Clock) -> None:
        self._clock = clock
        self._views = PlainViews(settings)
        self._max_bytes = settings.max_event_bytes
        self._lock = threading.Lock()
        self._last_us = 0

    def validate(self, body: object) -> ItemBatch:
        """Raises `Problem` (413, 422) when the body as a whole holds no operations; a bad one is only refused."""
        operations = list(_operations_of(body))
        with self._lock:  # requests are validated in threads, and reading the definitions anew is one's work
            views = self._views.current()
            first_us = self._stamps(len(operations))
        batch = ItemBatch()
        for place, (which, index, raw) in enumerate(operations):
            try:
                operation = self._read(which, raw, first_us + place, views)
            except ItemRefusedError as error:
                batch.refused.append(
                    {
                        "list": which,
                        "index": index,
                        "item_id": _item_id(raw),
                        "field": error.field,
                        "reason": error.reason,
                    }
                )
            else:
                batch.records.append(to_record(operation, str(uuid.uuid4())))
        return batch

    def _stamps(self, count: int) -> int:
        """The first of `count` times in a row that no operation has had here: the last of them is now, unless now is taken."""
        first_us = max(self._last_us + 1, self._clock() - count + 1)
        self._last_us = first_us + count - 1
        return first_us

    def _read(self, which: str, raw: object, at_us: int, views: Mapping[str, PlainLayout]) -> ItemOperation:
        """Raises ItemRefusedError."""
        _check_size(raw, self._max_bytes)
        try:
            operation = _operation_of(which, raw, at_us, views)
        except ValidationError as error:
            name, reason = first_error(error)
            raise ItemRefusedError(name[:200] or which, reason) from error
        try:
            row_of(operation, at_us, views)
        except NoSuchViewError as error:
            raise ItemRefusedError(which, str(error)) from error
        except ItemFieldError as error:
            place = error.field if error.field in UpsertIn.model_fields else f"properties.{error.field}"
            raise ItemRefusedError(place[:200], error.reason) from error
        return operation


def _operations_of(body: object) -> Iterator[tuple[str, int, object]]:
    """(list, index, value) of each operation, in the order in which they count. Raises `Problem`."""
    remedy = f'send {{"{UPSERT}": [...], "{AVAILABILITY}": [...], "{DELETE}": [...]}}, any of the three'
    if not isinstance(body, dict):
        raise Problem(422, "the body is no object", remedy)
    unknown = [str(name)[:64] for name in body if name not in LISTS]
    if unknown:
        raise Problem(422, f"{unknown[0]!r} is no list of operations", remedy)
    wrong = [name for name, value in body.items() if not isinstance(value, list)]
    if wrong:
        raise Problem(422, f"{wrong[0]} is not a list", remedy)
    count = sum(map(len, body.values()))
    if not count:
        raise Problem(422, "the request holds no operation", remedy)
    if count > MAX_OPERATIONS:
        raise Problem(413, f"{count} operations in one request, at most {MAX_OPERATIONS}", "send smaller requests")
    for which in LISTS:
        for index, raw in enumerate(body.get(which, ())):
            yield which, index, raw


def _check_size(raw: object, max_bytes: int) -> None:
    try:
        size = len(orjson.dumps(raw))
    except TypeError as error:
        raise ItemRefusedError("item", "it is nested more than 250 levels deep") from error
    if size > max_bytes:
        raise ItemRefusedError("item", f"it has {size} bytes, at most {max_bytes}")


def _operation_of(which: str, raw: object, at_us: int, views: Mapping[str, PlainLayout]) -> ItemOperation:
    """Raises ValidationError, ItemRefusedError."""
    if which == AVAILABILITY:
        given = AvailabilityIn.model_validate(raw)
        return status(given.item_id, at_us, available=given.available)
    if which == DELETE:
        return status(_DeleteIn.model_validate({names.ITEM_ID: raw}).item_id, at_us, available=False, deleted=True)
    item = UpsertIn.model_validate(raw)
    fields = item.model_dump(exclude={names.ITEM_ID, names.PROPERTIES}, exclude_none=True)
    layout = views.get(names.ITEM_CATALOGUE)
    if AVAILABLE not in item.model_fields_set and layout is not None and AVAILABLE not in dict(layout.fields):
        del fields[AVAILABLE]
    for name in item.properties or {}:
        if name in UpsertIn.model_fields:
            raise ItemRefusedError(f"properties.{name}", "it is a field of its own: give it beside properties")
    return upsert(item.item_id, at_us, fields | (item.properties or {}))


def _item_id(raw: object) -> str | None:
    """What a refused operation is about, cut, since nothing about it is checked."""
    value = raw.get(names.ITEM_ID) if isinstance(raw, dict) else raw
    return value[:128] if isinstance(value, str) else None


class ItemsDoor:
    """Validates and commits. Lives on one event loop; `close` finishes what was begun."""

    def __init__(self, settings: Settings, clock: Clock, metrics: ItemsMetrics) -> None:
        self._validator = ItemValidator(settings, clock)
        self._committer = GroupCommitter(log_writer(settings), metrics)
        again = "send the same operations again after Retry-After seconds: taken twice, they change nothing"
        self._acknowledger = Acknowledger(self._committer, metrics, ITEMS, "operation", again, _metric_field)

    async def take(self, body: object) -> dict[str, Any]:
        """The acknowledgement. Raises `Problem`."""
        batch = await anyio.to_thread.run_sync(self._validator.validate, body)
        return await self._acknowledger.take(batch.records, batch.refused)

    async def close(self) -> None:
        await self._committer.close()


def _metric_field(name: str) -> str:
    """A label with few values."""
    first = name.split(".")[0]
    return first if first in UpsertIn.model_fields or first in LISTS or first == "item" else "unknown"


def add_items_route(app: FastAPI, settings: Settings, clock: Clock, metrics: RecommenderMetrics) -> ItemsDoor:
    """Adds `POST /v1/items` to the application, which closes the door when it ends."""
    door = ItemsDoor(settings, clock, metrics.items_door)
    may_manage = require(Keys(settings.admin_keys, "HEADRACE_ADMIN_KEYS"))

    @app.post(names.ITEMS_PATH, **_DOCS)
    async def post_items(request: Request) -> Response:
        may_manage(request)
        return json_response(
            await door.take(await read_json(request.headers, request.receive, settings.max_body_bytes))
        )

    return door


_EXAMPLE: Final = {
    UPSERT: [{"item_id": "i-4711", "title": "Steel watch", "category": "watches", "brand": "Acme", "price": 129.0}],
    AVAILABILITY: [{"item_id": "i-17", "available": False}],
    DELETE: ["i-93"],
}
_DOCS: Final[dict[str, Any]] = {
    "summary": "Say what the catalogue holds",
    "description": (
        "Acknowledged once on disk. An upsert says all there is to say of an item; what it leaves out is forgotten. In one request "
        "upserts count before availability, and that before deletes. Sent twice, an operation changes nothing."
    ),
    "responses": {
        **acknowledgement_docs("operations", "i.2-1831234567890", ("list", "item_id", "field", "reason")),
        **REFUSALS,
        413: problem_docs("Body too large, or too many operations."),
        422: problem_docs("No operation was accepted."),
    },
    "openapi_extra": {
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {
                    "schema": {
                        "type": "object",
                        "additionalProperties": False,
                        "description": f"At most {MAX_OPERATIONS} operations in all.",
                        "properties": {
                            UPSERT: {"type": "array", "items": UpsertIn.model_json_schema()},
                            AVAILABILITY: {"type": "array", "items": AvailabilityIn.model_json_schema()},
                            DELETE: {
                                "type": "array",
                                "items": _DeleteIn.model_json_schema()["properties"][names.ITEM_ID],
                            },
                        },
                    },
                    "examples": {"all three": {"value": _EXAMPLE}},
                }
            },
        }
    },
}
