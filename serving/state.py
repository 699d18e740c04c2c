"""What a request reads: the state that all requests share, and the user's own."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Final

from headrace import names
from serving.activity import Activity
from serving.catalogue import Catalogue
from serving.interfaces import Features, Fetched, Model

HIDING_TYPES: Final = frozenset({names.HIDE, names.DISLIKE})
_CART_ENDS: Final = frozenset({names.PURCHASE, names.REMOVE_FROM_CART})


@dataclass(frozen=True)
class ServingState:
    """What a request reads that is not the user's own. The engine's thread swaps and changes it between requests, never during one."""

    model: Model | None = None
    catalogue: Catalogue = field(default_factory=Catalogue)
    activity: Activity | None = None

    def with_model(self, model: Model | None) -> "ServingState":
        return replace(self, model=model)


@dataclass(frozen=True)
class User:
    """A user's rows and their values at `t_us`; no rows when the store did not answer, or nobody in particular asks."""

    rows: Fetched | None
    t_us: int
    features: Features

    @cached_property
    def history(self) -> list[str]:
        """Items acted on, oldest first."""
        return [item for item in self._items if item is not None]

    @cached_property
    def hidden(self) -> frozenset[str]:
        return frozenset(item for item, kind in self._acts if kind in HIDING_TYPES)

    @cached_property
    def unfinished(self) -> list[str]:
        """Items put into the cart and neither bought nor taken out since, newest first."""
        open_carts: dict[str, None] = {}
        for item, kind in self._acts:
            if kind == names.ADD_TO_CART or kind in _CART_ENDS:
                open_carts.pop(item, None)
            if kind == names.ADD_TO_CART:
                open_carts[item] = None
        return [*reversed(open_carts)]

    @property
    def _acts(self) -> list[tuple[str, str]]:
        """The newest stand last in both: where one list is longer, its oldest have no partner."""
        types = _only(self.features.get(names.RECENT_TYPES))
        count = min(len(self._items), len(types))
        return list(zip(self._items[len(self._items) - count :], types[len(types) - count :], strict=True))

    @cached_property
    def _items(self) -> Sequence[Any]:
        return _only(self.features.get(names.RECENT_ITEMS))


def _only(column: Any) -> Sequence[Any]:
    """The one list in a column of one user, empty where there is none."""
    return column[0] if column is not None and len(column) and column[0] is not None else ()
