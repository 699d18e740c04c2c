"""Feast's offline store on Polars and compiled sweeps: point-in-time joins for plain views, as-of aggregates for stream views.

One row for each row asked for, in the order asked (law 4). Plain views: the newest row with timestamp <= t, of equal
timestamps the one created later. Stream views: `headrace.aggregates.batch` over the event lake, which is the batch
source of the view's push source. A source that does not exist yet reads as empty.
"""

import uuid
from collections.abc import Callable
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any, Literal

import polars as pl
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from feast import FeatureView, OnDemandFeatureView, StreamFeatureView
from feast.data_source import DataSource
from feast.errors import FeastJoinKeysDuringMaterialization
from feast.feature_logging import LoggingConfig, LoggingSource
from feast.feature_view import DUMMY_ENTITY_ID, DUMMY_ENTITY_VAL
from feast.infra.offline_stores.file_source import FileLoggingDestination, FileSource
from feast.infra.offline_stores.offline_store import OfflineStore, RetrievalJob
from feast.infra.registry.base_registry import BaseRegistry
from feast.repo_config import FeastConfigBaseModel, RepoConfig
from feast.utils import compute_non_entity_date_range
from pydantic import Field

from headrace.aggregates.compile import compile_view
from headrace.settings import MICROS, Settings
from headrace.stores.feature_store import quieten_feast
from headrace.stores.offline_append import append_rows
from headrace.stores.offline_job import PolarsRetrievalJob
from headrace.stores.offline_labels import EntityFrame, Labels
from headrace.stores.offline_memory import memory_bound
from headrace.stores.offline_newest import ROW
from headrace.stores.offline_plain import created_times, latest_rows, source_rows
from headrace.stores.offline_range import entities_between
from headrace.stores.point_in_time import check_columns, join, wanted_features
from headrace.stores.sources import OfflineStoreError, Source, file_source, open_source, source_path


class PolarsOfflineStoreConfig(FeastConfigBaseModel):  # type: ignore[misc]
    """`offline_store:` in feature_store.yaml."""

    type: Literal["headrace.stores.offline.PolarsOfflineStore"] = "headrace.stores.offline.PolarsOfflineStore"
    memory_mb: float | None = Field(default=None, gt=0)
    """Of a source's rows, so much is held at a time: more is joined in ranges of entities. Half of the free memory if unset."""
    settings: Settings | None = None
    """Those of the process that opened the store; from the environment where Feast opened it."""

    def model_post_init(self, context: Any) -> None:
        """The first of ours that any `feast` command runs, before it reads the definitions."""
        quieten_feast()


