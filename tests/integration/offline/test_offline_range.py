"""Retrieval without an entity frame: who did something between two times, as of the second."""

from datetime import timedelta

import pandas as pd
from feast import Entity, FeatureStore, FeatureView, Field, FileSource, ValueType
from feast.types import Float64, Int64

from headrace import names
from headrace.clock import from_micros
from headrace.settings import Settings
from tests.integration.offline.rows import DAY, HOUR, MINUTE, NOON, append_events, append_rows, item, view_event

START, END = from_micros(NOON), from_micros(NOON + HOUR)


def test_entities_with_a_row_in_the_range_are_read_as_of_its_end(store: FeatureStore, settings: Settings) -> None:
    append_rows(
        settings.lake_dir / names.ITEMS_TABLE,
        item("before", NOON - 1, 1.0),
        item("at start", NOON, 2.0),
        item("twice", NOON + 1, 3.0),
        item("twice", NOON + HOUR, 4.0),
        item("after", NOON + HOUR + 1, 5.0),
        item(None, NOON, 6.0),
    )
    job = store.get_historical_features(features=["item_catalogue:price"], start_date=START, end_date=END)
    assert job.to_arrow().to_pylist() == [
        {"item_id": "at start", "event_timestamp": END, "price": 2.0},
        {"item_id": "twice", "event_timestamp": END, "price": 4.0},
    ]
    assert job.metadata is not None
    assert job.metadata.keys == ["item_id"]
    assert job.metadata.max_event_timestamp == END


def test_a_stream_view_has_an_entity_for_each_event_before_the_end(store: FeatureStore, settings: Settings) -> None:
    events = [view_event("u1", "i1", NOON), view_event("u2", "i1", NOON + HOUR), view_event("u3", "i1", NOON - MINUTE)]
    append_events(settings, [event | {"event_id": event["user_key"]} for event in events])
    job = store.get_historical_features(features=["user_activity:views_1d"], start_date=START, end_date=END)
    assert job.to_arrow().select(["user_id", "views_1d"]).to_pylist() == [{"user_id": "u1", "views_1d": 1}]


def test_views_of_different_entities_have_a_row_for_each_of_theirs(store: FeatureStore, settings: Settings) -> None:
    append_events(settings, [view_event("u1", "i1", NOON)])
    append_rows(settings.lake_dir / names.ITEMS_TABLE, item("i1", NOON, 1.0), item("i2", NOON, 2.0))
    features = ["user_activity:views_1h", "item_activity:views_1h", "item_catalogue:price"]
    job = store.get_historical_features(features=features, full_feature_names=True, start_date=START, end_date=END)
    answer = job.to_arrow().drop(["event_timestamp"]).to_pylist()
    views, price = ("user_activity__views_1h", "item_activity__views_1h"), "item_catalogue__price"
    assert answer == [
        {"item_id": None, "user_id": "u1", views[0]: 1, views[1]: 0, price: None},
        {"item_id": "i1", "user_id": None, views[0]: 0, views[1]: 1, price: 1.0},
        {"item_id": "i2", "user_id": None, views[0]: 0, views[1]: 0, price: 2.0},
    ]


def test_without_a_start_the_range_is_as_long_as_the_longest_ttl(store: FeatureStore, tmp_path: object) -> None:
    source = FileSource(name="rates_source", path=f"{tmp_path}/rates.parquet", timestamp_field="event_timestamp")
    pair = Entity(name="pair", join_keys=["pair"], value_type=ValueType.INT64)
    view = FeatureView(
        name="rates", entities=[pair], ttl=timedelta(hours=1), source=source, schema=[Field(name="rate", dtype=Float64)]
    )
    times = [from_micros(NOON), from_micros(NOON - 1)]
    pd.DataFrame({"pair": [1, 2], "rate": [1.5, 2.5], "event_timestamp": times}).to_parquet(source.path)
    store.apply([pair, view])
    job = store.get_historical_features(features=["rates:rate"], end_date=END)
    assert job.to_arrow().select(["pair", "rate"]).to_pylist() == [{"pair": 1, "rate": 1.5}]


def test_a_view_without_keys_gives_one_row(store: FeatureStore, tmp_path: object) -> None:
    source = FileSource(name="world_source", path=f"{tmp_path}/world.parquet", timestamp_field="event_timestamp")
    view = FeatureView(name="world", entities=[], source=source, schema=[Field(name="people", dtype=Int64)])
    times = [from_micros(NOON), from_micros(NOON + DAY)]
    pd.DataFrame({"people": [7, 8], "event_timestamp": times}).to_parquet(source.path)
    store.apply([view])
    job = store.get_historical_features(features=["world:people"], start_date=START, end_date=END)
    assert job.to_arrow().to_pylist() == [{"event_timestamp": END, "people": 7}]
    rows = pd.DataFrame({"event_timestamp": [from_micros(NOON + DAY), from_micros(NOON - 1)]})
    assert store.get_historical_features(rows, ["world:people"]).to_arrow()["people"].to_pylist() == [8, None]


def test_a_range_without_anything_in_it_gives_no_row(store: FeatureStore, settings: Settings) -> None:
    features = ["item_catalogue:price", "user_activity:views_1h"]
    empty = store.get_historical_features(features=features, start_date=START, end_date=END).to_arrow()
    assert empty.num_rows == 0
    append_rows(settings.lake_dir / names.ITEMS_TABLE, item("before", NOON - 1, 1.0))
    empty = store.get_historical_features(features=features, start_date=START, end_date=END).to_arrow()
    assert empty.num_rows == 0
    assert {"price", "views_1h"} < set(empty.column_names)
