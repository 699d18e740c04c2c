"""Taobao `UserBehavior.csv`: page views, carts, favourites and purchases with the item's category, Unix seconds."""

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

COLUMNS: Final = ("user_id", "item_id", "category_id", "behavior_type", "timestamp")
TYPES: Final = {"pv": names.VIEW, "cart": names.ADD_TO_CART, "fav": names.LIKE, "buy": names.PURCHASE}


@dataclass(frozen=True)
class Taobao:
    """The file, which has no header, gzip or not, or a folder that holds it."""

    path: Path
    name: str = "taobao"

    def read(self) -> Iterator[SourceRow]:
        return csv_events(self.path, [".csv"], COLUMNS, _event, header=False)


def _event(file: str, line: int, cells: Sequence[str]) -> RawEvent | BadRow:
    user, item, category, kind, seconds = cells
    field = "behavior_type"
    try:
        if kind not in TYPES:
            raise ValueError(f"{kind!r} is none of {', '.join(TYPES)}")
        field = "timestamp"
        timestamp_us = int(seconds) * 1_000_000
        timestamp = iso(timestamp_us)
    except (ValueError, OverflowError) as error:
        return BadRow(file, line, field, str(error), ",".join(cells))
    raw = {
        "event_id": content_id("taobao", "\x1f".join(cells)),
        "type": TYPES[kind],
        "user_id": user,
        "item_id": item,
        "timestamp": timestamp,
    }
    return RawEvent(raw, f"{file}:{line}", ItemRow(item, timestamp_us, category=category or None))
