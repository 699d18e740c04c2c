"""Feast's offline store on Polars: point-in-time joins for plain views, as-of aggregates for stream views.

One row for each row asked for, in the order asked (law 4). Plain views: the newest row with timestamp <= t, of equal
timestamps the one created later. Stream views: `headrace.aggregates.batch` over the event lake, which is the batch
source of the view's push source. A source that does not exist yet reads as empty.
"""

import uuid
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from deltalake import write_deltalake
from feast import FeatureView, OnDemandFeatureView
from feast.data_source import DataSource
from feast.errors import FeastJoinKeysDuringMaterialization, SavedDatasetLocationAlreadyExists
from feast.feature_logging import LoggingConfig, LoggingSource
from feast.feature_view import DUMMY_ENTITY_ID, DUMMY_ENTITY_VAL
from feast.infra.offline_stores.file_source import FileLoggingDestination, FileSource, SavedDatasetFileStorage
from feast.infra.offline_stores.offline_store import OfflineStore, RetrievalJob, RetrievalMetadata
from feast.infra.registry.base_registry import BaseRegistry
from feast.repo_config import FeastConfigBaseModel, RepoConfig
from feast.saved_dataset import SavedDatasetStorage

from headrace.clock import system_clock
from headrace.settings import MICROS, Settings
from headrace.stores.point_in_time import EntityFrame, Labels, check_columns, join, wanted_features
from headrace.stores.sources import OfflineStoreError, delta_table, file_source, is_delta, scan, utc, write_parquet


class PolarsOfflineStoreConfig(FeastConfigBaseModel):  # type: ignore[misc]
    """`offline_store:` in feature_store.yaml."""

    type: Literal["headrace.stores.offline.PolarsOfflineStore"] = "headrace.stores.offline.PolarsOfflineStore"
    rows_at_a_time: int = 200_000
    """Label rows of a stream view that are computed together: bounds memory, each batch scans the lake once."""
    settings: Settings | None = None
    """Those of the process that opened the store; from the environment where Feast opened it."""


class PolarsRetrievalJob(RetrievalJob):  # type: ignore[misc]
    """A lazy retrieval: computed when it is read, on-demand views by Feast's base class."""

    def __init__(
        self,
        evaluate: Callable[[], pa.Table],
        repo_path: Path | None,
        full_feature_names: bool = False,
        on_demand_feature_views: Sequence[OnDemandFeatureView] = (),
        metadata: RetrievalMetadata | None = None,
    ) -> None:
        self._evaluate = evaluate
        self._repo_path = repo_path
        self._full_feature_names = full_feature_names
        self._on_demand_feature_views = list(on_demand_feature_views)
        self._metadata = metadata

    @property
    def full_feature_names(self) -> bool:
        return self._full_feature_names

    @property
    def on_demand_feature_views(self) -> list[OnDemandFeatureView]:
        return self._on_demand_feature_views

    @property
    def metadata(self) -> RetrievalMetadata | None:
        return self._metadata

    def _to_arrow_internal(self, timeout: int | None = None) -> pa.Table:
        return self._evaluate()

    def _to_df_internal(self, timeout: int | None = None) -> pd.DataFrame:
        return self._evaluate().to_pandas()

    def persist(self, storage: SavedDatasetStorage, allow_overwrite: bool = False, timeout: int | None = None) -> None:
        """Write the result to a Parquet file. Raises SavedDatasetLocationAlreadyExists."""
        if not isinstance(storage, SavedDatasetFileStorage):
            raise OfflineStoreError(f"cannot save to {type(storage).__name__}: use SavedDatasetFileStorage")
        path = Path(FileSource.get_uri_for_file_path(self._repo_path, storage.file_options.uri))
        if path.exists() and not allow_overwrite:
            raise SavedDatasetLocationAlreadyExists(location=str(path))
        write_parquet(self.to_arrow(), path)


