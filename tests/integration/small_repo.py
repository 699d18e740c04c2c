"""A feature repository of a test's own, whose stream views are given as Python objects, and events for it."""

import random
import shutil
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from bytewax.testing import run_main
from feast import Entity, FeatureStore, Field, FileSource, PushSource, StreamFeatureView, ValueType
from feast.aggregation import Aggregation
from feast.data_format import DeltaFormat
from feast.types import Array, Float64, Int64, String

from flows.features import get_flow as feature_flow
from flows.lake import get_flow as lake_flow
from flows.recovery import StopFlag
from flows.source import Pace
from headrace.clock import system_clock
from headrace.events import encode_records
from headrace.identity import shard_of
from headrace.settings import Settings
from headrace.stores.definitions import load_definitions
from headrace.stores.feature_store import open_feature_store
from headrace.stores.log import open_log
from headrace.stores.online_reader import OnlineReader
from headrace.stores.redis_client import connect
from headrace.stores.state_definitions import state_definitions
from tests import oracles
from tests.conftest import ROOT

Event = dict[str, Any]
START_US = 1_760_000_000_000_000
SECOND = 1_000_000
_TYPES = {"count": Int64, "sum": Float64, "last": String, "last_n(3)": Array(String), "session_count": Int64}


def make_settings(tmp_path: Path, redis_url: str | None = None, **others: Any) -> Settings:
    """Settings of an empty feature repository and an empty data directory."""
    repo = tmp_path / "feature_repo"
    repo.mkdir()
    shutil.copy(ROOT / "feature_repo" / "feature_store.yaml", repo)
    return Settings(data=tmp_path / "var", feature_repo=repo, redis_url=redis_url, shards=2, log_partitions=2, **others)


def feature(name: str, column: str, function: str = "count", minutes: int | None = 10, hop: int = 1) -> Aggregation:
    """An aggregation over some minutes; None for no window."""
    window = {"time_window": timedelta(minutes=minutes), "slide_interval": timedelta(minutes=hop)} if minutes else {}
    return Aggregation(column=column, function=function, name=name, **window)


def stream_view(name: str, *features: Aggregation, of: str = "user", **options: Any) -> StreamFeatureView:
    """A stream view of users or items with those features."""
    lake = FileSource(name="event_lake", path="lake/events", file_format=DeltaFormat(), timestamp_field="timestamp")
    return StreamFeatureView(
        name=name,
        entities=[Entity(name=of, join_keys=[f"{of}_id"], value_type=ValueType.STRING)],
        source=PushSource(name="events", batch_source=lake),
        timestamp_field="timestamp",
        enable_tiling=True,
        tiling_hop_size=timedelta(minutes=1),
        aggregations=list(features),
        schema=options.pop("schema", None) or [Field(name=each.name, dtype=_TYPES[each.function]) for each in features],
        **options,
    )


def apply_views(settings: Settings, *views: StreamFeatureView) -> FeatureStore:
    """As `feast apply` of a repository that defines these views and nothing else."""
    store = open_feature_store(settings)
    entities = {
        entity: Entity(name=entity, join_keys=[f"{entity}_id"], value_type=ValueType.STRING)
        for entity in ("user", "item")
    }
    gone = [view for view in store.list_stream_feature_views() if view.name not in {each.name for each in views}]
    store.apply([*entities.values(), *views], objects_to_delete=gone, partial=False)
    return store


def make_events(count: int, seed: int = 1, first: int = 0, start_us: int = START_US) -> list[Event]:
    """Views, clicks and purchases of some users, some minutes apart, now and then late."""
    rng = random.Random(seed)
    at, events = start_us, []
    for number in range(first, first + count):
        at += rng.choice([0, 1, 20, 60]) * SECOND
        late = rng.choice([0, 0, 0, 30]) * SECOND
        user = f"u{rng.randrange(8)}"
        kind = rng.choice(["view", "view", "click", "purchase"])
        events.append(
            {
                "event_id": f"e{number:06d}",
                "type": kind,
                "user_key": user,
                "user_id": user,
                "item_id": f"i{rng.randrange(6)}",
                "price": float(rng.randrange(1, 100)) if kind == "purchase" else None,
                "timestamp": at - late,
                "received_at": at,
            }
        )
    return events


def append_events(settings: Settings, events: Sequence[Event], entry: int = 20) -> None:
    """Put events into the log, some in each entry."""
    log = open_log(connect(settings), settings)
    for start in range(0, len(events), entry):
        groups: dict[int, list[Event]] = {}
        for event in events[start : start + entry]:
            groups.setdefault(shard_of(str(event["user_key"]), log.partitions), []).append(event)
        log.append(
            {p: encode_records(group) for p, group in groups.items()}, {p: len(group) for p, group in groups.items()}
        )


def run_flow(settings: Settings) -> None:
    """The feature flow until the end of the log."""
    run_main(feature_flow(settings, system_clock, StopFlag(), Pace(), until_end=True))


def run_lake(settings: Settings) -> None:
    """The lake flow until the end of the log."""
    run_main(lake_flow(settings, system_clock, StopFlag(), Pace(), until_end=True))


def open_reader(settings: Settings) -> OnlineReader:
    return OnlineReader(connect(settings), load_definitions(settings), settings)


def read_values(
    settings: Settings, view: str, keys: Sequence[str], t_us: int, reader: OnlineReader | None = None
) -> Mapping[str, Any]:
    """Features of some entities by name, as Python lists; nothing for a view that the state does not have."""
    rows = (reader or open_reader(settings)).fetch({view: list(keys)}).streams.get(view)
    return {name: list(column) for name, column in rows.values(t_us).items()} if rows else {}


def newest_of(events: Sequence[Event]) -> int:
    return max(int(event["timestamp"]) for event in events)


def assert_state_equals_oracle(settings: Settings, events: Sequence[Event], t_us: int | None = None) -> None:
    """Every feature of every entity that the state has, by the definitions it was made by."""
    t_us = t_us or newest_of(events) + 1
    specs = state_definitions(connect(settings), settings).streams
    assert specs
    for spec in specs.values():
        keys = [*sorted({str(event[spec.entity_column]) for event in events}), "never-seen"]
        values = read_values(settings, spec.name, keys, t_us)
        for aggregate in spec.aggregates:
            expected = [oracles.value(spec, aggregate, list(events), key, t_us) for key in keys]
            assert list(values[aggregate.name]) == expected, f"{spec.name}.{aggregate.name}"
