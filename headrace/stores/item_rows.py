"""Rows of plain views that operations on items become: packed for the online store, as a table for the lake."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import pyarrow as pa

from headrace import names
from headrace.item_operations import ItemOperation
from headrace.stores.item_fields import arrow_type, conform, feast_value
from headrace.stores.plain_rows import PlainLayout

_TIME: Final = pa.timestamp("us", tz="UTC")


class NoSuchViewError(ValueError):
    """The feature repository lacks a view that operations on items become rows of."""


@dataclass(frozen=True)
class ItemRow:
    """A full row: `values` has every field of the view. Times in Unix microseconds; created when the log took it in."""

    layout: PlainLayout
    item_id: str
    timestamp_us: int
    created_us: int
    values: Mapping[str, Any]

    @property
    def view(self) -> str:
        return self.layout.view

    def pack(self) -> bytes:
        """As the online store keeps it."""
        kinds = dict(self.layout.fields)
        values = {name: feast_value(kinds[name], value) for name, value in self.values.items() if value is not None}
        return self.layout.pack(values, self.timestamp_us, self.created_us)


def row_of(operation: ItemOperation, created_us: int, views: Mapping[str, PlainLayout]) -> ItemRow:
    """The row that an operation becomes. Raises NoSuchViewError, ItemFieldError."""
    layout = views.get(operation.view)
    if layout is None:
        raise NoSuchViewError(
            f"the feature repository has no view '{operation.view}': declare it as docs/items.md says, and run `headrace apply`"
        )
    values = conform(layout, operation.fields)
    return ItemRow(layout, operation.item_id, operation.timestamp_us, created_us, values)


def as_table(rows: Sequence[ItemRow]) -> pa.Table:
    """Rows of one view in the form of its lake table. Of rows that agree in item, timestamp and created the last counts."""
    last = {(row.item_id, row.timestamp_us, row.created_us): row for row in rows}.values()
    times = {"event_timestamp": [row.timestamp_us for row in last], "created": [row.created_us for row in last]}
    columns = {names.ITEM_ID: pa.array([row.item_id for row in last], pa.string())}
    for name, kind in rows[0].layout.fields:
        columns[name] = pa.array([row.values[name] for row in last], arrow_type(kind))
    return pa.table(columns | {name: pa.array(column, pa.int64()).cast(_TIME) for name, column in times.items()})
