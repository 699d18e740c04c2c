"""What a replica reads of the online store: connections for requests and for bulk, and the rows of items."""

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import polars as pl
import redis
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError, TableNotFoundError
from polars.exceptions import PolarsError

from headrace import names
from headrace.models.snapshot import AVAILABLE as AVAILABLE_FIELD
from headrace.settings import Settings
from headrace.stores.change_feed import ChangeFeed
from headrace.stores.definitions import Definitions, is_registered, load_definitions
from headrace.stores.lake import scan_table
from headrace.stores.online_reader import OnlineReader
from headrace.stores.online_wire import place_all, read
from headrace.stores.plain_rows import PlainLayout
from headrace.stores.redis_client import connect
from headrace.stores.row_scan import scan_views
from headrace.stores.shards import row_key
from serving import catalogue as cat
from serving.activity import Activity, Raw
from serving.catalogue import ItemChanges
from serving.interfaces import FeatureReader, Fetched
from serving.orders import POPULARITY

CHUNK: Final = 512
BULK_TIMEOUT_S: Final = 5.0
# After two failures in a row the store is left alone that long: a stalled one must not hold up every request.
CLOSED_S: Final = 0.2
ITEM_VIEWS: Final = (names.ITEM_CATALOGUE, names.ITEM_STATUS, names.ITEM_ACTIVITY)
# The features that serving knows by name; a model knows its own.
READ_BY_NAME: Final = (*POPULARITY, names.RECENT_ITEMS, names.RECENT_TYPES, AVAILABLE_FIELD)
_STATUS_FIELDS: Final = ("available", "deleted")


class FeaturesUnknownError(RuntimeError):
    """There is no registry of features, or it cannot be read."""


class StoreRestsError(RuntimeError):
    """The store has just failed and is not asked again yet."""


class GuardedReader:
    """A reader that leaves the store alone for a moment after it has failed twice in a row: once may be a slow disk."""

    def __init__(self, reader: FeatureReader) -> None:
        self._reader = reader
        self._failures = 0
        self._closed_until = 0.0

    def close(self) -> None:
        self._reader.close()

    def ask(self, wanted: Mapping[str, Sequence[str]], /) -> Any | None:
        """As OnlineReader has it; nothing is asked of a store that is left alone."""
        return None if time.monotonic() < self._closed_until else self._reader.ask(wanted)

    def fetch(
        self, wanted: Mapping[str, Sequence[str]], /, within_s: float | None = None, sent: Any | None = None
    ) -> Fetched:
        if time.monotonic() < self._closed_until:
            raise StoreRestsError("the store failed a moment ago")
        try:
            fetched = self._reader.fetch(wanted, within_s=within_s, sent=sent)
        except (redis.ConnectionError, redis.TimeoutError, OSError):
            self._failures += 1
            if self._failures > 1:
                self._closed_until = time.monotonic() + CLOSED_S
            raise
        self._failures = 0
        return fetched


@dataclass(frozen=True)
class ItemActivityRows:
    """Stored state of the item stream view. `newest_us`: time of the newest event in it."""

    item_ids: Sequence[str]
    raws: Sequence[Raw]
    newest_us: int


@dataclass(frozen=True)
class Readers:
    """Two ways into the same rows: one for a request, which cannot wait, one for reading thousands."""

    request: GuardedReader
    bulk: OnlineReader
    feed: ChangeFeed
    shards: int
    client: "redis.Redis"
    request_client: "redis.Redis"
    _listed_us: dict[str, int] = field(default_factory=dict)

    @property
    def definitions(self) -> Definitions:
        """What the state was made by, at the last look: older than what is applied until a backfill has ended."""
        return self.bulk.definitions

    def close(self) -> None:
        self.request.close()
        self.client.close()
        self.request_client.close()

    def new_activity(self) -> Activity | None:
        """Empty, of the item stream view as the state has it; None where there is no such view."""
        spec = self.definitions.streams.get(names.ITEM_ACTIVITY)
        if spec is None:
            return None
        return Activity(spec, self.bulk.read_items(spec.name), self.bulk.read_items(spec.name, asks=False))

    def item_keys(self, shards: Iterable[int] | None = None) -> dict[str, set[str]]:
        """Items with rows, by view; of all shards or of some."""
        wanted = None if shards is None else frozenset(shards)
        found: dict[str, set[str]] = {view: set() for view in ITEM_VIEWS}
        for shard, keys in scan_views(self.client, ITEM_VIEWS):
            if wanted is None or shard in wanted:
                start = len(row_key(shard, "", "")) - 1
                for key in keys:
                    view, _, item = key[start:].partition(":")
                    found[view].add(item)
        return found

    def item_changes(self, item_ids: Sequence[str], *, without_row: bool) -> ItemChanges:
        """What the catalogue rows and status rows of these items say. An item with neither is left out, or kept `without_row` as one
        of which nothing is known but that it is there.
        """
        plain = self.definitions.plain
        views = [view for view in (names.ITEM_CATALOGUE, names.ITEM_STATUS) if view in plain]
        raws = dict(zip(views, self._raw(dict.fromkeys(views, item_ids)), strict=True))
        return _changes(item_ids, raws, plain, self._listed_us, without_row=without_row)

    def item_activity(self, item_ids: Sequence[str]) -> ItemActivityRows:
        """Stored state of these items, whether they have any or not."""
        raws = self._raw({names.ITEM_ACTIVITY: item_ids})[0].to_list() if item_ids else []
        newest_us = self.bulk.read_items(names.ITEM_ACTIVITY)(raws).newest_us
        return ItemActivityRows(item_ids, raws, newest_us)

    def _raw(self, wanted: Mapping[str, Sequence[str]]) -> list[Any]:
        return list(read(self.client, place_all(wanted, self.shards)).rows)


