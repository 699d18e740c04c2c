"""A feature store of a test's own definitions: `make_store` applies them in a directory, without a subprocess."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
from bytewax.testing import run_main
from feast import Entity, FeatureStore, FeatureView, Field, FileSource, PushSource, RepoConfig, StreamFeatureView
from feast.aggregation import Aggregation
from feast.repo_config import RegistryConfig
from feast.types import Array, Float64, Int64, String
from feast.value_type import ValueType

from flows.features import get_flow
from flows.recovery import StopFlag
from flows.source import Pace
from headrace.clock import system_clock, to_micros
from headrace.events import encode_records
from headrace.identity import shard_of
from headrace.settings import Settings
from headrace.stores.definitions import REGISTRY_STORE
from headrace.stores.log import open_log
from headrace.stores.redis_client import connect

item = Entity(name="item", join_keys=["item_id"], value_type=ValueType.STRING)
user = Entity(name="user", join_keys=["user_id"], value_type=ValueType.STRING)

LONG_AGO = datetime(2026, 1, 1, tzinfo=UTC)


def plain_view(
    name: str,
    schema: Sequence[Field],
    path: Path,
    entities: Sequence[Entity] = (item,),
    ttl: timedelta = timedelta(0),
    **more: Any,
) -> FeatureView:
    """A view over a Parquet file, fed by a push source of its own name as well."""
    batch = FileSource(
        name=f"{name}_rows", path=str(path), timestamp_field="event_timestamp", created_timestamp_column="created"
    )
    source = PushSource(name=name, batch_source=batch)
    return FeatureView(name=name, entities=list(entities), ttl=ttl, schema=list(schema), source=source, **more)


def stream_view(lake: Path, ttl: timedelta = timedelta(0), name: str = "item_activity") -> StreamFeatureView:
    """Views in ten minutes, the mean price of purchases in an hour, the last three users."""
    source = FileSource(
        name=f"{name}_lake", path=str(lake), timestamp_field="timestamp", created_timestamp_column="received_at"
    )
    minute, hour = timedelta(minutes=1), timedelta(hours=1)
    return StreamFeatureView(
        name=name,
        entities=[item],
        source=PushSource(name=f"{name}_events", batch_source=source),
        timestamp_field="timestamp",
        enable_tiling=True,
        tiling_hop_size=minute,
        ttl=ttl,
        aggregations=[
            Aggregation(column="view", function="count", time_window=10 * minute, slide_interval=minute, name="views"),
            Aggregation(
                column="purchase.price", function="mean", time_window=hour, slide_interval=minute, name="mean_price"
            ),
            Aggregation(column="view.user_key", function="last_n(3)", name="last_users"),
        ],
        schema=[
            Field(name="views", dtype=Int64),
            Field(name="mean_price", dtype=Float64),
            Field(name="last_users", dtype=Array(String)),
        ],
    )


def make_store(settings: Settings, *definitions: object) -> FeatureStore:
    """A feature store under `settings.data`, of the plugins that feature_store.yaml names, with these definitions applied."""
    config = RepoConfig(
        project="test",
        provider="local",
        registry=RegistryConfig(
            registry_type="file", registry_store_type=REGISTRY_STORE, path=str(settings.registry_path.resolve())
        ),
        online_store={"type": "headrace.stores.online.PackedRedisOnlineStore", "settings": settings},
        offline_store={"type": "headrace.stores.offline.PolarsOfflineStore"},
        batch_engine={"type": "headrace.stores.online_engine.PlainViewsEngine"},
        entity_key_serialization_version=3,
        repo_path=settings.data,
    )
    store = FeatureStore(config=config)
    store.apply(list(definitions))
    return store


def rows(*values: Mapping[str, Any], at: datetime = LONG_AGO, created: datetime | None = None) -> pd.DataFrame:
    """Rows to push, each dated `at` unless it says otherwise."""
    times = {"event_timestamp": at, "created": created or at}
    return pd.DataFrame([times | row for row in values])


def run_events(settings: Settings, *events: Mapping[str, Any]) -> None:
    """Append events to the log, each `{type, item_id, at, ...}`, and let the flow take all of them in."""
    log = open_log(connect(settings), settings)
    for number, event in enumerate(events):
        at = to_micros(event["at"])
        record = {"event_id": f"{at}-{number}", "user_key": "u1", **event, "timestamp": at, "received_at": at}
        del record["at"]
        partition = shard_of(record["user_key"], log.partitions)
        log.append({partition: encode_records([record])}, {partition: 1})
    run_main(get_flow(settings, system_clock, StopFlag(), Pace(), until_end=True))
