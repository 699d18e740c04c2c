"""A catalogue as its owner knows it, with the changes under way: how many items a request may get, and which."""

import threading
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, NamedTuple

import numpy as np
from deltalake import DeltaTable

from headrace import names
from headrace.arrays import Mask
from headrace.settings import Settings
from headrace.stores.lake import scan_table

AVAILABLE, UNAVAILABLE, DELETED = range(3)
SETTLED_S: Final = 2.0
"""From a change's acknowledgement to when every answer must know it."""
_REMEMBERED_S: Final = 120.0
_ALWAYS: Final = float("inf")


@dataclass(frozen=True)
class Item:
    category: str | None
    brand: str | None
    price: float | None
    state: int = AVAILABLE

    def fits(self, wanted: Mapping[str, Any]) -> bool:
        """Whether it may be in a slate of a request with this `filter`."""
        return (
            (self.state == AVAILABLE or (self.state == UNAVAILABLE and bool(wanted.get("include_unavailable"))))
            and ("category" not in wanted or self.category in wanted["category"])
            and ("brand" not in wanted or self.brand in wanted["brand"])
            and ("min_price" not in wanted or (self.price is not None and self.price >= wanted["min_price"]))
            and ("max_price" not in wanted or (self.price is not None and self.price <= wanted["max_price"]))
        )


@dataclass(frozen=True)
class _Version:
    """What an item is, or may be, from one moment to another (seconds of `time.perf_counter`)."""

    item: Item | None
    from_s: float = -_ALWAYS
    until_s: float = _ALWAYS

    def overlaps(self, sent_s: float, done_s: float) -> bool:
        return self.from_s <= done_s and self.until_s >= sent_s


class Eligible(NamedTuple):
    """Numbers of items that a request gets at least and at most; the two differ while changes are under way."""

    least: int
    most: int


class KnownShop:
    """One thread asks and changes; `hold` and `release` may be called from another."""

    def __init__(self, items: Mapping[str, Item]) -> None:
        self._items = dict(items)
        self._place = {item_id: place for place, item_id in enumerate(items)}
        every = items.values()
        self._codes: dict[str | None, int] = {}
        self._category = np.array([self._code(item.category) for item in every], np.int64)
        self._brand = np.array([self._code(item.brand) for item in every], np.int64)
        self._price = np.array([np.nan if item.price is None else item.price for item in every])
        self._state = np.array([item.state for item in every], np.int8)
        self._doubtful: dict[str, list[_Version]] = {}
        self._acknowledged: dict[str, float] = {}
        self._held = False
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._items)

    @property
    def item_ids(self) -> list[str]:
        return list(self._items)

    def item(self, item_id: str) -> Item:
        """As it is, or is about to be."""
        return self._items[item_id]

    def is_changing(self, item_id: str) -> bool:
        return item_id in self._doubtful

    def change(self, item_id: str, item: Item, sent_s: float) -> None:
        """It is about to be this: until the change has settled, both are right."""
        with self._lock:
            before = _Version(self._items.get(item_id))
            self._doubtful[item_id] = [before, _Version(item, sent_s)]
            self._items[item_id] = item

    def acknowledge(self, item_id: str, at_s: float) -> None:
        with self._lock:
            self._acknowledged[item_id] = at_s

    def hold(self) -> None:
        """A fault is on: what has not settled yet need not settle before `release`."""
        with self._lock:
            self._held = True

    def release(self, now_s: float) -> None:
        with self._lock:
            self._acknowledged = dict.fromkeys(self._acknowledged, now_s)
            self._held = False

    def eligible(self, wanted: Mapping[str, Any], exclude: Collection[str], sent_s: float, done_s: float) -> Eligible:
        with self._lock:
            self._settle(done_s)
            fits = self._fitting(wanted)
            fits[[self._place[each] for each in {*exclude, *self._doubtful} if each in self._place]] = False
            least = most = int(fits.sum())
            for item_id in self._doubtful.keys() - set(exclude):
                possible = self._possible(item_id, wanted, sent_s, done_s)
                least, most = least + all(possible), most + any(possible)
            return Eligible(least, most)

    def may_show(self, item_id: str, wanted: Mapping[str, Any], sent_s: float, done_s: float) -> bool:
        with self._lock:
            if item_id in self._doubtful:
                return any(self._possible(item_id, wanted, sent_s, done_s))
            return item_id in self._items and self._items[item_id].fits(wanted)

    def _possible(self, item_id: str, wanted: Mapping[str, Any], sent_s: float, done_s: float) -> list[bool]:
        versions = [each for each in self._doubtful[item_id] if each.overlaps(sent_s, done_s)]
        return [each.item is not None and each.item.fits(wanted) for each in versions]

    def _fitting(self, wanted: Mapping[str, Any]) -> Mask:
        fits = self._state == AVAILABLE
        if wanted.get("include_unavailable"):
            fits |= self._state == UNAVAILABLE
        for name, column in (("category", self._category), ("brand", self._brand)):
            if name in wanted:
                fits &= np.isin(column, [self._codes[value] for value in wanted[name] if value in self._codes])
        if "min_price" in wanted:
            fits &= self._price >= wanted["min_price"]
        if "max_price" in wanted:
            fits &= self._price <= wanted["max_price"]
        return np.asarray(fits, np.bool_)

    def _code(self, value: str | None) -> int:
        return self._codes.setdefault(value, len(self._codes))

    def _settle(self, now_s: float) -> None:
        """End the doubt about changes that have had their time; forget it once no request can be about that time any more."""
        if not self._held:
            for item_id, at_s in list(self._acknowledged.items()):
                if now_s >= at_s + SETTLED_S:
                    before, after = self._doubtful[item_id]
                    self._doubtful[item_id] = [replace(before, until_s=at_s + SETTLED_S), after]
                    del self._acknowledged[item_id]
        for item_id, (before, after) in list(self._doubtful.items()):
            if now_s > before.until_s + _REMEMBERED_S and after.item is not None:
                del self._doubtful[item_id]
                self._keep(item_id, after.item)

    def _keep(self, item_id: str, item: Item) -> None:
        if item_id not in self._place:
            self._place[item_id] = len(self._place)
            self._category, self._brand = np.append(self._category, 0), np.append(self._brand, 0)
            self._price, self._state = np.append(self._price, 0.0), np.append(self._state, np.int8(DELETED))
        place = self._place[item_id]
        self._category[place], self._brand[place] = self._code(item.category), self._code(item.brand)
        self._price[place] = np.nan if item.price is None else item.price
        self._state[place] = item.state


def read_shop(settings: Settings) -> KnownShop:
    """The newest row of each item in the lake; nothing has been said of it through the API yet."""
    rows = scan_table(DeltaTable(str(settings.lake_dir / names.ITEMS_TABLE))).sort("event_timestamp", "created")
    newest = rows.unique(names.ITEM_ID, keep="last", maintain_order=True).sort(names.ITEM_ID)
    columns = newest.select(names.ITEM_ID, "category", "brand", "price", "available").collect()
    return KnownShop(
        {
            item_id: Item(category, brand, price, UNAVAILABLE if available is False else AVAILABLE)
            for item_id, category, brand, price, available in columns.iter_rows()
        }
    )
