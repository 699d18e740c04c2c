"""What cannot be answered is refused by name, with the remedy: damaged files, sources of another shape, frames without keys or times."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, write_deltalake
from feast import Entity, FeatureStore, FeatureView, Field, FileSource, KafkaSource, ValueType
from feast.data_format import JsonFormat
from feast.types import Float64

from headrace import names
from headrace.clock import from_micros
from headrace.settings import Settings
from headrace.stores.offline import OfflineStoreError
from tests.integration.offline.rows import (
    DAY,
    NOON,
    TIME,
    append_events,
    append_rows,
    asked,
    fetch,
    item,
    view_event,
)

ROW = asked([("u1", "i1", NOON + 1)])


def lake_file(settings: Settings) -> Path:
    (file,) = (settings.lake_dir / names.EVENTS_TABLE).rglob("*.parquet")
    return file


def test_a_lake_file_cut_short_is_named_with_the_view(store: FeatureStore, settings: Settings) -> None:
    append_events(settings, [view_event("u1", "i1", NOON)])
    file = lake_file(settings)
    size = file.stat().st_size
    file.write_bytes(file.read_bytes()[: size // 2])
    message = f"view 'user_activity': source 'event_lake' .* is damaged: {file} has {size // 2} bytes.*restore it"
    with pytest.raises(OfflineStoreError, match=message):
        fetch(store, ROW, ["user_activity:views_1h"])


def test_a_missing_lake_file_is_named_with_the_view(store: FeatureStore, settings: Settings) -> None:
    append_events(settings, [view_event("u1", "i1", NOON)])
    file = lake_file(settings)
    file.unlink()
    with pytest.raises(OfflineStoreError, match=f"view 'user_activity': .* {file} is missing: restore it"):
        fetch(store, ROW, ["user_activity:views_1h"])


def test_a_lake_file_with_bad_bytes_is_named(store: FeatureStore, settings: Settings) -> None:
    events = [view_event("u1", f"i{n}", NOON) | {"event_id": f"e{n}"} for n in range(2_000)]
    append_events(settings, events)
    file = lake_file(settings)
    content = bytearray(file.read_bytes())
    content[100:4_000] = bytes(3_900)
    file.write_bytes(content)
    with pytest.raises(OfflineStoreError, match=f"view 'user_activity': .* cannot be read: {file} is damaged"):
        fetch(store, ROW, ["user_activity:recent_items", "user_activity:views_1h"])


def test_a_log_of_the_lake_that_cannot_be_read_is_named(store: FeatureStore, settings: Settings) -> None:
    append_rows(settings.lake_dir / names.ITEMS_TABLE, item("i1", NOON, 1.0))
    log = settings.lake_dir / names.ITEMS_TABLE / "_delta_log" / "00000000000000000000.json"
    log.write_text('{"add"')
    with pytest.raises(
        OfflineStoreError, match=r"view 'item_catalogue': .* Delta log cannot be read .*put _delta_log back"
    ):
        fetch(store, ROW, ["item_catalogue:price"])


def test_a_lake_without_a_column_of_events_is_refused(store: FeatureStore, settings: Settings) -> None:
    append_events(settings, [view_event("u1", "i1", NOON)])
    path = str(settings.lake_dir / names.EVENTS_TABLE)
    events = pa.table(DeltaTable(path).to_pyarrow_table()).drop(["received_at"])
    write_deltalake(path, events, mode="overwrite", schema_mode="overwrite")
    with pytest.raises(
        OfflineStoreError, match=r"view 'user_activity': .* has no column 'received_at' \(a column of events\)"
    ):
        fetch(store, ROW, ["user_activity:views_1h"])


def test_a_lake_with_a_column_of_another_type_is_refused(store: FeatureStore, settings: Settings) -> None:
    append_events(settings, [view_event("u1", "i1", NOON)])
    path = str(settings.lake_dir / names.EVENTS_TABLE)
    events = pa.table(DeltaTable(path).to_pyarrow_table())
    place = events.schema.get_field_index("timestamp")
    texts = events.set_column(place, "timestamp", events["timestamp"].cast(pa.string()))
    write_deltalake(path, texts, mode="overwrite", schema_mode="overwrite")
    with pytest.raises(
        OfflineStoreError, match=r"view 'user_activity': .* column 'timestamp' is String, events have Datetime"
    ):
        fetch(store, ROW, ["user_activity:views_1h"])


@pytest.fixture
def rates(store: FeatureStore, tmp_path: Path) -> Path:
    """The file of a view `rates` of `pair`s, yet to be written."""
    path = tmp_path / "rates.parquet"
    source = FileSource(
        name="rates_source", path=str(path), timestamp_field="event_timestamp", created_timestamp_column="created"
    )
    pair = Entity(name="pair", join_keys=["pair"], value_type=ValueType.STRING)
    view = FeatureView(name="rates", entities=[pair], source=source, schema=[Field(name="rate", dtype=Float64)])
    store.apply([pair, view])
    return path


GOOD = {
    "pair": ["a"],
    "rate": [1.5],
    "event_timestamp": pa.array([NOON]).cast(TIME),
    "created": pa.array([NOON]).cast(TIME),
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"event_timestamp": None}, r"has no column 'event_timestamp' \(the timestamp\); it has pair, rate, created"),
        ({"event_timestamp": ["noon"]}, "column 'event_timestamp' .* is String, not a time: store it as a timestamp"),
        ({"created": [1.5]}, "column 'created' .* is Float64, not a time"),
        ({"pair": None}, r"has no column 'pair' \(a join key\)"),
        ({"rate": None}, r"has no column 'rate' \(feature 'rate'\)"),
        ({"rate": ["high"]}, "feature 'rate' is String in the source and double in the view, and cannot be converted"),
        ({"pair": [1.5]}, "column 'pair' of entity_df is String, the source's key is Float64: cast it"),
    ],
)
def test_a_source_of_another_shape_is_refused(
    store: FeatureStore, rates: Path, change: dict[str, Any], message: str
) -> None:
    columns = {name: value for name, value in (GOOD | change).items() if value is not None}
    pq.write_table(pa.table(columns), rates)
    rows = pd.DataFrame({"pair": ["a"], "event_timestamp": [from_micros(NOON)]})
    with pytest.raises(OfflineStoreError, match=f"view 'rates'.*{message}"):
        fetch(store, rows, ["rates:rate"], filter_by_created_timestamp=True)


def test_a_float_is_the_key_of_the_integer_that_it_is_and_of_no_other(store: FeatureStore, rates: Path) -> None:
    pq.write_table(pa.table(GOOD | {"pair": [1]}), rates)
    labels = pa.table({"pair": [1.0, 1.5, None, -0.5], "event_timestamp": pa.array([NOON + 1] * 4).cast(TIME)})
    assert fetch(store, labels, ["rates:rate"])["rate"].to_pylist() == [1.5, None, None, None]


def test_a_source_that_is_no_parquet_is_named(store: FeatureStore, rates: Path) -> None:
    rates.write_text("pair,rate")
    rows = pd.DataFrame({"pair": ["a"], "event_timestamp": [from_micros(NOON)]})
    with pytest.raises(
        OfflineStoreError, match=f"view 'rates': .* is damaged: {rates} was cut short, or is no Parquet"
    ):
        fetch(store, rows, ["rates:rate"])


@pytest.mark.parametrize("keep", [0, 1, 7, 11, 12, 200, -9, -1], ids=str)
def test_a_parquet_file_cut_short_is_named_wherever_the_cut_is(store: FeatureStore, rates: Path, keep: int) -> None:
    pq.write_table(pa.table(GOOD), rates)
    rates.write_bytes(rates.read_bytes()[:keep])
    rows = pd.DataFrame({"pair": ["a"], "event_timestamp": [from_micros(NOON)]})
    message = f"view 'rates': .* is damaged: {rates} was cut short.*restore it from a copy, or write it again"
    with pytest.raises(OfflineStoreError, match=message):
        fetch(store, rows, ["rates:rate"])


def test_a_file_of_a_parquet_folder_cut_short_is_named_when_it_is_materialized(
    store: FeatureStore, rates: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    for name in ("whole", "short"):
        pq.write_table(pa.table(GOOD), folder / f"{name}.parquet")
    short = folder / "short.parquet"
    short.write_bytes(short.read_bytes()[:-20])
    source = FileSource(name="folder", path=str(folder), timestamp_field="event_timestamp")
    job = store._get_provider().offline_store.pull_all_from_table_or_query(
        store.config, source, ["pair"], ["rate"], "event_timestamp"
    )
    with pytest.raises(OfflineStoreError, match=f"source 'folder' .* is damaged: {short} was cut short"):
        job.to_arrow()


def test_pulling_a_column_that_the_source_lacks_is_refused(store: FeatureStore, rates: Path) -> None:
    pq.write_table(pa.table(GOOD), rates)
    source = store.get_feature_view("rates").batch_source
    job = store._get_provider().offline_store.pull_latest_from_table_or_query(
        store.config, source, ["pair"], ["volume"], "event_timestamp", "created", from_micros(NOON), from_micros(NOON)
    )
    with pytest.raises(OfflineStoreError, match=r"source 'rates_source' .* has no column 'volume' \(a feature\)"):
        job.to_arrow()


def test_a_source_that_is_no_file_is_refused(store: FeatureStore) -> None:
    view = store.get_feature_view("item_catalogue")
    view.batch_source = KafkaSource(
        name="topic", kafka_bootstrap_servers="", message_format=JsonFormat(""), topic="t", timestamp_field="at"
    )
    with pytest.raises(OfflineStoreError, match="source 'topic' is a KafkaSource: use FileSource"):
        store._get_provider().offline_write_batch(store.config, view, pa.table({}), None)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"item_id": ["i1"]}, "needs a column 'event_timestamp'"),
        ({"item_id": ["i1"], "event_timestamp": [None]}, "'event_timestamp' is Null, not a time"),
        ({"item_id": ["i1"], "event_timestamp": pa.array([None], TIME)}, "without a time in 'event_timestamp'"),
        ({"item_id": ["i1"], "event_timestamp": ["soon"]}, "'event_timestamp' holds text that is no ISO 8601 time"),
        ({"item_id": ["i1"], "event_timestamp": [17.5]}, "'event_timestamp' is Float64, not a time"),
        ({"item_id": ["i1"], "event_timestamp": pa.array([2**63 - 1], TIME)}, "before year 1 or after year 9999"),
        ({"event_timestamp": [from_micros(NOON)]}, "view 'item_catalogue' needs the column 'item_id'"),
        (
            {"item_id": [1.0], "event_timestamp": [from_micros(NOON)]},
            "'item_id' of entity_df is Float64, .* String: cast it",
        ),
        ({"item_id": ["i1"], "price": [1.0], "event_timestamp": [from_micros(NOON)]}, "'price' twice"),
    ],
)
def test_an_entity_frame_that_cannot_be_answered_is_refused(
    store: FeatureStore, settings: Settings, columns: dict[str, Any], message: str
) -> None:
    append_rows(settings.lake_dir / names.ITEMS_TABLE, item("i1", NOON, 1.0))
    with pytest.raises(OfflineStoreError, match=message):
        fetch(store, pa.table(columns), ["item_catalogue:price"])


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (
            "SELECT item_id, event_timestamp FROM labels",
            "entity_df is SQL, which this store does not run: give the path",
        ),
        (
            "no/such.parquet",
            "entity_df 'no/such.parquet' is no Parquet file: give a path, or a pandas, Polars or Arrow table",
        ),
        ({"item_id": ["i1"]}, "entity_df is a dict: use pandas, Polars, Arrow or the path"),
    ],
)
def test_an_entity_frame_in_another_form_is_refused(store: FeatureStore, frame: Any, message: str) -> None:
    with pytest.raises(OfflineStoreError, match=message):
        fetch(store, frame, ["item_catalogue:price"])


def test_an_entity_file_that_cannot_be_read_is_named(store: FeatureStore, tmp_path: Path) -> None:
    path = tmp_path / "labels.parquet"
    path.write_text(json.dumps({"item_id": "i1"}))
    with pytest.raises(OfflineStoreError, match=f"entity_df '{path}' cannot be read as Parquet .*write it again"):
        fetch(store, str(path), ["item_catalogue:price"])


def test_a_damaged_source_does_not_hinder_views_over_others(store: FeatureStore, settings: Settings) -> None:
    append_rows(settings.lake_dir / names.ITEMS_TABLE, item("i1", NOON, 1.0))
    append_events(settings, [view_event("u1", "i1", NOON)])
    lake_file(settings).unlink()
    assert fetch(store, asked([("u1", "i1", NOON + DAY)]), ["item_catalogue:price"])["price"].to_pylist() == [1.0]
