"""`materialize` fills plain views value by value, leaves stream views alone, and nothing else can write into those either."""

import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from feast import FeatureStore, Field
from feast.types import Array, Bool, Float64, Int64, String, UnixTimestamp

from headrace.settings import Settings
from headrace.stores.definitions import load_definitions
from headrace.stores.online import StreamViewWriteError
from headrace.stores.online_engine import StreamViewLeftOutWarning, StreamViewMaterializeError
from headrace.stores.online_writes import FutureRowError
from tests.integration.online_repo import LONG_AGO, item, make_store, plain_view, run_events, stream_view

NOW = datetime.now(UTC)
YEAR_AGO = NOW - timedelta(days=365)
SCHEMA = [
    Field(name="price", dtype=Float64),
    Field(name="stock", dtype=Int64),
    Field(name="title", dtype=String),
    Field(name="tags", dtype=Array(String)),
    Field(name="seen", dtype=UnixTimestamp),
    Field(name="new", dtype=Bool),
]
TIME = pa.timestamp("us", tz="UTC")
TABLE = pa.schema(
    [
        ("item_id", pa.string()),
        ("price", pa.float64()),
        ("stock", pa.int64()),
        ("title", pa.string()),
        ("tags", pa.list_(pa.string())),
        ("seen", TIME),
        ("new", pa.bool_()),
        ("event_timestamp", TIME),
        ("created", TIME),
    ]
)


def row(item_id: str, at: datetime, **values: object) -> dict[str, object]:
    return {"item_id": item_id, "event_timestamp": at, "created": at} | values


def write_table(path: Path, *table: dict[str, object], chunk: int = 1) -> None:
    pq.write_table(pa.Table.from_pylist(list(table), TABLE), path, row_group_size=chunk)


@pytest.fixture(autouse=True)
def _now(monkeypatch: pytest.MonkeyPatch) -> None:
    """NOW is the test's, not the import's: a suite may run for longer than a window."""
    monkeypatch.setitem(globals(), "NOW", datetime.now(UTC))


@pytest.fixture
def served(settings: Settings, valkey: str) -> Settings:
    return settings.model_copy(update={"redis_url": valkey, "data": settings.data.resolve()})


@pytest.fixture
def table(tmp_path: Path) -> Path:
    return tmp_path / "items.parquet"


@pytest.fixture
def store(served: Settings, table: Path, tmp_path: Path) -> FeatureStore:
    items = plain_view("items", SCHEMA, table)
    return make_store(served, item, items, stream_view(tmp_path / "lake.parquet"))


def read_items(store: FeatureStore, *ids: str) -> dict[str, list[object]]:
    refs = [f"items:{field.name}" for field in SCHEMA]
    answer = store.get_online_features(refs, [{"item_id": each} for each in ids]).to_dict()
    return {name: answer[name] for name in (field.name for field in SCHEMA)}


def test_a_named_plain_view_is_filled_with_the_newest_row_of_each_entity(store: FeatureStore, table: Path) -> None:
    yesterday = NOW - timedelta(days=1)
    write_table(
        table,
        row("a", yesterday, price=1.0, stock=2**60 + 1, title="né", tags=["x", "y"], seen=LONG_AGO, new=True),
        row("a", yesterday - timedelta(days=1), price=9.0),
        row("b", yesterday, price=None, stock=None, title=None, tags=[], seen=None, new=False),
    )
    store.materialize(YEAR_AGO, NOW, feature_views=["items"])
    assert read_items(store, "a", "b") == {
        "price": [1.0, None],
        "stock": [2**60 + 1, None],
        "title": ["né", None],
        "tags": [["x", "y"], []],
        "seen": [LONG_AGO, None],
        "new": [True, False],
    }


def test_rows_of_a_source_in_many_pieces_all_arrive(store: FeatureStore, table: Path) -> None:
    write_table(table, *(row(str(n), NOW - timedelta(days=1), stock=n) for n in range(300)), chunk=7)
    store.materialize(YEAR_AGO, NOW, feature_views=["items"])
    assert read_items(store, *map(str, range(300)))["stock"] == list(range(300))


def test_an_incremental_run_goes_on_from_the_last_one(store: FeatureStore, table: Path) -> None:
    write_table(table, row("a", NOW - timedelta(days=3), price=1.0))
    store.materialize(NOW - timedelta(days=9), NOW - timedelta(days=2), feature_views=["items"])
    write_table(table, row("a", NOW - timedelta(days=1), price=2.0), row("b", NOW - timedelta(days=4), price=3.0))
    store.materialize_incremental(NOW, feature_views=["items"])
    assert read_items(store, "a", "b")["price"] == [2.0, None]


