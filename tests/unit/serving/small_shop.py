"""Five items of two categories and what has happened to them, in the objects that requests read."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from headrace import names
from headrace.aggregates.columns import events_of
from headrace.aggregates.fold import ViewState
from headrace.aggregates.layout import Layout
from headrace.aggregates.read import StreamRows
from headrace.aggregates.spec import AggregateSpec, ViewSpec
from serving import catalogue as cat
from serving.activity import Activity, Raw
from serving.catalogue import Catalogue, ItemChanges, Orders
from tests.oracles import Event
from tests.unit.aggregates.test_batch import HOUR, MINUTE, NOON, aggregate, frame

ITEMS = ("a", "b", "c", "d", "e")
CATEGORIES = {"a": "shoes", "b": "shoes", "c": "books", "d": "books", "e": "shoes"}
VIEWS = f"{names.ITEM_ACTIVITY}__views"
COUNTS = (
    aggregate("views", "view", "count", window=10 * MINUTE),
    aggregate("spent", "purchase", "sum", "price", window=HOUR, hop=5 * MINUTE),
    aggregate("last_users", "view", "last_n", "user_key", n=2),
)


def changes(*item_ids: str, state: int = cat.AVAILABLE, listed_us: int = 0, **content: Any) -> ItemChanges:
    """Items all of one state. `category`, `brand` and `price` as lists by item; other content by its full name."""
    known = {"category": [CATEGORIES.get(item) for item in item_ids], **content}
    short = {"category": cat.CATEGORY, "brand": cat.BRAND, "price": cat.PRICE}
    return ItemChanges(
        item_ids,
        {short.get(name, name): column for name, column in known.items()},
        np.full(len(item_ids), state, np.int8),
        np.full(len(item_ids), listed_us, np.int64),
    )


def catalogue(
    *item_ids: str,
    unavailable: Sequence[str] = (),
    deleted: Sequence[str] = (),
    trending: Sequence[str] = (),
    newest: Sequence[str] = (),
    origin: str = cat.LIVE,
    as_of_us: int = NOON,
) -> Catalogue:
    """Those items, the most popular first: the last of n items has popularity 1, the first n."""
    made = Catalogue(origin)
    made.put(changes(*item_ids))
    for items, state in ((unavailable, cat.UNAVAILABLE), (deleted, cat.DELETED)):
        made.put(changes(*items, state=state))
    popularity = np.arange(len(item_ids), 0, -1).astype(np.float64)
    made.orders = Orders(np.arange(len(item_ids)), made.rows(trending), made.rows(newest), popularity, as_of_us)
    return made


def item_view(*aggregates: AggregateSpec, ttl_us: int | None = None) -> ViewSpec:
    return ViewSpec(
        names.ITEM_ACTIVITY, "item_id", "item_id", aggregates or COUNTS, ttl_us, 30 * MINUTE, lateness_us=2 * HOUR
    )


def event(item_id: str, at: int, type: str = "view", **columns: Any) -> Event:
    own = {"event_id": f"{item_id}-{at}-{type}", "type": type, "item_id": item_id, "user_key": "u"}
    return own | {"timestamp": at, "received_at": at} | columns


class StoredState:
    """The stored rows of a view, after the events that it was given."""

    def __init__(self, spec: ViewSpec) -> None:
        self.layout = Layout(spec)
        self.rows: dict[str, bytes] = {}

    def fold(self, *events: Event) -> None:
        state = ViewState(self.layout, capacity=1)
        batch = events_of(self.layout.spec, frame(list(events)))
        for key in state.missing(batch["item_id"]):
            state.load(key, self.rows.get(key))
        state.fold(batch)
        self.rows |= state.take_changed()

    def read(self, raws: Sequence[Raw]) -> StreamRows:
        return StreamRows(self.layout, raws)

    def columns(self) -> Activity:
        """Empty columns of this view."""
        return Activity(self.layout.spec, self.read)
