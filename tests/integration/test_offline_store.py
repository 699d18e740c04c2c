"""The offline store through Feast itself: a real apply, and a Delta lake written as the flow writes it."""

import importlib.util
import shutil
import warnings
from datetime import timedelta
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import write_deltalake
from feast import Entity, FeatureService, FeatureStore, FeatureView, Field, FileSource, RequestSource, ValueType
from feast.infra.offline_stores.file_source import SavedDatasetFileStorage
from feast.on_demand_feature_view import on_demand_feature_view
from feast.types import Float64, Int64

from headrace import names
from headrace.aggregates.compile import compile_views
from headrace.clock import from_micros
from headrace.events import EVENT_SCHEMA
from headrace.settings import MICROS, Settings
from headrace.stores.feature_store import open_feature_store
from headrace.stores.lake import EventLake
from headrace.stores.offline import OfflineStoreError
from tests import oracles

MINUTE = 60 * MICROS
DAY = 24 * 60 * MINUTE
NOON = 1_700_049_600 * MICROS  # 2023-11-15 12:00 UTC
REPO = Path(__file__).parents[2] / "feature_repo"
TIME = pa.timestamp("us", "UTC")


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Settings over an empty data directory and a copy of the feature repository that needs no online server."""
    repo = tmp_path / "feature_repo"
    shutil.copytree(REPO, repo, ignore=shutil.ignore_patterns("__pycache__"))
    yaml = (repo / "feature_store.yaml").read_text()
    online = "type: headrace.stores.online.PackedRedisOnlineStore"
    assert online in yaml
    (repo / "feature_store.yaml").write_text(yaml.replace(online, f"type: sqlite\n  path: {tmp_path / 'online.db'}"))
    monkeypatch.setenv("HEADRACE_DATA", str(tmp_path / "var"))
    return Settings(feature_repo=repo)


@pytest.fixture
def store(settings: Settings) -> FeatureStore:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        definitions = load_definitions(settings.feature_repo)
        feature_store = open_feature_store(settings)
        kinds = (Entity, FeatureView, FeatureService)
        feature_store.apply([value for value in vars(definitions).values() if isinstance(value, kinds)])
    return feature_store


def load_definitions(repo: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("features_under_test", repo / "features.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def generated_events(count: int, seed: int) -> list[oracles.Event]:
    """Events of five users and six items round NOON: ties, nights between sessions, late arrivals."""
    rng = np.random.default_rng(seed)
    types = [names.VIEW, names.VIEW, names.CLICK, names.ADD_TO_CART, names.PURCHASE, names.IMPRESSION]
    events = []
    for number in range(count):
        at = NOON + int(rng.choice([0, DAY, 2 * DAY])) + int(rng.integers(0, 240)) * MINUTE // 2
        delay = int(rng.choice([0, 0, 0, MICROS, DAY + 1]))
        events.append(
            {
                "event_id": f"e{int(rng.integers(10**9))}-{number}",
                "type": str(rng.choice(types)),
                "user_key": f"u{rng.integers(5)}",
                "item_id": f"i{rng.integers(6)}",
                "timestamp": at,
                "received_at": at + delay,
                "ingested_at": at + delay,
                "log_partition": 0,
                "log_position": number + 1,
                "log_index": 0,
                "schema_version": 1,
            }
        )
    return events


def view_event(user_key: str, item_id: str, at: int, delay: int = 0) -> oracles.Event:
    times = {"timestamp": at, "received_at": at + delay, "ingested_at": at + delay}
    log = {"log_partition": 0, "log_position": 1, "log_index": 0}
    return {"event_id": "a", "type": names.VIEW, "user_key": user_key, "item_id": item_id} | times | log


def append_events(settings: Settings, events: list[oracles.Event]) -> None:
    lake = EventLake(settings.lake_dir)
    position = lake.positions([0])[0] + 1
    rows = [
        {name: e.get(name) for name in EVENT_SCHEMA.names} | {"log_partition": 0, "log_position": position}
        for e in events
    ]
    lake.append(pa.Table.from_pylist(rows, schema=EVENT_SCHEMA), {0: position})


def append_rows(path: Path, *rows: dict[str, Any]) -> None:
    """Catalogue or profile rows; `at` and `created` in microseconds."""
    table = pa.Table.from_pylist([{k: v for k, v in row.items() if k not in ("at", "created")} for row in rows])
    for column, field in (("event_timestamp", "at"), ("created", "created")):
        table = table.append_column(column, pa.array([row[field] for row in rows], pa.int64()).cast(TIME))
    write_deltalake(str(path), table, mode="append")


def item(item_id: str, at: int, price: float, created: int | None = None) -> dict[str, Any]:
    row = {"item_id": item_id, "title": "t", "category": "c", "brand": "b", "price": price, "available": True}
    return row | {"at": at, "created": at if created is None else created}


def asked(rows: list[tuple[str, str, int]]) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "user_id": [user for user, _, _ in rows],
            "item_id": [item for _, item, _ in rows],
            "event_timestamp": [from_micros(t) for _, _, t in rows],
            "label": range(len(rows)),
        }
    )


def fetch(store: FeatureStore, entity_df: Any, features: Any, **options: Any) -> pa.Table:
    if isinstance(features, str):
        features = store.get_feature_service(features)
    return store.get_historical_features(entity_df=entity_df, features=features, **options).to_arrow()


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
    store.config.offline_store.rows_at_a_time = 7
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


def test_write_to_offline_store_appends_to_a_delta_table(store: FeatureStore, settings: Settings) -> None:
    items = settings.lake_dir / names.ITEMS_TABLE
    append_rows(items, item("i1", NOON, 1.0))
    rows = pd.DataFrame([item("i2", NOON, 2.0)]).drop(columns=["at"])
    rows = rows.assign(event_timestamp=[from_micros(NOON)], created=[from_micros(NOON)])
    store.write_to_offline_store("item_catalogue", rows)
    entity_df = asked([("u", "i1", NOON), ("u", "i2", NOON)])
    assert fetch(store, entity_df, ["item_catalogue:price"])["price"].to_pylist() == [1.0, 2.0]


def test_materialize_writes_the_newest_row_of_each_plain_entity_online(store: FeatureStore, settings: Settings) -> None:
    items = [item("i1", NOON, 1.0), item("i1", NOON + 5, 2.0), item("i2", NOON, 7.0)]
    append_rows(settings.lake_dir / names.ITEMS_TABLE, *items)
    profile = {"user_id": "u1", "country": "SE", "age": None, "segment": None, "at": NOON, "created": NOON}
    append_rows(settings.lake_dir / names.PROFILES_TABLE, profile | {"age": 41}, profile | {"user_id": "u2"})
    views = ["item_catalogue", "user_profile"]
    store.materialize(from_micros(NOON - DAY), from_micros(NOON + DAY), feature_views=views)
    online = store.get_online_features(["item_catalogue:price"], [{"item_id": key} for key in ("i1", "i2", "i3")])
    assert online.to_dict()["price"] == [2.0, 7.0, None]
    user_rows = [{"user_id": "u1"}, {"user_id": "u2"}]
    users = store.get_online_features(["user_profile:age", "user_profile:country"], user_rows)
    assert users.to_dict()["age"] == [41, None]
    assert users.to_dict()["country"] == ["SE", "SE"]


def test_materialize_of_views_without_any_data_writes_nothing(store: FeatureStore) -> None:
    store.materialize(from_micros(NOON - DAY), from_micros(NOON), feature_views=["item_catalogue", "user_profile"])
    answer = store.get_online_features(["item_catalogue:price"], [{"item_id": "i1"}]).to_dict()
    assert answer["price"] == [None]


def test_pulling_the_latest_keeps_one_row_of_each_entity_in_the_range(store: FeatureStore, settings: Settings) -> None:
    rows = [item("i1", NOON, 1.0), item("i1", NOON + 5, 2.0, created=NOON + 6), item("i1", NOON + 5, 3.0)]
    append_rows(settings.lake_dir / names.ITEMS_TABLE, *rows, item("i2", NOON + 9, 4.0))
    source = store.get_feature_view("item_catalogue").batch_source
    offline = store._get_provider().offline_store
    between = (from_micros(NOON), from_micros(NOON + 5))
    what = (store.config, source, ["item_id"], ["price"], "event_timestamp", "created", *between)
    job = offline.pull_latest_from_table_or_query(*what)
    assert job.to_arrow().select(["item_id", "price"]).to_pylist() == [{"item_id": "i1", "price": 2.0}]
    job = offline.pull_all_from_table_or_query(*what)
    assert sorted(job.to_arrow()["price"].to_pylist()) == [1.0, 2.0, 3.0]


def test_a_saved_dataset_comes_back_as_it_was(store: FeatureStore, settings: Settings, tmp_path: Path) -> None:
    append_rows(settings.lake_dir / names.ITEMS_TABLE, item("i1", NOON, 1.0))
    entity_df = asked([("u", "i1", NOON + 2), ("u", "i2", NOON + 1)])
    job = store.get_historical_features(entity_df=entity_df, features=["item_catalogue:price"])
    storage = SavedDatasetFileStorage(path=str(tmp_path / "saved.parquet"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        store.create_saved_dataset(from_=job, name="saved", storage=storage)
        saved = store.get_saved_dataset("saved").to_arrow()
    assert saved.select(["item_id", "price"]).to_pylist() == [
        {"item_id": "i1", "price": 1.0},
        {"item_id": "i2", "price": None},
    ]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"item_id": ["i1"]}, "needs a column 'event_timestamp'"),
        ({"item_id": ["i1"], "event_timestamp": [None]}, "'event_timestamp' is Null, not a time"),
        ({"item_id": ["i1"], "event_timestamp": pa.array([None], TIME)}, "without a time in 'event_timestamp'"),
        ({"event_timestamp": [from_micros(NOON)]}, "needs the column 'item_id'"),
        ({"item_id": ["i1"], "price": [1.0], "event_timestamp": [from_micros(NOON)]}, "'price' twice"),
    ],
)
def test_an_entity_frame_that_cannot_be_answered_is_refused(
    store: FeatureStore, settings: Settings, columns: dict[str, Any], message: str
) -> None:
    append_rows(settings.lake_dir / names.ITEMS_TABLE, item("i1", NOON, 1.0))
    with pytest.raises(OfflineStoreError, match=message):
        fetch(store, pa.table(columns), ["item_catalogue:price"])
