"""The offline store through Feast itself: a real apply, and a Delta lake written as the flow writes it."""

import warnings
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from feast import Entity, FeatureService, FeatureStore, FeatureView, Field, FileSource, RequestSource, ValueType
from feast.data_format import DeltaFormat
from feast.on_demand_feature_view import on_demand_feature_view
from feast.types import Float64, Int64

from headrace import names
from headrace.aggregates.compile import compile_views
from headrace.clock import from_micros
from headrace.settings import Settings
from tests import oracles
from tests.integration.offline.rows import (
    DAY,
    MINUTE,
    NOON,
    TIME,
    append_events,
    append_rows,
    asked,
    fetch,
    generated_events,
    item,
    view_event,
)


def test_both_services_return_each_row_in_order_with_the_oracles_values(
    store: FeatureStore, settings: Settings
) -> None:
    events = generated_events(300, seed=1)
    append_events(settings, events[:200])
    append_events(settings, events[200:])
    append_rows(settings.lake_dir / names.ITEMS_TABLE, item("i0", NOON, 1.0), item("i0", NOON + DAY, 2.0))
    rng = np.random.default_rng(2)
    times = [events[n]["timestamp"] + shift for n in rng.integers(0, 300, 20) for shift in (0, 1, 7 * MINUTE)]
    rows = [(f"u{rng.integers(6)}", f"i{rng.integers(7)}", t) for t in times]
    specs = compile_views(store)
    for service, views in (
        (names.RETRIEVAL_SERVICE, [names.USER_ACTIVITY]),
        (names.RANKER_SERVICE, [names.USER_ACTIVITY, names.ITEM_ACTIVITY]),
    ):
        answer = fetch(store, asked(rows), service, full_feature_names=True)
        assert answer["label"].to_pylist() == list(range(len(rows)))
        assert answer["user_id"].to_pylist() == [user for user, _, _ in rows]
        for view in views:
            for aggregate in specs[view].aggregates:
                pairs = [(row[0 if view == names.USER_ACTIVITY else 1], row[2]) for row in rows]
                expected = [oracles.value(specs[view], aggregate, events, key, t) for key, t in pairs]
                assert answer[f"{view}__{aggregate.name}"].to_pylist() == expected, aggregate.name
    prices = [None if i != "i0" or t < NOON else 1.0 if t < NOON + DAY else 2.0 for _, i, t in rows]
    assert answer["item_catalogue__price"].to_pylist() == prices


def test_label_rows_computed_a_few_at_a_time_give_the_same_answer(store: FeatureStore, settings: Settings) -> None:
    events = generated_events(100, seed=3)
    append_events(settings, events)
    entity_df = asked([(f"u{n % 4}", f"i{n % 5}", NOON + n * 60 * MINUTE) for n in range(60)])
    whole = fetch(store, entity_df, names.RANKER_SERVICE, full_feature_names=True)
    store.config.offline_store.memory_mb = 0.003
    assert fetch(store, entity_df, names.RANKER_SERVICE, full_feature_names=True).equals(whole)


def test_empty_stores_read_as_zeros_and_nulls_and_lose_no_row(store: FeatureStore) -> None:
    entity_df = asked([("u1", "i1", NOON), ("u2", "i2", NOON)])
    answer = fetch(store, entity_df, names.RANKER_SERVICE, full_feature_names=True)
    assert answer["user_activity__views_10m"].to_pylist() == [0, 0]
    assert answer["user_activity__recent_items"].to_pylist() == [[], []]
    assert answer["item_catalogue__price"].to_pylist() == [None, None]
    assert answer.schema.field("user_profile__age").type == pa.int64()


def test_a_plain_row_counts_from_its_own_timestamp_on_and_the_later_write_wins_a_tie(
    store: FeatureStore, settings: Settings
) -> None:
    items = settings.lake_dir / names.ITEMS_TABLE
    append_rows(items, item("i1", NOON, 3.0, created=NOON + 9), item("i1", NOON, 2.0, created=NOON + 5))
    append_rows(items, item("i1", NOON, 1.0, created=NOON + 1))
    entity_df = asked([("u", "i1", NOON - 1), ("u", "i1", NOON), ("u", "i1", NOON + DAY), ("u", "other", NOON)])
    assert fetch(store, entity_df, ["item_catalogue:price"])["price"].to_pylist() == [None, 3.0, 3.0, None]


