"""What the recommender reads besides its model: the online store's rows, and the catalogue table of the lake."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final

import numpy as np
import polars as pl
import redis
from deltalake import DeltaTable
from deltalake.exceptions import TableNotFoundError

from headrace import names
from headrace.clock import from_micros
from headrace.settings import Settings
from headrace.stores.definitions import load_definitions
from headrace.stores.online_reader import OnlineReader
from headrace.stores.redis_client import connect
from serving.model import CONTENT
from serving.pipeline import FeatureReader

# What an act says about an item, relative to a view.
WEIGHTS: Final = {"views": 1.0, "clicks": 2.0, "carts": 5.0, "purchases": 10.0}
HOURS: Final = {"1h": 1.0, "1d": 24.0, "7d": 168.0}
OVERALL: Final = "7d"
CHUNK: Final = 1_000
BULK_TIMEOUT_S: Final = 5.0


class FeaturesUnknownError(RuntimeError):
    """There is no registry of features, or it cannot be read."""


@dataclass(frozen=True)
class Readers:
    """Two ways into the same rows: one for a request, which cannot wait, one for reading thousands."""

    request: OnlineReader
    bulk: OnlineReader
    client: "redis.Redis"
    fingerprints: Mapping[str, int]

    def close(self) -> None:
        self.client.close()


def open_readers(settings: Settings, request_timeout_s: float) -> Readers:
    """Readers of the views that are registered now. Raises StoreAddressError or FeaturesUnknownError."""
    if not settings.registry_path.exists():
        raise FeaturesUnknownError(f"no features are registered in {settings.registry_path}: run `headrace apply`")
    try:
        definitions = load_definitions(settings)
    except Exception as error:  # the registry is Feast's, and what it raises has no common class
        raise FeaturesUnknownError(f"the registry {settings.registry_path} cannot be read: {error}") from error
    slow = connect(settings, timeout_s=BULK_TIMEOUT_S)
    fast = connect(settings, timeout_s=request_timeout_s)
    return Readers(
        OnlineReader(fast, definitions.streams, definitions.plain, settings),
        OnlineReader(slow, definitions.streams, definitions.plain, settings),
        slow,
        {name: spec.fingerprint for name, spec in definitions.streams.items()},
    )


@dataclass(frozen=True)
class Goods:
    """The catalogue as the lake has it: columns for the model, newest items first, and what is not available."""

    version: int
    columns: dict[str, list[Any]]
    newest: tuple[str, ...]
    unavailable: frozenset[str]

    @property
    def item_ids(self) -> list[str]:
        return list(self.columns[names.ITEM_ID])


def read_goods(settings: Settings, now_us: int, last: Goods | None) -> Goods | None:
    """The last catalogue row of each item at or before now; `last` itself while the table is the same, None if none.

    Raises OSError or DeltaError where the lake cannot be read.
    """
    try:
        table = DeltaTable(str(settings.lake_dir / names.ITEMS_TABLE))
    except TableNotFoundError:
        return None
    if last is not None and last.version == table.version():
        return last
    rows = pl.scan_delta(table).filter(pl.col("event_timestamp") <= from_micros(now_us))
    items = (
        rows.sort("event_timestamp", "created")
        .group_by(names.ITEM_ID, maintain_order=True)
        .agg(
            pl.col("category", "brand", "price", "available").last(),
            pl.col("event_timestamp").first().alias("first_seen"),
        )
        .sort(["first_seen", names.ITEM_ID], descending=[True, False])
        .collect()
    )
    content = {feature: items[feature.split("__")[1]].to_list() for feature in CONTENT}
    return Goods(
        table.version(),
        {names.ITEM_ID: items[names.ITEM_ID].to_list(), **content},
        tuple(items[names.ITEM_ID]),
        frozenset(items.filter(pl.col("available") == False)[names.ITEM_ID]),  # noqa: E712 - null is not False
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
        state = reader.fetch({names.ITEM_ACTIVITY: chunk})
        counts = state.streams[names.ITEM_ACTIVITY].values(max(now_us, state.newest_us + 1))
        week, rate = np.zeros(len(chunk)), np.zeros(len(chunk))
        for act, weight in WEIGHTS.items():
            for label, hours in HOURS.items():
                column = counts.get(f"{act}_{label}")
                if column is not None:
                    weighted = weight * np.asarray(column, dtype=np.float64)
                    rate += weighted / hours
                    week += weighted if label == OVERALL else 0.0
        overall |= {item: score for item, score in zip(chunk, week.tolist(), strict=True) if score > 0}
        trend |= {item: score for item, score in zip(chunk, rate.tolist(), strict=True) if score > 0}
    return Popularity(overall, trend)


def items_with_activity(client: "redis.Redis", limit: int) -> list[str]:
    """Ids of at most `limit` items with rows: all that is known of a shop that never sent its catalogue."""
    marker = f":{names.ITEM_ACTIVITY}:"
    keys = client.scan_iter(match=f"{names.PROJECT}:*{marker}*", count=CHUNK)
    return sorted(key.decode().split(marker, 1)[1] for key in islice(keys, limit))


def _chunks(items: Sequence[str]) -> Iterator[list[str]]:
    return (list(items[start : start + CHUNK]) for start in range(0, len(items), CHUNK))
