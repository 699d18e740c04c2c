"""REES46, a general store's months: CSV files of views, carts and purchases with category, brand and price on each row.

Category is the row's `category_code`, or its `category_id` where the code is empty; the files hold no title.
"""

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
    number,
    parse_micros,
    without_nulls,
)

COLUMNS: Final = (
    "event_time", "event_type", "product_id", "category_id", "category_code",
    "brand", "price", "user_id", "user_session",
)  # fmt: skip
TYPES: Final = {
    "view": names.VIEW,
    "cart": names.ADD_TO_CART,
    "remove_from_cart": names.REMOVE_FROM_CART,
    "purchase": names.PURCHASE,
}


@dataclass(frozen=True)
class Rees46:
    """A `.csv` or `.csv.gz` file, or a folder of them."""

    path: Path
    name: str = "rees46"

    def read(self) -> Iterator[SourceRow]:
        return csv_events(self.path, [".csv"], COLUMNS, _event)


def _event(file: str, line: int, cells: Sequence[str]) -> RawEvent | BadRow:
    time, kind, product, category_id, category_code, brand, price_text, user, session = cells
    field = "event_time"
    try:
        timestamp = time.replace(" UTC", "Z").replace(" ", "T", 1)
        timestamp_us = parse_micros(timestamp)
        field = "event_type"
        if kind not in TYPES:
            raise ValueError(f"{kind!r} is none of {', '.join(TYPES)}")
        field = "price"
        price = number(price_text)
    except ValueError as error:
        return BadRow(file, line, field, str(error), ",".join(cells))
    raw = {
        "event_id": content_id("rees46", "\x1f".join(cells)),
        "type": TYPES[kind],
        "user_id": user,
        "session_id": session,
        "item_id": product,
        "timestamp": timestamp,
        "price": price,
        "quantity": 1 if kind == "purchase" else None,
    }
    item = ItemRow(
        product, timestamp_us, category=category_code or category_id or None, brand=brand or None, price=price
    )
    return RawEvent(without_nulls(raw), f"{file}:{line}", item)
