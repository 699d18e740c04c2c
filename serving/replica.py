"""What a replica has in service, and the ways in which it changes: items, their activity, the model, the orders.

What takes long (reading, encoding) is done by whoever calls, in its own thread; the change itself is a short job of the engine's thread.
"""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from headrace import names
from headrace.arrays import Ints
from headrace.models.bundle import Bundle
from serving import catalogue as cat
from serving.activity import Activity
from serving.catalogue import Catalogue, ItemChanges, Orders
from serving.engine import Engine
from serving.interfaces import Encoder
from serving.model import BundleModel
from serving.state import ServingState
from serving.store import ItemActivityRows, Readers, chunks


@dataclass
class Live:
    """What requests read, each by one reference. `problems` names what is wrong now, by part."""

    state: ServingState = field(default_factory=ServingState)
    readers: Readers | None = None
    problems: dict[str, str] = field(default_factory=dict)
    refreshed: bool = False


class Replica:
    def __init__(self, engine: Engine) -> None:
        self.live = Live()
        self._engine = engine
        engine.change(lambda: torch.set_num_threads(1)).result()  # OpenMP keeps this for each thread
        self._model: BundleModel | None = None
        self._building: list[Ints] | None = None
        self.reached: dict[int, int] = {}
        """By log partition, up to where the columns have everything."""
        self.by_activity = False
        """In a shop that never sent its catalogue: every item with activity is one."""
        self.read_anew = False
        """Whether the refresher is to read everything anew."""
        self.changing = threading.Lock()
        """Held by whoever reads the feed, or everything anew: one follows the other."""

    @property
    def model(self) -> BundleModel | None:
        return self._model

    def take_items(self, changes: ItemChanges) -> None:
        """New truth about items, for filters, models and index."""
        for start in range(0, len(changes), _AT_ONCE):
            self._take_items(_part(changes, start, start + _AT_ONCE))

    def _take_items(self, changes: ItemChanges) -> None:
        model = self._model
        encoded = None if model is None else model.encode(_content_for(model, changes))

        def apply() -> None:
            state = self.live.state
            known = len(state.catalogue)
            rows = state.catalogue.put(changes)
            state.catalogue.announce(rows[rows >= known])
            if state.activity is not None:
                state.activity.grow(len(state.catalogue))
            now = self._model  # another one, if it was swapped meanwhile
            if now is not None:
                own = encoded if now is model else None
                now.put(rows, now.encode(_content_for(now, changes)) if own is None else own)
            if self._building is not None:
                self._building.append(rows)

        self._engine.change(apply).result()

    def take_activity(self, found: ItemActivityRows) -> None:
        """New state of items, of those that the catalogue knows."""

        def apply() -> None:
            state = self.live.state
            if state.activity is not None:
                known = [place for place, item in enumerate(found.item_ids) if item in state.catalogue.row_of]
                rows = state.catalogue.rows([found.item_ids[place] for place in known])
                state.activity.put(rows, [found.raws[place] for place in known], found.newest_us)

        self._engine.change(apply).result()

    def count(self) -> int:
        """Items now, of which columns are whole."""
        return self._engine.change(lambda: len(self.live.state.catalogue)).result()

    def take_orders(self, orders: Orders, origin: str | None = None) -> None:
        def apply() -> None:
            catalogue = self.live.state.catalogue
            catalogue.orders, catalogue.origin = orders, origin or catalogue.origin
            catalogue.announce(np.arange(len(orders.popular), len(catalogue)))  # what came while they were made

        self._engine.change(apply).result()

    def sweep(self, now_us: int, most: int) -> None:
        """Compute values of the hop that has begun, before requests ask for them; at most of so many items."""
        activity = self.live.state.activity
        if activity is None:
            return
        t_us = max(now_us, activity.newest_us + 1)
        for rows in parts(activity.old_rows(t_us, most)):
            computed = activity.compute(rows, t_us)
            keep = _keep(activity, rows, t_us, *computed)
            self._engine.change(keep).result()

    def replace_state(self, catalogue: Catalogue, activity: Activity | None, bundle: Bundle | None) -> None:
        """Everything anew: another catalogue, so another model of the same bundle. Raises BundleError."""
        model = None if bundle is None else self._ready(bundle, catalogue, len(catalogue))

        def apply() -> None:
            self._model = model
            self.live.state = ServingState(model, catalogue, activity)

        self._engine.change(apply).result()

    def replace_readers(self, readers: Readers) -> None:
        """Read by these from now on. No request is in the middle of reading by the old ones when they are closed."""

        def apply() -> None:
            old, self.live.readers = self.live.readers, readers
            if old is not None:
                old.close()

        self._engine.change(apply).result()

    def swap_model(self, bundle: Bundle, now_us: int) -> BundleModel:
        """Put another bundle in service; no request sees both. Raises BundleError, and then the old one stays."""
        catalogue = self.live.state.catalogue
        with self.changing:  # else the bundle might overrule what the feed has just told of an item
            self.take_items(missing_items(bundle, catalogue))
        count = self._engine.change(lambda: self._watch([])).result()
        try:
            model = self._ready(bundle, catalogue, count, now_us)

            def apply() -> None:
                rows = self._changed()
                model.put(rows, model.encode(catalogue.content_of(rows, model.content_features)))
                self._model = model
                self.live.state = self.live.state.with_model(model)

            self._engine.change(apply).result()
        finally:
            self._engine.change(lambda: self._watch(None)).result()
        return model

    def renew_index(self) -> None:
        """Build the index anew where too much stands beside it."""
        model = self._model
        if model is not None and model.index_is_worn:
            count = self._engine.change(lambda: self._watch([])).result()
            try:
                index, rows = model.rebuilt_index(count)
                self._engine.change(lambda: model.take_index(index, rows, self._changed())).result()
            finally:
                self._engine.change(lambda: self._watch(None)).result()

    def _ready(self, bundle: Bundle, catalogue: Catalogue, count: int, now_us: int = 1) -> BundleModel:
        model = BundleModel(bundle, catalogue, count)
        if model.index_is_worn:
            model.take_index(*model.rebuilt_index(count), np.zeros(0, np.int64))
        model.warm_up(now_us)
        return model

    def _changed(self) -> Ints:
        """Rows that have changed since they are watched."""
        return np.unique(np.concatenate([np.zeros(0, np.int64), *(self._building or [])]))

    def _watch(self, rows: list[Ints] | None) -> int:
        """Note the rows that change from now on; returns how many there are now."""
        self._building = rows
        return len(self.live.state.catalogue)