def test_of_rows_with_equal_times_the_later_commit_wins(store: FeatureStore, settings: Settings) -> None:
    for price in (1.0, 2.0, 3.0):
        append_rows(settings.lake_dir / names.ITEMS_TABLE, item("i1", NOON, price))
    assert fetch(store, asked([("u", "i1", NOON)]), ["item_catalogue:price"])["price"].to_pylist() == [3.0]


def test_the_entity_frame_may_be_pandas_polars_arrow_or_a_parquet_file(
    store: FeatureStore, settings: Settings, tmp_path: Path
) -> None:
    append_events(settings, generated_events(50, seed=4))
    entity_df = asked([("u1", "i1", NOON + DAY), ("u2", "i2", NOON)])
    frame = pl.from_pandas(entity_df)
    path = tmp_path / "labels.parquet"
    frame.write_parquet(path)
    naive = entity_df.assign(event_timestamp=entity_df["event_timestamp"].dt.tz_localize(None))
    answers = [
        fetch(store, form, names.RANKER_SERVICE, full_feature_names=True).to_pydict()
        for form in (entity_df, frame, frame.to_arrow(), str(path), naive)
    ]
    assert all(answer == answers[0] for answer in answers)


def test_what_arrived_after_the_label_is_left_out_when_asked(store: FeatureStore, settings: Settings) -> None:
    items = settings.lake_dir / names.ITEMS_TABLE
    # The newest row is known at once, the two before it arrive late: one soon, one never by then.
    append_rows(items, item("i1", NOON, 1.0, created=NOON + 50), item("i1", NOON + 10, 2.0, created=NOON + DAY))
    append_rows(items, item("i1", NOON + 20, 3.0))
    append_events(settings, [view_event("u1", "i1", NOON, delay=15)])
    entity_df = asked([("u1", "i1", NOON + t) for t in (5, 14, 15, 19, 20, 60)])
    features = ["item_catalogue:price", "user_activity:views_10m"]
    known = fetch(store, entity_df, features, filter_by_created_timestamp=True)
    assert known["price"].to_pylist() == [None, None, None, None, 3.0, 3.0]
    assert known["views_10m"].to_pylist() == [0, 0, 1, 1, 1, 1]
    everything = fetch(store, entity_df, features)
    assert everything["price"].to_pylist() == [1.0, 2.0, 2.0, 2.0, 3.0, 3.0]
    assert everything["views_10m"].to_pylist() == [1, 1, 1, 1, 1, 1]


def test_one_view_under_two_aliases_reads_two_columns_of_entity_df(store: FeatureStore, settings: Settings) -> None:
    append_rows(settings.lake_dir / names.ITEMS_TABLE, item("i1", NOON, 1.0), item("i2", NOON, 2.0))
    append_events(settings, [view_event("u", "i2", NOON)])
    catalogue, activity = store.get_feature_view("item_catalogue"), store.get_stream_feature_view("item_activity")
    seen = catalogue[["price"]].with_name("seen").with_join_key_map({"item_id": "seen_id"})
    bought = catalogue[["price", "brand"]].with_name("bought").with_join_key_map({"item_id": "bought_id"})
    acts = activity[["views_1h"]].with_name("acts").with_join_key_map({"item_id": "bought_id"})
    times = [from_micros(NOON + 1)]
    entity_df = pd.DataFrame({"seen_id": ["i1"], "bought_id": ["i2"], "event_timestamp": times})
    service = FeatureService(name="pairs", features=[seen, bought, acts])
    store.apply([service])
    answer = fetch(store, entity_df, service, full_feature_names=True).drop(["event_timestamp"])
    features = {"seen__price": 1.0, "bought__price": 2.0, "bought__brand": "b", "acts__views_1h": 1}
    assert answer.to_pylist() == [{"seen_id": "i1", "bought_id": "i2"} | features]


