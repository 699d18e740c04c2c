"""Rows written through Feast's API, and pulled for `materialize`: the newest by (timestamp, created), of equal ones the later write."""

import pandas as pd
import pyarrow as pa
import pytest
from feast import FeatureStore

from headrace import names
from headrace.clock import from_micros
from headrace.settings import Settings
from headrace.stores.offline import OfflineStoreError
from tests.integration.offline.rows import DAY, NOON, append_events, append_rows, asked, fetch, item, view_event


def test_write_to_offline_store_appends_to_a_delta_table(store: FeatureStore, settings: Settings) -> None:
    items = settings.lake_dir / names.ITEMS_TABLE
    append_rows(items, item("i1", NOON, 1.0))
    before = {file: file.read_bytes() for file in items.rglob("*.*") if file.is_file()}
    rows = pd.DataFrame([item("i2", NOON, 2.0)]).drop(columns=["at"])
    rows = rows.assign(event_timestamp=[from_micros(NOON)], created=[from_micros(NOON)])
    store.write_to_offline_store("item_catalogue", rows)
    entity_df = asked([("u", "i1", NOON), ("u", "i2", NOON)])
    assert fetch(store, entity_df, ["item_catalogue:price"])["price"].to_pylist() == [1.0, 2.0]
    assert len(before) == 2
    assert {file: file.read_bytes() for file in before} == before  # nothing that was there is written again


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


def written(*rows: tuple[str, int, float, int]) -> pd.DataFrame:
    """Catalogue rows (item, time, price, created) as a user hands them to Feast."""
    frame = pd.DataFrame([item(key, at, price) for key, at, price, _ in rows]).drop(columns=["at", "created"])
    return frame.assign(
        event_timestamp=[from_micros(at) for _, at, _, _ in rows], created=[from_micros(made) for *_, made in rows]
    )


@pytest.mark.parametrize("commits", [1, 3])
def test_of_equal_rows_the_later_write_is_joined_pulled_and_served(
    store: FeatureStore, settings: Settings, commits: int
) -> None:
    append_rows(settings.lake_dir / names.ITEMS_TABLE, item("i1", NOON, 0.5))
    rows = [("i1", NOON, price, NOON) for price in (1.0, 2.0, 3.0)]
    for commit in range(commits):
        store.write_to_offline_store(
            "item_catalogue", written(*rows[commit * 3 // commits : (commit + 1) * 3 // commits])
        )
    assert fetch(store, asked([("u", "i1", NOON)]), ["item_catalogue:price"])["price"].to_pylist() == [3.0]
    store.materialize(from_micros(NOON - DAY), from_micros(NOON + DAY), feature_views=["item_catalogue"])
    online = store.get_online_features(["item_catalogue:price"], [{"item_id": "i1"}])
    assert online.to_dict()["price"] == [3.0]


def test_a_row_created_later_wins_a_tie_though_it_was_written_first(store: FeatureStore, settings: Settings) -> None:
    append_rows(settings.lake_dir / names.ITEMS_TABLE, item("i1", NOON, 2.0, created=NOON + 9))
    append_rows(settings.lake_dir / names.ITEMS_TABLE, item("i1", NOON, 1.0, created=NOON + 1))
    assert fetch(store, asked([("u", "i1", NOON)]), ["item_catalogue:price"])["price"].to_pylist() == [2.0]
    store.materialize(from_micros(NOON - DAY), from_micros(NOON + DAY), feature_views=["item_catalogue"])
    online = store.get_online_features(["item_catalogue:price"], [{"item_id": "i1"}])
    assert online.to_dict()["price"] == [2.0]


def test_a_pull_is_one_chunk_whatever_the_files(store: FeatureStore, settings: Settings) -> None:
    for number in range(3):
        append_rows(settings.lake_dir / names.ITEMS_TABLE, item(f"i{number}", NOON, 1.0))
    source = store.get_feature_view("item_catalogue").batch_source
    offline = store._get_provider().offline_store
    between = (from_micros(NOON), from_micros(NOON))
    what = (store.config, source, ["item_id"], ["price"], "event_timestamp", "created", *between)
    for job in (offline.pull_latest_from_table_or_query(*what), offline.pull_all_from_table_or_query(*what)):
        table = job.to_arrow()
        assert table.num_rows == 3
        assert {column.num_chunks for column in table.columns} == {1}


def test_a_stream_views_source_is_not_written_to_through_feast(store: FeatureStore, settings: Settings) -> None:
    append_events(settings, [view_event("u1", "i1", NOON)])
    view = store.get_stream_feature_view("user_activity")
    rows = pa.table({"user_id": ["u1"]})
    with pytest.raises(OfflineStoreError, match=r"POST /v1/events, or rebuild the state with `headrace backfill`"):
        store._get_provider().offline_write_batch(store.config, view, rows, None)


def test_rows_that_do_not_fit_their_table_are_refused(store: FeatureStore, settings: Settings) -> None:
    append_rows(settings.lake_dir / names.ITEMS_TABLE, item("i1", NOON, 1.0))
    provider, view = store._get_provider(), store.get_feature_view("item_catalogue")
    rows = pa.Table.from_pandas(written(("i1", NOON, 1.0, NOON)), preserve_index=False)
    with pytest.raises(OfflineStoreError, match=r"other columns than the rows to append \(price\)"):
        provider.offline_write_batch(store.config, view, rows.drop(["price"]), None)
    priced = rows.set_column(rows.schema.get_field_index("price"), "price", pa.array(["cheap"]))
    with pytest.raises(OfflineStoreError, match="cannot take the rows to append"):
        provider.offline_write_batch(store.config, view, priced, None)
