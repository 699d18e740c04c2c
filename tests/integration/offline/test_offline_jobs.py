"""What a retrieval gives back, saved datasets and logs, as a user of Feast's API reads them."""

import warnings
from pathlib import Path
from typing import Any

import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from feast import FeatureService, FeatureStore, Field, RequestSource
from feast.errors import SavedDatasetLocationAlreadyExists
from feast.feature_logging import LoggingConfig
from feast.infra.offline_stores.file_source import FileLoggingDestination, SavedDatasetFileStorage
from feast.on_demand_feature_view import on_demand_feature_view
from feast.types import Float64

from headrace import names
from headrace.clock import from_micros
from headrace.settings import Settings
from headrace.stores.offline_job import PolarsRetrievalJob
from tests.integration.offline.rows import DAY, NOON, append_events, append_rows, asked, item, view_event

PRICE, VIEWS = "item_catalogue:price", "user_activity:views_1h"


@pytest.fixture
def job(store: FeatureStore, settings: Settings) -> PolarsRetrievalJob:
    """Four rows, one of them twice and one with null keys, over a priced item and an event."""
    append_rows(settings.lake_dir / names.ITEMS_TABLE, item("i1", NOON, 1.5))
    append_events(settings, [view_event("u1", "i1", NOON)])
    rows = asked([("u1", "i1", NOON + 2), ("u1", "i1", NOON + 2), (None, None, NOON + 1), ("u2", "i2", NOON)])
    return store.get_historical_features(rows, [PRICE, VIEWS])


ANSWER = {"label": [0, 1, 2, 3], "price": [1.5, 1.5, None, None], "views_1h": [1, 1, 0, 0]}


def test_a_job_is_read_as_arrow_pandas_polars_and_in_batches(job: PolarsRetrievalJob) -> None:
    assert {name: job.to_arrow()[name].to_pylist() for name in ANSWER} == ANSWER
    assert job.to_polars().select(*ANSWER).to_dict(as_series=False) == ANSWER
    frame = job.to_df()
    assert frame["price"].tolist()[:2] == [1.5, 1.5]
    assert frame["price"].isna().tolist() == [False, False, True, True]
    assert frame["event_timestamp"].tolist()[0] == pd.Timestamp(from_micros(NOON + 2))
    batches = list(job.to_arrow_batches(rows=3))
    assert [batch.num_rows for batch in batches] == [3, 1]
    assert pa.concat_tables(batches).select(list(ANSWER)).to_pydict() == ANSWER


def test_a_job_tells_what_it_asks_for_and_has_no_sql(job: PolarsRetrievalJob) -> None:
    assert job.metadata is not None
    assert job.metadata.features == [PRICE, VIEWS]
    assert job.metadata.keys == ["user_id", "item_id", "label"]
    assert job.metadata.min_event_timestamp == from_micros(NOON)
    assert job.metadata.max_event_timestamp == from_micros(NOON + 2)
    assert job.full_feature_names is False
    with pytest.raises(NotImplementedError, match="no SQL stands behind this retrieval"):
        job.to_sql()


def test_all_batches_of_a_job_see_the_source_as_it_stood_at_the_first(
    job: PolarsRetrievalJob, settings: Settings
) -> None:
    batches = job.to_arrow_batches(rows=1)
    assert next(batches)["price"].to_pylist() == [1.5]
    append_rows(settings.lake_dir / names.ITEMS_TABLE, item("i1", NOON + 1, 9.0))
    assert next(batches)["price"].to_pylist() == [1.5]


def test_batches_with_an_on_demand_view_are_each_transformed(store: FeatureStore, settings: Settings) -> None:
    append_rows(settings.lake_dir / names.ITEMS_TABLE, item("i1", NOON, 40.0), item("i2", NOON, 10.0))
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
    rows = asked([("u", "i1", NOON), ("u", "i2", NOON)]).assign(discount=0.5)
    job = store.get_historical_features(rows, ["offer:reduced"])
    assert [batch["reduced"].to_pylist() for batch in job.to_arrow_batches(rows=1)] == [[20.0], [5.0]]


def test_a_saved_dataset_keeps_every_row_and_is_not_overwritten_unasked(
    store: FeatureStore, job: PolarsRetrievalJob, tmp_path: Path
) -> None:
    storage = SavedDatasetFileStorage(path=str(tmp_path / "saved.parquet"))

    def save(**options: Any) -> None:
        store.create_saved_dataset(from_=job, name="saved", storage=storage, **options)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        save()
        saved = store.get_saved_dataset("saved").to_arrow()
        with pytest.raises(SavedDatasetLocationAlreadyExists):
            save()
        save(allow_overwrite=True)
    # Feast reads back the keys of the views, the time and the features; the file holds every column.
    assert saved["price"].to_pylist() == ANSWER["price"]
    assert saved["views_1h"].to_pylist() == ANSWER["views_1h"]
    assert pq.read_table(tmp_path / "saved.parquet").select(list(ANSWER)).to_pydict() == ANSWER


def test_logged_features_come_back_between_two_times(store: FeatureStore, tmp_path: Path) -> None:
    destination = FileLoggingDestination(path=str(tmp_path / "logs"), partition_by=["__log_date"])
    catalogue = store.get_feature_view("item_catalogue")
    service = FeatureService(
        name="logged", features=[catalogue[["price"]]], logging_config=LoggingConfig(destination=destination)
    )
    store.apply([service])

    def log(item_id: str, price: float, at: int) -> pa.Table:
        moment = from_micros(at)
        return pa.table(
            {
                "item_id": [item_id],
                "item_catalogue__price": [price],
                "item_catalogue__price__timestamp": pa.array([moment]),
                "item_catalogue__price__status": pa.array([2], pa.int32()),
                "__log_timestamp": pa.array([moment], pa.timestamp("us", "UTC")),
                "__log_date": pa.array([moment.date()]),
                "__request_id": ["r"],
            }
        )

    store.write_logged_features(log("i1", 1.0, NOON), service)
    (tmp_path / "rows").mkdir()
    pq.write_table(log("i2", 2.0, NOON + DAY), tmp_path / "rows" / "0.parquet")
    store.write_logged_features(tmp_path / "rows", service)
    logs = store._get_provider().retrieve_feature_service_logs(
        service, from_micros(NOON), from_micros(NOON + DAY), store.config, store.registry
    )
    frame = logs.to_polars().sort("item_id")
    assert frame["item_catalogue__price"].to_list() == [1.0, 2.0]
    assert frame["__log_date"].cast(pl.String).to_list() == ["2023-11-15", "2023-11-16"]