def test_a_row_dated_after_now_ends_the_run_with_the_entity_and_records_nothing(
    store: FeatureStore, table: Path
) -> None:
    write_table(table, row("a", NOW - timedelta(days=1), price=1.0), row("b", NOW + timedelta(days=1), price=2.0))
    with pytest.raises(FutureRowError, match="view 'items', entity 'b'"):
        store.materialize(YEAR_AGO, NOW + timedelta(days=2), feature_views=["items"])
    assert store.get_feature_view("items").materialization_intervals == []


@pytest.mark.parametrize("named", [["item_activity"], ["items", "item_activity_too"], ["item_activity", "items"]])
def test_naming_a_stream_view_is_refused_with_the_remedy_and_nothing_is_done(
    named: list[str], served: Settings, table: Path, tmp_path: Path
) -> None:
    write_table(table, row("a", NOW - timedelta(days=1), price=1.0))
    streams = [stream_view(tmp_path / "lake", name=name) for name in ("item_activity", "item_activity_too")]
    store = make_store(served, item, plain_view("items", SCHEMA, table), *streams)
    before = load_definitions(served)
    for run in (
        lambda: store.materialize(YEAR_AGO, NOW, feature_views=named),
        lambda: store.materialize_incremental(NOW, feature_views=named),
    ):
        with pytest.raises(StreamViewMaterializeError, match=r"stream view.*`POST /v1/events`.*`headrace backfill`"):
            run()
    assert read_items(store, "a")["price"] == [None]
    assert load_definitions(served) == before


def test_naming_nothing_fills_plain_views_and_leaves_stream_views_out_with_a_warning(
    store: FeatureStore, table: Path, served: Settings
) -> None:
    write_table(table, row("a", NOW - timedelta(days=1), price=1.0))
    before = load_definitions(served)
    with pytest.warns(StreamViewLeftOutWarning, match=r"left out: item_activity;.*headrace backfill"):
        store.materialize(YEAR_AGO, NOW - timedelta(hours=1))
    with pytest.warns(StreamViewLeftOutWarning, match="item_activity"):
        store.materialize_incremental(NOW)
    assert read_items(store, "a")["price"] == [1.0]
    assert store.get_stream_feature_view("item_activity").materialization_intervals == []
    assert load_definitions(served) == before


def test_state_is_as_it_was_after_everything_that_tries_to_write_it(
    store: FeatureStore, served: Settings, table: Path
) -> None:
    write_table(table, row("a", NOW - timedelta(days=1), price=1.0))
    run_events(served, {"type": "view", "item_id": "a", "at": NOW - timedelta(seconds=30)})
    finished = pd.DataFrame(
        [{"item_id": "a", "views": 99, "mean_price": 1.0, "last_users": ["x"], "timestamp": NOW, "received_at": NOW}]
    )
    with pytest.raises(StreamViewWriteError, match=r"`POST /v1/events`.*`headrace backfill`"):
        store.push("item_activity_events", finished)
    with pytest.raises(StreamViewWriteError, match="'item_activity'"):
        store.write_to_online_store("item_activity", finished)
    with pytest.raises(KeyError, match="views"):  # Feast looks for finished values before it asks any store
        store.push("item_activity_events", finished.drop(columns=["views", "mean_price", "last_users"]))
    with pytest.warns(StreamViewLeftOutWarning):
        store.materialize(YEAR_AGO, NOW)
    answer = store.get_online_features(["item_activity:views", "item_activity:last_users"], [{"item_id": "a"}])
    assert answer.to_dict() == {"item_id": ["a"], "views": [1], "last_users": [["u1"]]}


def test_the_command_line_says_in_one_line_why_a_stream_view_is_refused(applied: Path, stack: Settings) -> None:
    feast = Path(sys.executable).parent / "feast"
    end = f"{NOW:%Y-%m-%dT%H:%M:%S}"
    named = subprocess.run(
        [feast, "materialize-incremental", end, "-v", "user_activity"],
        cwd=applied / "feature_repo",
        capture_output=True,
        text=True,
        check=False,
    )
    assert named.returncode == 1
    assert named.stderr.splitlines()[-1].startswith("Error: 'user_activity' is a stream view")
    assert "headrace backfill" in named.stderr.splitlines()[-1]
