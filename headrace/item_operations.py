"""Operations on items: what the log holds of them, beside events and in the same form, and what they are when read back.

An `item_upsert` says the whole truth about an item and becomes a row of the view `item_catalogue`; an `item_status` says whether
it can be had and becomes a row of `item_status`. Neither needs to know what was before, so both flows make the same rows of them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import orjson

from headrace import names
from headrace.events import SCHEMA_VERSION

AVAILABLE: Final = "available"
DELETED: Final = "deleted"
VIEW_OF: Final = {names.ITEM_UPSERT: names.ITEM_CATALOGUE, names.ITEM_STATUS: names.ITEM_STATUS}
"""The view that each kind of operation becomes a row of."""


@dataclass(frozen=True)
class ItemOperation:
    """One operation as the log has it: `fields` by name, JSON values. Times in Unix microseconds."""

    kind: str
    item_id: str
    timestamp_us: int
    fields: Mapping[str, Any]

    @property
    def view(self) -> str:
        return VIEW_OF[self.kind]


def upsert(item_id: str, timestamp_us: int, fields: Mapping[str, Any]) -> ItemOperation:
    """All that is to be known of an item from then on; what `fields` leaves out is null."""
    return ItemOperation(names.ITEM_UPSERT, item_id, timestamp_us, dict(fields))


def status(item_id: str, timestamp_us: int, *, available: bool, deleted: bool = False) -> ItemOperation:
    return ItemOperation(names.ITEM_STATUS, item_id, timestamp_us, {AVAILABLE: available, DELETED: deleted})


def to_record(operation: ItemOperation, event_id: str) -> dict[str, Any]:
    """The record of an operation, for `headrace.events.encode_records`."""
    return {
        names.EVENT_ID: event_id,
        names.TYPE: operation.kind,
        names.USER_KEY: names.ITEM_PREFIX + operation.item_id,
        names.ITEM_ID: operation.item_id,
        names.TIMESTAMP: operation.timestamp_us,
        names.RECEIVED_AT: operation.timestamp_us,
        names.PROPERTIES: orjson.dumps(operation.fields).decode(),
        "schema_version": SCHEMA_VERSION,
    }


def from_columns(kind: str, item_id: str, timestamp_us: int, properties: str | None) -> ItemOperation:
    """The operation of a record that has been decoded. Raises ValueError for one that nothing can be made of."""
    fields = orjson.loads(properties or "null")
    if not isinstance(fields, dict):
        raise ValueError(f"properties of type {kind} hold no JSON object of fields")
    return ItemOperation(kind, item_id, timestamp_us, fields)
