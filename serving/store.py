"""What the recommender reads besides its model: the online store's rows, and the catalogue table of the lake."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
import polars as pl
import redis
from deltalake import DeltaTable
from deltalake.exceptions import TableNotFoundError

from headrace import names
from headrace.clock import from_micros
from headrace.models.snapshot import AVAILABLE
from headrace.settings import Settings
from headrace.stores.definitions import Definitions, is_registered, load_definitions
from headrace.stores.online_reader import OnlineReader
from headrace.stores.redis_client import connect
from headrace.stores.row_scan import scan_entities
from serving.interfaces import FeatureReader
from serving.state import RECENT_ITEMS, RECENT_TYPES

CHUNK: Final = 1_000
BULK_TIMEOUT_S: Final = 5.0


class Weight(NamedTuple):
    """What one act counts for in the two scores of popularity."""

    overall: float
    trend: float


# What an act says about an item, relative to a view: all of it over the week, and by the hour in each window.
_WORTH: Final = {"views": 1.0, "clicks": 2.0, "carts": 5.0, "purchases": 10.0}
_HOURS: Final = {"1h": 1.0, "1d": 24.0, "7d": 168.0}
POPULARITY: Final = {
    f"{act}_{window}": Weight(worth if window == "7d" else 0.0, worth / hours)
    for act, worth in _WORTH.items()
    for window, hours in _HOURS.items()
}
# The features that serving knows by name; a model knows its own.
READ_BY_NAME: Final = (
    *(f"{names.ITEM_ACTIVITY}__{name}" for name in POPULARITY),
    RECENT_ITEMS,
    RECENT_TYPES,
    AVAILABLE,
)


class FeaturesUnknownError(RuntimeError):
    """There is no registry of features, or it cannot be read."""


@dataclass(frozen=True)
class Readers:
    """Two ways into the same rows: one for a request, which cannot wait, one for reading thousands."""

    request: OnlineReader
    bulk: OnlineReader
    client: "redis.Redis"
    request_client: "redis.Redis"

    @property
    def definitions(self) -> Definitions:
        """What the state was made by, at the last look: older than what is applied until a backfill has ended."""
        return self.bulk.definitions

    def close(self) -> None:
        self.client.close()
        self.request_client.close()


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
    readers = Readers(OnlineReader(fast, definitions, settings), OnlineReader(slow, definitions, settings), slow, fast)
    try:
        _warm_up(readers.bulk)
        _ = readers.request.definitions  # the first look, which no request should wait for
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


@dataclass(frozen=True)
class CatalogueRows:
    """The catalogue as the lake has it: `item_id` and features by full name, newest items first; what is not available."""

    version: int
    columns: dict[str, list[Any]]
    unavailable: frozenset[str]

    @property
    def item_ids(self) -> list[str]:
        return self.columns[names.ITEM_ID]


def read_catalogue_rows(
    settings: Settings, features: Sequence[str], now_us: int, last: CatalogueRows | None
) -> CatalogueRows | None:
    """The last row of each item at or before now, its `features` by full name; None where there is no table.

    `last` itself while the table is the same and it has the features. A feature that the table lacks is null. Raises
    OSError or DeltaError where the lake cannot be read.
    """
    try:
        table = DeltaTable(str(settings.lake_dir / names.ITEMS_TABLE))
    except TableNotFoundError:
        return None
    if last is not None and last.version == table.version() and last.columns.keys() >= set(features):
        return last
    field_of = {feature: feature.removeprefix(f"{names.ITEM_CATALOGUE}__") for feature in (*features, AVAILABLE)}
    rows = pl.scan_delta(table)
    present = rows.collect_schema().names()
    items = (
        rows.filter(pl.col("event_timestamp") <= from_micros(now_us))
        .sort("event_timestamp", "created", descending=True, maintain_order=True)  # the scan has the newest write first
        .group_by(names.ITEM_ID, maintain_order=True)
        .agg(
            *(
                (pl.col(field).first() if field in present else pl.lit(None)).alias(feature)
                for feature, field in field_of.items()
            ),
            pl.col("event_timestamp").last().alias("first_seen"),
        )
        .sort(["first_seen", names.ITEM_ID], descending=[True, False])
        .collect()
    )
    return CatalogueRows(
        table.version(),
        {name: items[name].to_list() for name in (names.ITEM_ID, *features)},
        frozenset(items.filter(pl.col(AVAILABLE) == False)[names.ITEM_ID]),  # noqa: E712 - null is not False
    )


@dataclass(frozen=True)
class Popularity:
    """Two scores of items: `overall` of a week, `trend` an hourly rate that the last hour weighs most in."""

    overall: dict[str, float]
    trend: dict[str, float]


def read_popularity(reader: FeatureReader, item_ids: Sequence[str], now_us: int) -> Popularity:
    """Scores of the items that have any. Raises what the reader raises."""
    overall: dict[str, float] = {}
    trend: dict[str, float] = {}
    for chunk in _chunks(item_ids):
        fetched = reader.fetch({names.ITEM_ACTIVITY: chunk})
        counts = fetched.streams[names.ITEM_ACTIVITY].values(max(now_us, fetched.newest_us + 1))
        week, rate = np.zeros(len(chunk)), np.zeros(len(chunk))
        for feature, weight in POPULARITY.items():
            if feature in counts:  # `missing_features` has named the others
                count = np.asarray(counts[feature], dtype=np.float64)
                week += weight.overall * count
                rate += weight.trend * count
        overall |= {item: score for item, score in zip(chunk, week.tolist(), strict=True) if score > 0}
        trend |= {item: score for item, score in zip(chunk, rate.tolist(), strict=True) if score > 0}
    return Popularity(overall, trend)


def items_with_activity(client: "redis.Redis", limit: int) -> list[str]:
    """Ids of at most `limit` items with rows: all that is known of a shop that never sent its catalogue."""
    found: set[str] = set()
    for _, items in scan_entities(client, names.ITEM_ACTIVITY):
        found.update(items)
        if len(found) >= limit:
            break
    return sorted(found)[:limit]


def _chunks(items: Sequence[str]) -> Iterator[list[str]]:
    return (list(items[start : start + CHUNK]) for start in range(0, len(items), CHUNK))
