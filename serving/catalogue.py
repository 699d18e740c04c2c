"""Every item that a replica knows, as columns by row: what filters and models need of it. Changed by one thread alone, between requests."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from headrace import names
from headrace.arrays import Floats, Ints, Mask
from headrace.models.snapshot import AVAILABLE as AVAILABLE_FIELD
from serving.candidates import Filter

# What an item is, in the column `state`.
AVAILABLE: Final = 0
UNAVAILABLE: Final = 1
DELETED: Final = 2

CATEGORY: Final = f"{names.ITEM_CATALOGUE}__category"
BRAND: Final = f"{names.ITEM_CATALOGUE}__brand"
PRICE: Final = f"{names.ITEM_CATALOGUE}__price"
FILTERED_BY: Final = (CATEGORY, BRAND, PRICE)
NOT_KEPT: Final = frozenset({f"{names.ITEM_CATALOGUE}__title", AVAILABLE_FIELD})
"""Of the catalogue view, what neither a filter nor a model reads as content."""

# Origins: the online store; the file on disk; what a bundle carries; nothing.
LIVE: Final = "live"
SNAPSHOT: Final = "snapshot"
BUNDLE: Final = "bundle"
NONE: Final = "none"

_NO_CODE: Final = -1


@dataclass(frozen=True)
class ItemChanges:
    """New truth about some items. `content`: columns by full name. `state` is AVAILABLE, UNAVAILABLE or DELETED. Shapes (n,).

    `listed_us`: when the item was first heard of; kept where the item is known.
    """

    item_ids: Sequence[str]
    content: Mapping[str, Sequence[Any]]
    state: npt.NDArray[np.int8]
    listed_us: Ints

    def __len__(self) -> int:
        return len(self.item_ids)


class Orders(NamedTuple):
    """Rows in the orders that candidates are taken in: `popular` holds all that there were, the others the first some."""

    popular: Ints
    trending: Ints
    newest: Ints
    overall: Floats
    """Popularity by row."""
    as_of_us: int = 0

    @classmethod
    def none(cls) -> "Orders":
        nothing = np.zeros(0, np.int64)
        return cls(nothing, nothing, nothing, np.zeros(0))


@dataclass
class _Codes:
    """Numbers of strings, in the order in which they come."""

    of: dict[str, int] = field(default_factory=dict)

    def column(self, values: Sequence[Any]) -> Ints:
        codes = (_NO_CODE if value is None else self.of.setdefault(value, len(self.of)) for value in values)
        return np.fromiter(codes, np.int64, len(values))

    def asked(self, values: frozenset[str]) -> Ints:
        return np.array([self.of[value] for value in values if value in self.of], np.int64)


class Catalogue:
    """Rows are never taken away: an item that is deleted keeps its row, so a row always means the same item."""

    def __init__(self, origin: str = NONE) -> None:
        self.item_ids: list[str] = []
        self.row_of: dict[str, int] = {}
        self.origin = origin
        self.orders = Orders.none()
        self.content: dict[str, list[Any]] = {name: [] for name in FILTERED_BY}
        self._categories, self._brands = _Codes(), _Codes()
        self._state = np.zeros(0, np.int8)
        self._category = np.zeros(0, np.int64)
        self._brand = np.zeros(0, np.int64)
        self._price = np.zeros(0)
        self._listed_us = np.zeros(0, np.int64)
        self._trending = self.orders.trending
        self._trending_in: dict[int, Ints] = {}

    def __len__(self) -> int:
        return len(self.item_ids)

    @property
    def state(self) -> npt.NDArray[np.int8]:
        return self._state[: len(self)]

    @property
    def category(self) -> Ints:
        """Code of each row's category, negative for none."""
        return self._category[: len(self)]

    @property
    def listed_us(self) -> Ints:
        return self._listed_us[: len(self)]

    def rows(self, item_ids: Sequence[str]) -> Ints:
        """Of the items that are known, in the order given."""
        row_of = self.row_of.get
        return np.array([row for item_id in item_ids if (row := row_of(item_id)) is not None], np.int64)

    def put(self, changes: ItemChanges) -> Ints:
        """Take in changes; returns the rows. An item may come once in them.

        The columns have their new places before the catalogue is said to be longer: whoever reads them meanwhile in another thread, to
        save or to sort them, finds all that its length promises.
        """
        self._trending_in = {}
        known = len(self)
        new_ids = [item_id for item_id in changes.item_ids if item_id not in self.row_of]
        count = known + len(new_ids)
        self._make_room(count)
        for name in changes.content:
            self.content.setdefault(name, [])
        for column in self.content.values():
            column.extend([None] * (count - len(column)))
        new_rows = {item_id: row for row, item_id in enumerate(new_ids, start=known)}
        places = (self.row_of.get(item_id, new_rows.get(item_id, -1)) for item_id in changes.item_ids)
        rows = np.fromiter(places, np.int64, len(changes))
        for name in (*FILTERED_BY, *changes.content):
            column = self.content[name]
            for row, value in zip(rows.tolist(), changes.content.get(name, [None] * len(changes)), strict=True):
                column[row] = value
        self._state[rows] = changes.state
        self._category[rows] = self._categories.column(changes.content.get(CATEGORY, [None] * len(changes)))
        self._brand[rows] = self._brands.column(changes.content.get(BRAND, [None] * len(changes)))
        self._price[rows] = np.array(changes.content.get(PRICE, [None] * len(changes)), np.float64)
        new = rows >= known
        self._listed_us[rows[new]] = changes.listed_us[new]
        self.row_of.update(new_rows)
        self.item_ids.extend(new_ids)
        return rows

    def most_popular_first(self) -> Ints:
        """All rows; those that came since the orders were made are the last."""
        popular = self.orders.popular
        return popular if len(popular) == len(self) else np.concatenate([popular, np.arange(len(popular), len(self))])

    def trending_in(self, category: int) -> Ints:
        """What trends in a category, by its code; looked for once until the orders or an item change."""
        trending = self.orders.trending
        if self._trending is not trending:
            self._trending, self._trending_in = trending, {}
        if category not in self._trending_in:
            self._trending_in[category] = trending[self._category[trending] == category]
        return self._trending_in[category]

    def announce(self, new: Ints) -> None:
        """New rows are the newest at once; the next orders put them in their place."""
        shown = new[self._state[new] == AVAILABLE]
        self.orders = self.orders._replace(newest=np.concatenate([shown[::-1], self.orders.newest]))

    def content_of(self, rows: Ints, features: Sequence[str]) -> dict[str, list[Any]]:
        """`item_id` and the named features of some rows; null where the catalogue lacks one."""
        places = rows.tolist()
        found: dict[str, list[Any]] = {names.ITEM_ID: [self.item_ids[row] for row in places]}
        for name in features:
            column = self.content.get(name)
            found[name] = [None] * len(places) if column is None else [column[row] for row in places]
        return found

    def outside(self, wanted: Filter, rows: Ints | None = None) -> Mask:
        """Rows, all by default, that are not what is wanted: by category, brand or price. An unknown value is not what is wanted."""
        which: Any = slice(len(self)) if rows is None else rows
        out = np.zeros(len(self) if rows is None else len(rows), np.bool_)
        if wanted.category is not None:
            out |= ~np.isin(self._category[which], self._categories.asked(wanted.category))
        if wanted.brand is not None:
            out |= ~np.isin(self._brand[which], self._brands.asked(wanted.brand))
        price = self._price[which]
        if wanted.min_price is not None:
            out |= ~(price >= wanted.min_price)
        if wanted.max_price is not None:
            out |= ~(price <= wanted.max_price)
        return out

    def _make_room(self, count: int) -> None:
        if count > len(self._state):
            spare = max(1_024, count // 8) + count - len(self._state)
            self._state = np.concatenate([self._state, np.zeros(spare, np.int8)])
            self._category = np.concatenate([self._category, np.full(spare, _NO_CODE)])
            self._brand = np.concatenate([self._brand, np.full(spare, _NO_CODE)])
            self._price = np.concatenate([self._price, np.full(spare, np.nan)])
            self._listed_us = np.concatenate([self._listed_us, np.zeros(spare, np.int64)])