def test_an_on_demand_view_is_computed_from_the_joined_row(store: FeatureStore, settings: Settings) -> None:
    append_rows(settings.lake_dir / names.ITEMS_TABLE, item("i1", NOON, 40.0))
    request = RequestSource(name="request", schema=[Field(name="discount", dtype=Float64)])

    @on_demand_feature_view(
        sources=[store.get_feature_view("item_catalogue"), request],
        schema=[Field(name="reduced", dtype=Float64)],
        mode="pandas",
    )
    def offer(inputs: pd.DataFrame) -> pd.DataFrame:
        return pd.DataFrame({"reduced": inputs["price"] * inputs["discount"]})

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        store.apply([request, offer])
    entity_df = asked([("u", "i1", NOON)]).assign(discount=0.5)
    assert fetch(store, entity_df, ["offer:reduced"])["reduced"].to_pylist() == [20.0]


@pytest.fixture
def weather(store: FeatureStore, tmp_path: Path) -> FeatureView:
    """A plain view over Parquet with a TTL, a composite integer key and renamed columns."""
    keys = [Entity(name=name, join_keys=[name], value_type=ValueType.INT64) for name in ("city", "zone")]
    source = FileSource(
        name="weather_source",
        path=str(tmp_path / "weather"),
        timestamp_field="measured",
        field_mapping={"city_no": "city", "celsius": "degrees"},
    )
    schema = [Field(name="city", dtype=Int64), Field(name="zone", dtype=Int64), Field(name="degrees", dtype=Float64)]
    view = FeatureView(name="weather", entities=keys, ttl=timedelta(hours=1), source=source, schema=schema)
    store.apply([*keys, view])
    return view


def measured(city: int, zone: int, at: int, celsius: float) -> pa.Table:
    return pa.table({"city_no": [city], "zone": [zone], "measured": pa.array([at], TIME), "celsius": [celsius]})


def test_a_parquet_folder_with_mapped_columns_and_two_keys_is_joined_within_its_ttl(
    store: FeatureStore, weather: FeatureView, tmp_path: Path
) -> None:
    (tmp_path / "weather").mkdir()
    pq.write_table(measured(1, 2, NOON, 3.5), tmp_path / "weather" / "a.parquet")
    pq.write_table(measured(2, 1, NOON, 9.0), tmp_path / "weather" / "b.parquet")
    times = [from_micros(NOON + shift) for shift in (0, 60 * MINUTE, 60 * MINUTE + 1, 0)]
    entity_df = pd.DataFrame({"city": [1, 1, 1, 2], "zone": [2, 2, 2, 2], "event_timestamp": times})
    assert fetch(store, entity_df, ["weather:degrees"])["degrees"].to_pylist() == [3.5, 3.5, None, None]


def test_an_offline_write_appends_and_the_later_one_wins(
    store: FeatureStore, weather: FeatureView, tmp_path: Path
) -> None:
    provider = store._get_provider()
    for celsius in (1.0, 2.0):
        provider.offline_write_batch(store.config, weather, measured(1, 2, NOON, celsius), None)
    assert len(list((tmp_path / "weather").glob("*.parquet"))) == 2
    entity_df = pd.DataFrame({"city": [1], "zone": [2], "event_timestamp": [from_micros(NOON)]})
    assert fetch(store, entity_df, ["weather:degrees"])["degrees"].to_pylist() == [2.0]