_AT_ONCE = 256


def missing_items(bundle: Bundle, catalogue: Catalogue) -> ItemChanges:
    """Items that only the bundle knows: what it can recommend, the catalogue must have."""
    snapshot = bundle.snapshot
    places = [place for place, item in enumerate(snapshot.item_id) if item not in catalogue.row_of]
    available = snapshot.available
    return ItemChanges(
        [snapshot.item_id[place] for place in places],
        {
            name: [column[place] for place in places]
            for name, column in snapshot.features.items()
            if name in (*cat.FILTERED_BY, *bundle.preprocessing.content_features)
        },
        np.array([cat.AVAILABLE if available[place] else cat.UNAVAILABLE for place in places], np.int8),
        np.zeros(len(places), np.int64),
    )


def fill(catalogue: Catalogue, activity: Activity | None, readers: Readers, bundle: Bundle | None, now_us: int) -> bool:
    """Read all items into a catalogue that nobody uses yet, and what the bundle alone knows behind them, and compute their activity as
    of now. Raises STORE_ERRORS.

    Returns whether the shop has sent its catalogue. In one that never did, every item with activity is one.
    """
    keys = readers.item_keys()
    is_named = bool(keys[names.ITEM_CATALOGUE])
    known = keys[names.ITEM_STATUS] | keys[names.ITEM_CATALOGUE if is_named else names.ITEM_ACTIVITY]
    for chunk in chunks(sorted(known)):
        catalogue.put(readers.item_changes(chunk, without_row=not is_named))
    if bundle is not None:
        catalogue.put(missing_items(bundle, catalogue))
    if activity is not None:
        activity.grow(len(catalogue))
        for chunk in chunks(sorted(keys["item_activity"] & catalogue.row_of.keys())):
            found = readers.item_activity(chunk)
            activity.put(catalogue.rows(found.item_ids), found.raws, found.newest_us)
        t_us = max(now_us, activity.newest_us + 1)
        for rows in parts(activity.old_rows(t_us)):
            activity.at(rows, t_us)
    return is_named


def parts(rows: Ints) -> list[Ints]:
    return [rows[start : start + _AT_ONCE] for start in range(0, len(rows), _AT_ONCE)]


def _content_for(model: Encoder, changes: ItemChanges) -> dict[str, Sequence[Any]]:
    nothing = [None] * len(changes)
    content = {name: changes.content.get(name, nothing) for name in model.content_features}
    return {"item_id": changes.item_ids, **content}


def _part(changes: ItemChanges, start: int, stop: int) -> ItemChanges:
    content = {name: column[start:stop] for name, column in changes.content.items()}
    return ItemChanges(changes.item_ids[start:stop], content, changes.state[start:stop], changes.listed_us[start:stop])


def _keep(activity: Activity, rows: Ints, t_us: int, raws: Any, values: Any) -> Callable[[], None]:
    return lambda: activity.keep(rows, t_us, raws, values)
