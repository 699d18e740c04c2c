"""What the online benchmarks compare: our store and Feast's own Redis store on one Valkey, with the same views and rows in both.

Feast's store holds the finished values of windowed features, as its users would have to compute them.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
import polars as pl
from feast import Entity, FeatureStore, FeatureView, Field, FileSource, PushSource, RepoConfig, StreamFeatureView
from feast.aggregation import Aggregation
from feast.repo_config import RegistryConfig
from feast.types import Bool, Float64, Int64, String
from feast.value_type import ValueType

from headrace import names
from headrace.aggregates.compile import compile_view
from headrace.aggregates.fold import ViewState
from headrace.aggregates.layout import Layout
from headrace.clock import from_micros
from headrace.events import RECORD_SCHEMA
from headrace.hashing import shards_of
from headrace.ops.ports import free_port
from headrace.ops.valkey import ValkeyServer
from headrace.settings import Settings
from headrace.stores.commits import SentCommits, ShardCommit
from headrace.stores.definitions import REGISTRY_STORE
from headrace.stores.feature_store import quieten_feast
from headrace.stores.shards import OwnedShard

OURS: Final = "headrace.stores.online.PackedRedisOnlineStore"
FEASTS: Final = "redis"
ITEM: Final = Entity(name="item", join_keys=["item_id"], value_type=ValueType.STRING)
WINDOWS: Final = (
    ("10m", timedelta(minutes=10), timedelta(minutes=1)),
    ("1h", timedelta(hours=1), timedelta(minutes=5)),
    ("1d", timedelta(days=1), timedelta(hours=1)),
    ("7d", timedelta(days=7), timedelta(hours=6)),
)
COUNTED: Final = {"views": "view", "clicks": "click", "carts": "add_to_cart", "purchases": "purchase"}
LEASE_MS: Final = 600_000


@contextmanager
def valkey(directory: Path) -> Iterator[ValkeyServer]:
    """A server as `make up` starts it: every write on disk before its answer."""
    server = ValkeyServer(directory / "valkey", free_port(), directory / "valkey.log")
    server.start()
    try:
        yield server
    finally:
        server.stop()


def plain_fields(count: int) -> list[Field]:
    """Of ten fields six are floats, two integers, one a string, one a bool."""
    kinds = (Float64, Float64, Int64, Float64, String, Float64, Int64, Float64, Bool, Float64)
    return [Field(name=f"f{number}", dtype=kinds[number % len(kinds)]) for number in range(count)]


def plain_view(name: str, fields: Sequence[Field], directory: Path) -> FeatureView:
    """Fed by a push source of its own name."""
    batch = FileSource(name=f"{name}_rows", path=str(directory / "none"), timestamp_field="event_timestamp")
    source = PushSource(name=name, batch_source=batch)
    return FeatureView(name=name, entities=[ITEM], ttl=timedelta(0), schema=list(fields), source=source)


def plain_rows(ids: Sequence[str], fields: Sequence[Field], at: datetime, seed: int = 1) -> pd.DataFrame:
    """A row for each id, every value there."""
    rng = np.random.default_rng(seed)
    make = {
        Float64: lambda: rng.random(len(ids)),
        Int64: lambda: rng.integers(0, 2**40, len(ids)),
        Bool: lambda: rng.integers(0, 2, len(ids)).astype(bool),
        String: lambda: np.array([f"category {number}" for number in rng.integers(0, 1_000, len(ids))], dtype=object),
    }
    columns = {field.name: make[field.dtype]() for field in fields}  # type: ignore[no-untyped-call]
    return pd.DataFrame({"item_id": list(ids), "event_timestamp": at, **columns})


def windowed_view(name: str, count: int, directory: Path) -> StreamFeatureView:
    """Counts of four types over four windows first, then sums, means and a maximum of prices over those windows."""
    wanted = [
        (event_type, "count", label, window, hop, plural)
        for plural, event_type in COUNTED.items()
        for label, window, hop in WINDOWS
    ]
    wanted += [
        ("purchase.price", function, label, window, hop, f"price_{function}")
        for function in ("sum", "mean", "max")
        for label, window, hop in WINDOWS
    ]
    aggregations = [
        Aggregation(column=column, function=function, time_window=window, slide_interval=hop, name=f"{prefix}_{label}")
        for column, function, label, window, hop, prefix in wanted[:count]
    ]
    lake = FileSource(
        name=f"{name}_lake", path=str(directory / "none"), timestamp_field="timestamp",
        created_timestamp_column="received_at",
    )  # fmt: skip
    return StreamFeatureView(
        name=name,
        entities=[ITEM],
        source=PushSource(name=f"{name}_events", batch_source=lake),
        timestamp_field="timestamp",
        enable_tiling=True,
        tiling_hop_size=timedelta(minutes=1),
        aggregations=aggregations,
        schema=[Field(name=a.name, dtype=Int64 if a.function == "count" else Float64) for a in aggregations],
    )


def open_store(kind: str, server: str, settings: Settings, definitions: Sequence[object] = ()) -> FeatureStore:
    """A feature store with its registry under `settings.data`; applies the definitions, if there are any."""
    quieten_feast()
    address = server.removeprefix("redis://").removesuffix("/0")
    online = {"type": kind, "settings": settings} if kind == OURS else {"type": kind, "connection_string": address}
    registry = RegistryConfig(
        registry_type="file", path=str(settings.registry_path.resolve()), registry_store_type=REGISTRY_STORE
    )
    store = FeatureStore(
        config=RepoConfig(
            project="online",
            provider="local",
            registry=registry,
            online_store=online,
            offline_store={"type": "file"},
            entity_key_serialization_version=3,
            repo_path=settings.data,
        )
    )
    if definitions:
        store.apply(list(definitions))
    return store


def features_of(store: FeatureStore, view: str) -> list[str]:
    """Names of a registered view's features. Feast registers the entity's column among them."""
    features = store.registry.get_any_feature_view(view, store.project).features
    return [field.name for field in features if field.name != ITEM.join_key]


def random_events(ids: Sequence[str], each: int, until_us: int, seed: int = 2) -> pl.DataFrame:
    """`each` events an item before `until_us`, most of them recent, some a week old; every event its price."""
    rng = np.random.default_rng(seed)
    count = len(ids) * each
    ages = np.minimum(rng.exponential(12 * 3_600e6, count), 6.5 * 86_400e6).astype(np.int64) + 1
    times = pl.Series(until_us - ages).cast(pl.Datetime("us", "UTC"))
    columns = {
        names.EVENT_ID: [f"e{number}" for number in range(count)],
        names.TYPE: rng.choice(list(COUNTED.values()), count, p=[0.6, 0.2, 0.1, 0.1]).tolist(),
        names.USER_KEY: "u1",
        names.ITEM_ID: np.repeat(np.array(ids, dtype=object), each).tolist(),
        names.TIMESTAMP: times,
        names.RECEIVED_AT: times,
        "price": rng.integers(1, 1_000, count) / 4.0,  # sums of these are exact
    }
    schema = pl.from_arrow(RECORD_SCHEMA.empty_table())
    assert isinstance(schema, pl.DataFrame)
    return pl.concat([schema, pl.DataFrame(columns)], how="diagonal_relaxed").sort(names.TIMESTAMP)


class Writer:
    """The flow's way of writing: state of one view in every shard, changed rows packed and committed together."""

    def __init__(self, client: Any, view: StreamFeatureView, ids: Sequence[str], shards: int) -> None:
        self._client = client
        self._spec = compile_view(view)
        self._owned = [OwnedShard(client, shard, "benchmark", LEASE_MS) for shard in range(shards)]
        for shard in self._owned:
            shard.acquire()
        self._shard_of = dict(zip(ids, shards_of(ids, shards).tolist(), strict=True))
        self._states = [ViewState(Layout(self._spec)) for _ in self._owned]
        for state, members in zip(self._states, self._members(ids), strict=True):
            state.load_rows(members, [None] * len(members))
        self._position = 0

    def fold(self, events: pl.DataFrame) -> None:
        """Take events into the state, in memory."""
        placed = events.with_columns(shard=pl.col(names.ITEM_ID).replace_strict(self._shard_of))
        for shard, state in enumerate(self._states):
            state.fold(placed.filter(pl.col("shard") == shard))

    def write(self) -> int:
        """Pack the changed rows and commit them with a log position; returns how many."""
        self._position += 1
        commits = []
        for shard, state in zip(self._owned, self._states, strict=True):
            rows = {self._spec.name: state.take_packed()}
            commits.append((shard, ShardCommit(rows, {0: self._position}, {0: self._position})))
        lost = SentCommits(self._client, commits, {self._spec.name: self._spec.fingerprint}).finish()
        assert not lost, "nobody else writes here"
        return sum(len(some.keys) for _, change in commits for some in change.rows[self._spec.name])

    def _members(self, ids: Sequence[str]) -> list[list[str]]:
        members: list[list[str]] = [[] for _ in self._owned]
        for each in ids:
            members[self._shard_of[each]].append(each)
        return members


def at(micros: int) -> datetime:
    return from_micros(micros).astimezone(UTC)
