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
    delimited_rows,
    files_under,
    iso,
    open_text,
    read_header,
)

COLUMNS: Final = ("timestamp", "visitorid", "event", "itemid", "transactionid")
TYPES: Final = {"view": names.VIEW, "addtocart": names.ADD_TO_CART, "transaction": names.PURCHASE}


@dataclass(frozen=True)
class RetailRocket:
    """The file `events.csv`, gzip or not, or a folder that holds it. Visitors are users; the file has no item data."""

    path: Path
    name: str = "retailrocket"

    def read(self) -> Iterator[SourceRow]:
        for path in files_under(self.path, ["events.csv"]):
            with open_text(path) as text:
                read_header(text, path.name, COLUMNS)
                for row in delimited_rows(text, path.name, COLUMNS, first_line=2):
                    yield row if isinstance(row, BadRow) else _event(path.name, *row)


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