class PolarsOfflineStore(OfflineStore):  # type: ignore[misc]
    """`type: headrace.stores.offline.PolarsOfflineStore`, over `FileSource`s in Delta or Parquet."""

    supports_filter_by_created_timestamp = True

    @staticmethod
    def get_historical_features(
        config: RepoConfig,
        feature_views: list[FeatureView],
        feature_refs: list[str],
        entity_df: EntityFrame | None,
        registry: BaseRegistry,
        project: str,
        full_feature_names: bool = False,
        filter_by_created_timestamp: bool = False,
        **kwargs: Any,
    ) -> RetrievalJob:
        """The features as they were known at each row's time; `entity_df` in pandas, Polars, Arrow or a Parquet path.

        With `filter_by_created_timestamp`, only what had been created (received, for events) by that time.
        """
        if entity_df is None:
            raise OfflineStoreError(
                "pass entity_df with keys and times: retrieval by start_date and end_date alone is not offered"
            )
        labels = Labels.read(entity_df)
        wanted = wanted_features(feature_views, feature_refs, full_feature_names)
        check_columns(labels, wanted)
        lateness_us = round((config.offline_store.settings or Settings()).lateness_horizon_s * MICROS)

        def evaluate() -> pa.Table:
            return join(config, labels, wanted, lateness_us, arrived_only=filter_by_created_timestamp)

        return PolarsRetrievalJob(
            evaluate,
            config.repo_path,
            full_feature_names,
            OnDemandFeatureView.get_requested_odfvs(feature_refs, project, registry),
            labels.metadata(feature_refs),
        )

    @staticmethod
    def pull_latest_from_table_or_query(
        config: RepoConfig,
        data_source: DataSource,
        join_key_columns: list[str],
        feature_name_columns: list[str],
        timestamp_field: str,
        created_timestamp_column: str | None,
        start_date: datetime,
        end_date: datetime,
    ) -> RetrievalJob:
        """The newest row of each entity with start <= timestamp <= end."""

        def evaluate() -> pa.Table:
            times = [timestamp_field, *([created_timestamp_column] if created_timestamp_column else [])]
            frame = _pull(config, data_source, join_key_columns, feature_name_columns, times, start_date, end_date)
            if join_key_columns:
                # Newest write first, so that the first of equal rows survives.
                frame = frame.sort(times, descending=True, nulls_last=True, maintain_order=True)
                frame = frame.unique(join_key_columns, keep="first", maintain_order=True)
            return frame.to_arrow()

        return PolarsRetrievalJob(evaluate, config.repo_path)

    @staticmethod
    def pull_all_from_table_or_query(
        config: RepoConfig,
        data_source: DataSource,
        join_key_columns: list[str],
        feature_name_columns: list[str],
        timestamp_field: str,
        created_timestamp_column: str | None = None,
        start_date: datetime | None = None,
        end_date: datetime | None = None,
    ) -> RetrievalJob:
        """Every row with start <= timestamp <= end; without feature names, every column."""

        def evaluate() -> pa.Table:
            times = [timestamp_field, *([created_timestamp_column] if created_timestamp_column else [])]
            return _pull(
                config, data_source, join_key_columns, feature_name_columns, times, start_date, end_date
            ).to_arrow()

        return PolarsRetrievalJob(evaluate, config.repo_path)

    @staticmethod
    def offline_write_batch(
        config: RepoConfig, feature_view: FeatureView, table: pa.Table, progress: Callable[[int], Any] | None
    ) -> None:
        """Append rows to a view's source: a commit to its Delta table, or a new file in its Parquet folder."""
        source = file_source(feature_view.batch_source)
        path = FileSource.get_uri_for_file_path(config.repo_path, source.path)
        if is_delta(source):
            existing = delta_table(path)
            write_deltalake(
                path, table if existing is None else table.cast(pa.schema(existing.schema().to_arrow())), mode="append"
            )
        else:
            if Path(path).is_file():
                raise OfflineStoreError(
                    f"view '{feature_view.name}': {path} is one Parquet file and cannot be appended to; "
                    "give the source a folder, or use DeltaFormat"
                )
            # Names sort by time of writing, which is how a scan knows the newest.
            write_parquet(table, Path(path) / f"{system_clock():020d}-{uuid.uuid4().hex}.parquet")
        if progress:
            progress(table.num_rows)

    @staticmethod
    def write_logged_features(
        config: RepoConfig,
        data: pa.Table | Path,
        source: LoggingSource,
        logging_config: LoggingConfig,
        registry: BaseRegistry,
    ) -> None:
        """Append the log of a feature service as Parquet below its destination."""
        destination = logging_config.destination
        if not isinstance(destination, FileLoggingDestination):
            raise OfflineStoreError(f"cannot log features to {type(destination).__name__}: use FileLoggingDestination")
        ds.write_dataset(
            pq.read_table(data) if isinstance(data, Path) else data,
            base_dir=FileSource.get_uri_for_file_path(config.repo_path, destination.path),
            basename_template=f"{uuid.uuid4().hex}-{{i}}.parquet",
            partitioning=destination.partition_by,
            format="parquet",
            existing_data_behavior="overwrite_or_ignore",
        )


def _pull(
    config: RepoConfig,
    data_source: DataSource,
    join_keys: list[str],
    features: list[str],
    times: list[str],
    start: datetime | None,
    end: datetime | None,
) -> pl.DataFrame:
    """Rows of a source between two times, both included, newest write first; its first time column decides."""
    columns = list(dict.fromkeys([*join_keys, *features, *times]))
    lazy = scan(config, data_source)
    if lazy is None:
        frame = pl.DataFrame(schema=dict.fromkeys(columns, pl.Null))
    else:
        schema = lazy.collect_schema()
        if not set(join_keys) <= set(schema.names()):
            raise FeastJoinKeysDuringMaterialization(data_source.path, set(join_keys), set(schema.names()))
        lazy = lazy.with_columns(utc(schema, name).alias(name) for name in times)
        if start is not None:
            lazy = lazy.filter(pl.col(times[0]) >= start)
        if end is not None:
            lazy = lazy.filter(pl.col(times[0]) <= end)
        frame = (lazy.select(columns) if features else lazy).collect()
    return frame if join_keys else frame.with_columns(pl.lit(DUMMY_ENTITY_VAL).alias(DUMMY_ENTITY_ID))