@pytest.mark.parametrize(
    "times",
    [
        pa.array([NOON, NOON + DAY]).cast(pa.timestamp("us")),
        pa.array([NOON // 1000, (NOON + DAY) // 1000]).cast(pa.timestamp("ms", "UTC")),
        pa.array([NOON * 1000, (NOON + DAY) * 1000]).cast(pa.timestamp("ns", "Europe/Stockholm")),
        ["2023-11-15T12:00:00", "2023-11-16T12:00:00"],
        ["2023-11-15T12:00:00Z", "2023-11-16 14:00:00.000000+02:00"],
    ],
    ids=["naive us", "ms", "ns elsewhere", "naive text", "text with zones"],
)
def test_label_times_may_be_of_any_unit_or_zone_or_text(store: FeatureStore, settings: Settings, times: Any) -> None:
    append_rows(settings.lake_dir / names.ITEMS_TABLE, item("i1", NOON, 1.0), item("i1", NOON + 1, 2.0))
    table = pa.table({"item_id": ["i1", "i1"], "event_timestamp": times})
    for form in (table, table.to_pandas(), pl.DataFrame(table)):
        answer = fetch(store, form, ["item_catalogue:price"])
        assert answer["price"].to_pylist() == [1.0, 2.0]
        assert answer["event_timestamp"].to_pylist() == [from_micros(NOON), from_micros(NOON + DAY)]


def test_label_times_of_a_day_are_its_midnight_and_the_time_column_may_have_its_own_name(
    store: FeatureStore, settings: Settings
) -> None:
    append_rows(settings.lake_dir / names.ITEMS_TABLE, item("i1", NOON, 1.0))
    days = pa.array([from_micros(NOON).date(), from_micros(NOON + DAY).date()])
    answer = fetch(store, pa.table({"item_id": ["i1", "i1"], "event_timestamp": days}), ["item_catalogue:price"])
    assert answer["price"].to_pylist() == [None, 1.0]
    named = pa.table({"item_id": ["i1"], "seen_at": pa.array([NOON]).cast(TIME)})
    assert fetch(store, named, ["item_catalogue:price"])["price"].to_pylist() == [1.0]


def test_rows_are_kept_in_order_with_duplicates_and_null_keys(store: FeatureStore, settings: Settings) -> None:
    append_rows(settings.lake_dir / names.ITEMS_TABLE, item("i1", NOON, 1.0), item(None, NOON, 9.0))
    append_events(settings, [view_event("u1", "i1", NOON)])
    rows = [("u1", "i1", NOON + 1), (None, None, NOON + 1), ("u1", "i1", NOON + 1), ("u9", "i1", NOON - 1)]
    answer = fetch(store, asked(rows), ["item_catalogue:price", "user_activity:views_1h", "user_activity:recent_items"])
    assert answer["label"].to_pylist() == [0, 1, 2, 3]
    assert answer["price"].to_pylist() == [1.0, None, 1.0, None]
    assert answer["views_1h"].to_pylist() == [1, 0, 1, 0]
    assert answer["recent_items"].to_pylist() == [["i1"], [], ["i1"], []]


def test_a_lake_in_a_folder_with_a_space_is_read(store: FeatureStore, tmp_path: Path) -> None:
    folder = tmp_path / "my lake" / "rates"
    append_rows(folder, {"pair": "a", "rate": 1.5, "at": NOON, "created": NOON})
    source = FileSource(name="r", path=str(folder), timestamp_field="event_timestamp", file_format=DeltaFormat())
    pair = Entity(name="pair", join_keys=["pair"], value_type=ValueType.STRING)
    view = FeatureView(name="rates", entities=[pair], source=source, schema=[Field(name="rate", dtype=Float64)])
    store.apply([pair, view])
    rows = pd.DataFrame({"pair": ["a"], "event_timestamp": [from_micros(NOON)]})
    assert fetch(store, rows, ["rates:rate"])["rate"].to_pylist() == [1.5]


def test_a_table_of_the_lake_that_nothing_wrote_yet_is_no_fault_and_another_missing_file_is_named(
    store: FeatureStore, settings: Settings, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for path in (settings.lake_dir.resolve() / "items", tmp_path / "prices"):
        source = FileSource(name="rows", path=str(path), file_format=DeltaFormat(), timestamp_field="t")
        store._get_provider().validate_data_source(store.config, source)
    [said] = [record.getMessage() for record in caplog.records]
    assert said.startswith(f"Could not validate FileSource path '{tmp_path / 'prices'}'")
