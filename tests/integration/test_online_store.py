"""Feast's own API on the packed online store: it reads back what it writes, and agrees with the fast reader on stream views."""

from datetime import UTC, datetime, timedelta

import pandas as pd
import pytest
from bytewax.testing import run_main
from feast import FeatureStore

from flows.features import get_flow
from flows.recovery import StopFlag
from flows.source import Pace
from headrace import names
from headrace.clock import system_clock
from headrace.events import encode_records
from headrace.identity import shard_of
from headrace.settings import Settings
from headrace.stores.definitions import load_definitions
from headrace.stores.feature_store import open_feature_store
from headrace.stores.log import open_log
from headrace.stores.online import StreamViewWriteError
from headrace.stores.online_reader import OnlineReader
from headrace.stores.online_writes import FutureRowError
from headrace.stores.redis_client import connect

NOW = datetime.now(UTC).replace(microsecond=0)


@pytest.fixture
def store(stack: Settings) -> FeatureStore:
    return open_feature_store(stack)


def item_rows(**columns: object) -> pd.DataFrame:
    row = {"item_id": "i1", "title": "Lamp", "category": "light", "brand": None, "price": 9.5, "available": True,
           "attributes": ["brass", "small"], "listed_at": 1_700_000_000_000_000}  # fmt: skip
    return pd.DataFrame([row | {"event_timestamp": NOW, "created": NOW} | columns])


def read_item(store: FeatureStore, *features: str) -> dict[str, list[object]]:
    refs = [f"item_catalogue:{feature}" for feature in features]
    return store.get_online_features(refs, [{"item_id": "i1"}]).to_dict()  # type: ignore[no-any-return]


def test_a_plain_row_comes_back_with_its_types_and_its_null(store: FeatureStore) -> None:
    store.write_to_online_store("item_catalogue", item_rows())
    assert read_item(store, "title", "brand", "price", "available", "attributes", "listed_at") == {
        "item_id": ["i1"],
        "title": ["Lamp"],
        "brand": [None],
        "price": [9.5],
        "available": [True],
        "attributes": [["brass", "small"]],
        "listed_at": [1_700_000_000_000_000],
    }


def test_an_older_row_does_not_replace_a_newer_one_and_a_later_write_wins_a_tie(store: FeatureStore) -> None:
    store.write_to_online_store("item_catalogue", item_rows(price=2.0))
    store.write_to_online_store("item_catalogue", item_rows(price=1.0, event_timestamp=NOW - timedelta(hours=1)))
    assert read_item(store, "price")["price"] == [2.0]
    store.write_to_online_store("item_catalogue", item_rows(price=3.0))
    assert read_item(store, "price")["price"] == [3.0]


def test_a_row_dated_ahead_of_now_is_refused(store: FeatureStore) -> None:
    with pytest.raises(FutureRowError, match="i1"):
        store.write_to_online_store("item_catalogue", item_rows(event_timestamp=NOW + timedelta(hours=1)))


def test_values_written_into_a_stream_view_are_refused_with_the_remedy(store: FeatureStore) -> None:
    view = store.get_stream_feature_view("item_activity")
    row = {"item_id": "i1", "timestamp": NOW, "received_at": NOW} | {
        field.name: 1 for field in view.features if field.name != "item_id"
    }
    with pytest.raises(StreamViewWriteError, match="headrace backfill"):
        store.write_to_online_store("item_activity", pd.DataFrame([row]))


def test_the_sdk_and_the_fast_reader_agree_on_a_stream_view_and_on_one_never_seen(
    stack: Settings, store: FeatureStore
) -> None:
    log = open_log(connect(stack), stack)
    at = system_clock() - 5_000_000
    for number, item in enumerate(["a", "b", "c"]):
        when = at + number
        record = {
            "event_id": f"e{number}",
            "type": "view",
            "user_key": "u1",
            "item_id": item,
            "timestamp": when,
            "received_at": when,
        }
        log.append({shard_of("u1", log.partitions): encode_records([record])}, {shard_of("u1", log.partitions): 1})
    run_main(get_flow(stack, system_clock, StopFlag(), Pace(), until_end=True))
    features = ["views_10m", "recent_items", "recent_times", "session_count", "session_seconds"]
    answer = store.get_online_features(
        [f"user_activity:{name}" for name in features], [{"user_id": "u1"}, {"user_id": "never"}]
    ).to_dict()
    assert answer["views_10m"] == [3, 0]
    assert answer["recent_items"] == [["a", "b", "c"], []]
    assert answer["session_count"] == [3, 0]
    rows = (
        OnlineReader(connect(stack), load_definitions(stack), stack)
        .fetch({"user_activity": ["u1", "never"]})
        .streams["user_activity"]
    )
    values = rows.values(system_clock())
    assert {name: list(values[name]) for name in features} == {name: answer[name] for name in features}


def test_a_service_with_stream_and_plain_views_is_read_in_one_call(store: FeatureStore) -> None:
    store.write_to_online_store("item_catalogue", item_rows())
    answer = store.get_online_features(
        store.get_feature_service(names.RANKER_SERVICE), [{"user_id": "u1", "item_id": "i1"}], full_feature_names=True
    ).to_dict()
    assert answer["item_catalogue__category"] == ["light"]
    assert answer["user_activity__views_7d"] == [0]
    assert answer["user_profile__age"] == [None]