class PolarsOfflineStore(OfflineStore):  # type: ignore[misc]
    """`type: headrace.stores.offline.PolarsOfflineStore`, over `FileSource`s in Delta or Parquet."""

    supports_filter_by_created_timestamp = True

    def validate_data_source(self, config: RepoConfig, data_source: DataSource) -> None:
        """Feast would warn of each table of the lake that is made with its first rows."""
        lake = (config.offline_store.settings or Settings()).lake_dir.resolve()
        if not isinstance(data_source, FileSource) or lake not in Path(source_path(config, data_source)).parents:
            super().validate_data_source(config, data_source)

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
        start_date: datetime | None = None,
        end_date: datetime | None = None,
    ) -> RetrievalJob:
        """The features as they were known at each row's time; `entity_df` in pandas, Polars, Arrow or a Parquet path.

        Without `entity_df`: of every entity with a row or an event from `start_date` to `end_date`, as of `end_date`. With
        `filter_by_created_timestamp`, only what had been created (received, for events) by that time.
        """
        settings = config.offline_store.settings or Settings()
        lateness_us = round(settings.lateness_horizon_s * MICROS)
        specs = {
            view.name: compile_view(view, lateness_us) for view in feature_views if isinstance(view, StreamFeatureView)
        }
        wanted = wanted_features(feature_views, feature_refs, full_feature_names)

        @cache
        def sources() -> dict[str, Source | None]:
            """As they stand when the job is first read; all batches of it see the same."""
            return {view.name: open_source(config, view.batch_source, f"view '{view.name}'") for view in feature_views}

        if entity_df is None:
            start, end = compute_non_entity_date_range(feature_views, start_date, end_date)
            labels = Labels.read(entities_between(feature_views, specs, sources(), start, end))
        else:
            labels = Labels.read(entity_df)
        check_columns(labels, wanted)

        def evaluate(start: int, length: int | None) -> pa.Table:
            some = labels if length is None else labels.slice(start, length)
            bound = memory_bound(config.offline_store.memory_mb)
            return join(some, wanted, specs, sources(), bound, arrived_only=filter_by_created_timestamp)

        return PolarsRetrievalJob(
            evaluate,
            config.repo_path,
            full_feature_names,
            OnDemandFeatureView.get_requested_odfvs(feature_refs, project, registry),
            labels.metadata(feature_refs),
            len(labels),
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
        """The newest row of each entity with start <= timestamp <= end, by (timestamp, created), of equal ones the later write."""
        times = [timestamp_field, *([created_timestamp_column] if created_timestamp_column else [])]

        def evaluate(source: Source, rows: pl.LazyFrame) -> pl.DataFrame:
            numbered = _between(rows.with_row_index(ROW), timestamp_field, start_date, end_date)
            created = created_times(source, times[-1])
            return source_rows(source, rows, latest_rows(source, numbered, join_key_columns, timestamp_field, created))

        return _pull(config, data_source, join_key_columns, feature_name_columns, times, evaluate)

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
        """Every row with start <= timestamp <= end, the newest write first; without feature names, every column."""
        times = [timestamp_field, *([created_timestamp_column] if created_timestamp_column else [])]

        def evaluate(source: Source, rows: pl.LazyFrame) -> pl.DataFrame:
            return source.collect(_between(rows, timestamp_field, start_date, end_date))

        return _pull(config, data_source, join_key_columns, feature_name_columns, times, evaluate)

    @staticmethod
    def offline_write_batch(
        config: RepoConfig, feature_view: FeatureView, table: pa.Table, progress: Callable[[int], Any] | None
    ) -> None:
        """Append rows to a view's source: a commit to its Delta table, or a new file in its Parquet folder.

        Of rows that agree in keys and times the later one counts. Raises OfflineStoreError for a stream view: its source is
        the event lake, which the log alone fills.
        """
        if isinstance(feature_view, StreamFeatureView):
            raise OfflineStoreError(
                f"stream view '{feature_view.name}' is computed from the event lake, which cannot be written to through Feast: "
                "send events to POST /v1/events, or rebuild the state with `headrace backfill`"
            )
        append_rows(config, file_source(feature_view.batch_source), table, f"view '{feature_view.name}'")
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
            partitioning_flavor="hive",
            format="parquet",
            existing_data_behavior="overwrite_or_ignore",
        )


def _pull(
    config: RepoConfig,
    data_source: DataSource,
    join_keys: list[str],
    features: list[str],
    times: list[str],
    evaluate: Callable[[Source, pl.LazyFrame], pl.DataFrame],
) -> RetrievalJob:
    """Rows of a source, their times in UTC; without join keys under Feast's dummy entity. One chunk: Feast reads the first alone."""
    columns = list(dict.fromkeys([*join_keys, *features, *times]))

    def pulled(start: int, length: int | None) -> pa.Table:
        source = open_source(config, data_source, "materialize")
        if source is None:
            frame = pl.DataFrame(schema=dict.fromkeys(columns, pl.Null))
        else:
            if not set(join_keys) <= set(source.schema):
                raise FeastJoinKeysDuringMaterialization(data_source.path, set(join_keys), set(source.schema))
            for name in features:
                source.column(name, "a feature")
            rows = source.rows.with_columns(source.time(name, "a time").alias(name) for name in times)
            frame = evaluate(source, rows.select(columns) if features else rows)
        if not join_keys:
            frame = frame.with_columns(pl.lit(DUMMY_ENTITY_VAL).alias(DUMMY_ENTITY_ID))
        return frame.rechunk().to_arrow().combine_chunks().slice(start, length)

    return PolarsRetrievalJob(pulled, config.repo_path)


def _between(rows: pl.LazyFrame, time: str, start: datetime | None, end: datetime | None) -> pl.LazyFrame:
    """Rows between two times, both included."""
    if start is not None:
        rows = rows.filter(pl.col(time) >= start)
    return rows if end is None else rows.filter(pl.col(time) <= end)