def open_readers(settings: Settings, request_timeout_s: float) -> Readers:
    """Readers of the views that are registered now. Raises StoreAddressError, FeaturesUnknownError, DeploymentError,
    or redis.RedisError.
    """
    if not is_registered(settings):
        raise FeaturesUnknownError(f"no features are registered in {settings.registry_path}: run `headrace apply`")
    try:
        definitions = load_definitions(settings)
    except Exception as error:  # the registry is Feast's, and what it raises has no common class
        raise FeaturesUnknownError(f"the registry {settings.registry_path} cannot be read: {error}") from error
    slow = connect(settings, timeout_s=BULK_TIMEOUT_S)
    fast = connect(settings, timeout_s=request_timeout_s)
    bulk = OnlineReader(slow, definitions, settings)
    request = OnlineReader(fast, definitions, settings, keeps_line=True)
    feed = ChangeFeed(slow, settings.shards)
    readers = Readers(GuardedReader(request), bulk, feed, settings.shards, slow, fast, first_listed(settings))
    try:
        feed.start()
        _warm_up(bulk)
        _ = request.definitions  # the first look, which no request should wait for
    except Exception:
        readers.close()
        raise
    return readers


def _warm_up(reader: OnlineReader) -> None:
    """Read every view once, of an entity that nobody has: reading is compiled at its first call, which takes seconds."""
    definitions = reader.definitions
    fetched = reader.fetch({view: [""] for view in (*definitions.streams, *definitions.plain)})
    for rows in (*fetched.streams.values(), *fetched.plain.values()):
        rows.values(1)


def missing_features(definitions: Definitions) -> list[str]:
    """Full names of what serving reads by name and the definitions lack: it is left out of popularity and filters."""
    defined = {
        *(f"{view}__{each.name}" for view, spec in definitions.streams.items() for each in spec.aggregates),
        *(f"{view}__{name}" for view, layout in definitions.plain.items() for name, _ in layout.fields),
    }
    return [name for name in READ_BY_NAME if name not in defined]


def first_listed(settings: Settings) -> dict[str, int]:
    """When each item was first heard of, as the lake has it; empty where there is no lake to read: then an item's stored row counts."""
    try:
        table = DeltaTable(str(settings.lake_dir / names.ITEMS_TABLE))
        first = scan_table(table).group_by(names.ITEM_ID).agg(pl.col("event_timestamp").min().dt.epoch("us"))
        return dict(first.collect().iter_rows())
    except (TableNotFoundError, OSError, DeltaError, PolarsError):
        # The order of what is new is then by the newest row of each item: nothing else reads this.
        return {}


def chunks(items: Sequence[str]) -> Iterator[list[str]]:
    return (list(items[start : start + CHUNK]) for start in range(0, len(items), CHUNK))


def _changes(
    item_ids: Sequence[str],
    raws: Mapping[str, Any],
    plain: Mapping[str, PlainLayout],
    listed_us: Mapping[str, int],
    *,
    without_row: bool,
) -> ItemChanges:
    """The later of an item's two rows says whether it is there; at a tie the status row."""
    count = len(item_ids)
    said_us = np.full(count, -1, np.int64)
    state = np.zeros(count, np.int8)
    content: dict[str, list[Any]] = {}
    if names.ITEM_CATALOGUE in raws:
        rows = plain[names.ITEM_CATALOGUE].rows(raws[names.ITEM_CATALOGUE])
        said_us = _times(rows.timestamps_us())
        values = {f"{names.ITEM_CATALOGUE}__{name}": list(column) for name, column in rows.values().items()}
        content = {name: column for name, column in values.items() if name not in cat.NOT_KEPT}
        state[_is(values.get(AVAILABLE_FIELD, [None] * count), False)] = cat.UNAVAILABLE
    seen_us = said_us.copy()
    if names.ITEM_STATUS in raws:
        rows = plain[names.ITEM_STATUS].rows(raws[names.ITEM_STATUS])
        status_us = _times(rows.timestamps_us())
        available, deleted = (list(rows.values().get(name, [None] * count)) for name in _STATUS_FIELDS)
        later = (status_us >= said_us) & (status_us >= 0)
        state[later] = cat.AVAILABLE
        state[later & _is(available, False)] = cat.UNAVAILABLE
        state[later & _is(deleted, True)] = cat.DELETED
        seen_us = np.maximum(seen_us, status_us)
    kept = np.flatnonzero((seen_us >= 0) | without_row).tolist()
    listed = [listed_us.get(item_ids[place], int(seen_us[place])) for place in kept]
    return ItemChanges(
        [item_ids[place] for place in kept],
        {name: [_plain(column[place]) for place in kept] for name, column in content.items()},
        state[kept],
        np.array(listed, np.int64),
    )


def _times(times_us: Sequence[int | None]) -> np.ndarray[Any, np.dtype[np.int64]]:
    """-1 for a row that is not there."""
    return np.array([-1 if at is None else at for at in times_us], np.int64)


def _is(values: Sequence[Any], wanted: bool) -> np.ndarray[Any, np.dtype[np.bool_]]:
    return np.array([value is not None and bool(value) is wanted for value in values], np.bool_)


def _plain(value: Any) -> Any:
    """Floats have NaN for null."""
    return None if isinstance(value, float) and value != value else value
