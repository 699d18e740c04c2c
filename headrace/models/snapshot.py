"""The last good view of the shop that a bundle carries: catalogue, availability, popularity.

Read without torch, so that a slate can be made where nothing else works.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from headrace import names

FILE: Final = "snapshot.json"
AVAILABLE: Final = f"{names.ITEM_CATALOGUE}__available"


@dataclass(frozen=True)
class Snapshot:
    """`features` are parallel columns of N items by full name, most popular first: `item_id`, what the models read of
    the catalogue, and whether an item is available. Values may be null.
    """

    as_of_us: int
    features: dict[str, list[Any]]

    @property
    def item_id(self) -> list[str]:
        return self.features[names.ITEM_ID]

    @property
    def available(self) -> list[bool]:
        """An item of unknown availability is available."""
        return [value is not False for value in self.features.get(AVAILABLE, [None] * len(self.item_id))]

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self)))

    @classmethod
    def read(cls, path: Path) -> "Snapshot":
        return cls(**json.loads(path.read_text()))
