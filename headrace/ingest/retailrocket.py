"""RetailRocket `events.csv`: views, carts and transactions of an online shop, times in Unix milliseconds."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from headrace import names
from headrace.ingest.source import (
    BadRow,
    ItemRow,
    RawEvent,
    SourceRow,
    content_id,
    csv_events,
    iso,
)

COLUMNS: Final = ("timestamp", "visitorid", "event", "itemid", "transactionid")
TYPES: Final = {"view": names.VIEW, "addtocart": names.ADD_TO_CART, "transaction": names.PURCHASE}


@dataclass(frozen=True)
class RetailRocket:
    """The file `events.csv`, gzip or not, or a folder that holds it. Visitors are users; the file has no item data."""

    path: Path
    name: str = "retailrocket"

    def read(self) -> Iterator[SourceRow]:
        return csv_events(self.path, ["events.csv"], COLUMNS, _event)


def _event(file: str, line: int, cells: Sequence[str]) -> RawEvent | BadRow:
    millis, visitor, kind, item, transaction = cells
    field = "timestamp"
    try:
        timestamp_us = int(millis) * 1_000
        timestamp = iso(timestamp_us)
        field = "event"
        if kind not in TYPES:
            raise ValueError(f"{kind!r} is none of {', '.join(TYPES)}")
    except (ValueError, OverflowError) as error:
        return BadRow(file, line, field, str(error), ",".join(cells))
    raw: dict[str, object] = {
        "event_id": content_id("retailrocket", "\x1f".join(cells)),
        "type": TYPES[kind],
        "user_id": visitor,
        "item_id": item,
        "timestamp": timestamp,
    }
    if transaction:
        raw["properties"] = {"transaction_id": transaction}
    return RawEvent(raw, f"{file}:{line}", ItemRow(item, timestamp_us))
