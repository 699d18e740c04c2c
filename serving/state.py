"""What a request reads: the state that all requests share, and the user's own."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from headrace import names
from serving.catalogue import Catalogue
from serving.interfaces import Features, Fetched, Model

RECENT_ITEMS: Final = f"{names.USER_ACTIVITY}__recent_items"
RECENT_TYPES: Final = f"{names.USER_ACTIVITY}__recent_types"
HIDING_TYPES: Final = frozenset({names.HIDE, names.DISLIKE})


@dataclass(frozen=True)
class ServingState:
    """What a request reads that is not the user's own. One reference, swapped whole: a request never sees a mix."""

    model: Model | None = None
    catalogue: Catalogue = field(default_factory=Catalogue)


@dataclass(frozen=True)
class User:
    """A user's rows and their values at `t_us`; no rows when the store did not answer."""

    rows: Fetched | None
    t_us: int
    features: Features

    @property
    def history(self) -> list[str]:
        """Items acted on, oldest first."""
        return [item for item in _only(self.features.get(RECENT_ITEMS)) if item is not None]

    @property
    def hidden(self) -> frozenset[str]:
        items, types = _only(self.features.get(RECENT_ITEMS)), _only(self.features.get(RECENT_TYPES))
        return frozenset(item for item, kind in zip(items, types, strict=False) if kind in HIDING_TYPES)


def _only(column: Any) -> Sequence[Any]:
    """The one list in a column of one user, empty where there is none."""
    return column[0] if column is not None and len(column) and column[0] is not None else ()
