"""The last good view of the shop that a bundle carries: catalogue, availability, popularity.

Read without torch, so that a slate can be made where nothing else works.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from headrace import names

FILE = "snapshot.json"


@dataclass(frozen=True)
class Snapshot:
    """Parallel columns of N items, most popular first. `price` and strings may be null."""

    as_of_us: int
    item_id: list[str]
    title: list[str | None]
    category: list[str | None]
    brand: list[str | None]
    price: list[float | None]
    available: list[bool]

    def popular(self, n: int) -> list[str]:
        """The n most popular items that are available; fewer where there are fewer."""
        return [item for item, available in zip(self.item_id, self.available, strict=True) if available][:n]

    def features(self) -> dict[str, list[Any]]:
        """The catalogue under the names that features have."""
        view = names.ITEM_CATALOGUE
        return {
            names.ITEM_ID: self.item_id,
            f"{view}__category": self.category,
            f"{view}__brand": self.brand,
            f"{view}__price": self.price,
        }

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self)))

    @classmethod
    def read(cls, path: Path) -> "Snapshot":
        return cls(**json.loads(path.read_text()))
