"""Feast's offline store on Polars: point-in-time joins for plain views, as-of aggregates for stream views.

One row for each row asked for, in the order asked (law 4). Plain views: the newest row with timestamp <= t, of equal
timestamps the one created later. Stream views: `headrace.aggregates.batch` over the event lake, which is the batch
source of the view's push source. A source that does not exist yet reads as empty.

A scan yields the newest write first; of rows that agree in keys, timestamp and created time the first scanned counts,
here as in Feast's own `materialize`.
"""

import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from deltalake import DeltaTable, write_deltalake
from deltalake.exceptions import TableNotFoundError
from feast import FeatureView, OnDemandFeatureView, StreamFeatureView
from feast.data_format import DeltaFormat, ParquetFormat
from feast.data_source import DataSource
from feast.errors import FeastJoinKeysDuringMaterialization, SavedDatasetLocationAlreadyExists
from feast.feature_logging import LoggingConfig, LoggingSource
from feast.feature_view import DUMMY_ENTITY_ID, DUMMY_ENTITY_VAL
from feast.infra.offline_stores.file_source import FileLoggingDestination, FileSource, SavedDatasetFileStorage
from feast.infra.offline_stores.offline_store import OfflineStore, RetrievalJob, RetrievalMetadata
from feast.infra.registry.base_registry import BaseRegistry
from feast.repo_config import FeastConfigBaseModel, RepoConfig
from feast.saved_dataset import SavedDatasetStorage
from feast.types import from_feast_to_pyarrow_type

from headrace import names
from headrace.aggregates.batch import as_of
from headrace.aggregates.spec import ViewSpec, compile_view
from headrace.clock import from_micros, system_clock
from headrace.events import RECORD_SCHEMA
from headrace.settings import MICROS, Settings

EVENT_TIMESTAMP: Final = "event_timestamp"
"""Feast's name for the time column of an entity frame."""
_LABEL_TIME, _TIME, _CREATED, _KNOWN, _RANK, _ROW = "__label_time", "__time", "__created", "__known", "__rank", "__row"

EntityFrame: TypeAlias = "pd.DataFrame | pl.DataFrame | pa.Table | str | Path"


class PolarsOfflineStoreConfig(FeastConfigBaseModel):  # type: ignore[misc]
    """`offline_store:` in feature_store.yaml."""

    type: Literal["headrace.stores.offline.PolarsOfflineStore"] = "headrace.stores.offline.PolarsOfflineStore"
    rows_at_a_time: int = 200_000
    """Label rows of a stream view that are computed together: bounds memory, each batch scans the lake once."""


class OfflineStoreError(ValueError):
    """A request that the store cannot answer: says what, and what to do instead."""


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
        _write_parquet(self.to_arrow(), path)


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
        labels = _Labels.read(entity_df)
        wanted = list(_wanted(feature_views, feature_refs, full_feature_names))
        _check_columns(labels, wanted)
        lateness_us = round(Settings().lateness_horizon_s * MICROS)

        def evaluate() -> pa.Table:
            answers: dict[str, pa.ChunkedArray] = {}
            for view in {id(one.view): one.view for one in wanted}.values():
                features = [one for one in wanted if one.view is view]
                if isinstance(view, StreamFeatureView):
                    spec = compile_view(view, lateness_us)
                    columns = _stream_columns(config, view, spec, features, labels, filter_by_created_timestamp)
                else:
                    columns = _plain_columns(config, view, features, labels, filter_by_created_timestamp)
                answers |= columns
            table = labels.table
            for one in wanted:
                table = table.append_column(one.output, answers[one.output])
            return table

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
        source = _file_source(feature_view.batch_source)
        path = FileSource.get_uri_for_file_path(config.repo_path, source.path)
        if _is_delta(source):
            existing = _delta_table(path)
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
            _write_parquet(table, Path(path) / f"{system_clock():020d}-{uuid.uuid4().hex}.parquet")
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


@dataclass(frozen=True)
class _Wanted:
    """One feature that was asked for, and the name of its column in the answer."""

    view: FeatureView
    name: str
    output: str


def _wanted(views: Sequence[FeatureView], refs: Sequence[str], full_feature_names: bool) -> Iterator[_Wanted]:
    """Features in the order of their references; those of on-demand views are Feast's to add."""
    by_name = {view.projection.name_to_use(): view for view in views}
    for ref in dict.fromkeys(refs):
        view_name, _, feature = ref.partition(":")
        if view_name in by_name:
            yield _Wanted(by_name[view_name], feature, f"{view_name}__{feature}" if full_feature_names else feature)


@dataclass(frozen=True)
class _Labels:
    """The rows asked for."""

    table: pa.Table
    frame: pl.DataFrame
    """The same columns, and `_LABEL_TIME` in microseconds."""
    time_column: str

    @classmethod
    def read(cls, entity_df: EntityFrame) -> "_Labels":
        table = _to_arrow(entity_df).replace_schema_metadata(None)
        column = _time_column(table.schema)
        frame = pl.DataFrame(table)
        frame = frame.with_columns(_utc(frame.schema, column).alias(_LABEL_TIME))
        if frame[_LABEL_TIME].null_count():
            raise OfflineStoreError(
                f"entity_df has rows without a time in '{column}': give every row one, or leave the row out"
            )
        place = table.schema.get_field_index(column)
        table = table.set_column(place, column, frame[_LABEL_TIME].to_arrow().cast(pa.timestamp("us", "UTC")))
        return cls(table, frame.with_columns(pl.col(_LABEL_TIME).to_physical()), column)

    @property
    def times_us(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        return self.frame[_LABEL_TIME].to_numpy()

    def key(self, view: FeatureView, join_key: str) -> pl.Series:
        """The column that a view's join key is read from, under the aliases of the view's projection."""
        column = str(view.projection.join_key_map.get(join_key, join_key))
        if column not in self.frame.columns:
            raise OfflineStoreError(
                f"view '{view.projection.name_to_use()}' needs the column '{column}' in entity_df: add it"
            )
        return self.frame.get_column(column)

    def metadata(self, feature_refs: list[str]) -> RetrievalMetadata:
        times = self.times_us
        bounds = (from_micros(times.min()), from_micros(times.max())) if len(times) else (None, None)
        keys = [name for name in self.table.column_names if name != self.time_column]
        return RetrievalMetadata(feature_refs, keys, *bounds)


def _to_arrow(entity_df: EntityFrame) -> pa.Table:
    match entity_df:
        case pa.Table():
            return entity_df
        case pl.DataFrame():
            return entity_df.to_arrow()
        case pd.DataFrame():
            return pa.Table.from_pandas(entity_df, preserve_index=False)
        case str() | Path():
            if not Path(entity_df).exists():
                raise OfflineStoreError(
                    f"entity_df '{entity_df}' is no Parquet file: give a path, or a pandas, Polars or Arrow table"
                )
            return pq.read_table(entity_df)
    raise OfflineStoreError(
        f"entity_df is a {type(entity_df).__name__}: use pandas, Polars, Arrow or the path of a Parquet file"
    )


def _time_column(schema: pa.Schema) -> str:
    if EVENT_TIMESTAMP in schema.names:
        return EVENT_TIMESTAMP
    times = [column.name for column in schema if pa.types.is_timestamp(column.type)]
    if len(times) != 1:
        raise OfflineStoreError(f"entity_df needs a column '{EVENT_TIMESTAMP}'; its time columns are {times}")
    return str(times[0])


def _check_columns(labels: _Labels, wanted: Sequence[_Wanted]) -> None:
    outputs = [one.output for one in wanted]
    twice = sorted(
        {name for name in outputs if outputs.count(name) > 1} | (set(outputs) & set(labels.table.column_names))
    )
    if twice:
        raise OfflineStoreError(
            f"the answer would hold the column '{twice[0]}' twice: rename it, or set full_feature_names=True"
        )


def _stream_columns(
    config: RepoConfig,
    view: StreamFeatureView,
    spec: ViewSpec,
    wanted: Sequence[_Wanted],
    labels: _Labels,
    arrived_only: bool,
) -> dict[str, pa.ChunkedArray]:
    """Columns of a stream view, label rows of neighbouring keys together so that memory stays bounded."""
    source = _scan(config, view.batch_source)
    lake = pl.DataFrame(RECORD_SCHEMA.empty_table()).lazy() if source is None else source
    keys, times_us = labels.key(view, spec.join_key).cast(pl.String), labels.times_us
    features = [one.name for one in wanted]
    order = keys.arg_sort().to_numpy().astype(np.int64)
    step = config.offline_store.rows_at_a_time
    parts = []
    for rows in np.split(order, range(step, len(order), step)):
        some_keys, some_times = keys.gather(rows), times_us[rows]
        events = _events_of(lake, spec, some_keys, some_times)
        parts.append(as_of(spec, events, some_keys, some_times, features, arrived_only))
    answer = pa.concat_tables(parts).take(np.argsort(order, kind="stable"))
    return {one.output: answer[one.name] for one in wanted}


def _events_of(lake: pl.LazyFrame, spec: ViewSpec, keys: pl.Series, times_us: np.ndarray[Any, Any]) -> pl.DataFrame:
    """The lake's events that can matter to these keys up to the last of the times."""
    if keys.drop_nulls().is_empty():
        lake = lake.limit(0)
    else:
        newest = pl.lit(int(times_us.max())).cast(pl.Datetime("us", "UTC"))
        entity = pl.col(spec.entity_column)
        lake = lake.filter(
            entity.is_between(keys.min(), keys.max()),  # type: ignore[arg-type]
            pl.col(names.TYPE).is_in(list(spec.types)),
            pl.col(names.TIMESTAMP) < newest,
        )
    return lake.select(spec.columns).collect()


def _plain_columns(
    config: RepoConfig, view: FeatureView, wanted: Sequence[_Wanted], labels: _Labels, arrived_only: bool
) -> dict[str, pa.ChunkedArray]:
    """Columns of a plain view: the newest row at or before each time; null without one or past the TTL."""
    declared = {feature.name: from_feast_to_pyarrow_type(feature.dtype) for feature in view.features}
    lazy = _scan(config, view.batch_source)
    if lazy is None:
        return {one.output: pa.chunked_array([pa.nulls(len(labels.frame), declared[one.name])]) for one in wanted}
    rows, keys = _plain_rows(view, lazy, [one.name for one in wanted], labels)
    asked = labels.frame.select(
        pl.int_range(pl.len()).alias(_ROW),
        pl.col(_LABEL_TIME),
        *[labels.key(view, key).cast(rows.schema[alias], strict=False).alias(alias) for key, alias in keys.items()],
    )
    found = _newest(asked, rows, list(keys.values()), arrived_only)
    if view.ttl:
        age = pl.Series(labels.times_us) - rows[_TIME].gather(found)
        found = found.set((age > view.ttl.total_seconds() * MICROS).fill_null(False), None)
    return {
        one.output: pa.chunked_array([rows[one.name].gather(found).to_arrow().cast(declared[one.name])])
        for one in wanted
    }


def _plain_rows(
    view: FeatureView, lazy: pl.LazyFrame, features: Sequence[str], labels: _Labels
) -> tuple[pl.DataFrame, dict[str, str]]:
    """A source's rows: the features, `_TIME` and `_CREATED` in microseconds, and each join key under an alias of ours.

    Sorted so that of two rows of an entity the one that counts stands later.
    """
    source = view.batch_source
    column_of = {name: column for column, name in (source.field_mapping or {}).items()}
    schema = lazy.collect_schema()
    keys = {one.name: f"__key_{one.name}" for one in view.entity_columns if one.name != DUMMY_ENTITY_ID}
    created = source.created_timestamp_column or source.timestamp_field
    time = _utc(schema, source.timestamp_field)
    newest = pl.lit(int(labels.times_us.max(initial=0))).cast(pl.Datetime("us", "UTC"))
    rows = (
        lazy.filter(time <= newest)
        .select(
            *[pl.col(column_of.get(key, key)).alias(alias) for key, alias in keys.items()],
            *[pl.col(column_of.get(name, name)).alias(name) for name in dict.fromkeys(features)],
            time.to_physical().alias(_TIME),
            _utc(schema, created).to_physical().alias(_CREATED),
        )
        .drop_nulls([_TIME, *keys.values()])
        .collect()
        .reverse()
        .sort(_TIME, _CREATED, maintain_order=True)
    )
    return rows, keys


def _newest(asked: pl.DataFrame, rows: pl.DataFrame, keys: list[str], arrived_only: bool) -> pl.Series:
    """For each label row the place in `rows` of the last one that was known by its time; null if there is none."""
    known = pl.max_horizontal(_TIME, _CREATED) if arrived_only else pl.col(_TIME)
    rank = pl.int_range(pl.len()).alias(_RANK)
    # A row that became known late does not hide a newer one that was known before it.
    best = pl.col(_RANK).cum_max()
    steps = (
        rows.select(*keys, known.alias(_KNOWN), rank)
        .sort(_KNOWN, _RANK)
        .with_columns(best.over(keys) if keys else best)
    )
    found = asked.sort(_LABEL_TIME).join_asof(
        steps, left_on=_LABEL_TIME, right_on=_KNOWN, by=keys or None, strategy="backward", check_sortedness=False
    )
    return found.sort(_ROW)[_RANK]


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
    lazy = _scan(config, data_source)
    if lazy is None:
        frame = pl.DataFrame(schema=dict.fromkeys(columns, pl.Null))
    else:
        schema = lazy.collect_schema()
        if not set(join_keys) <= set(schema.names()):
            raise FeastJoinKeysDuringMaterialization(data_source.path, set(join_keys), set(schema.names()))
        lazy = lazy.with_columns(_utc(schema, name).alias(name) for name in times)
        if start is not None:
            lazy = lazy.filter(pl.col(times[0]) >= start)
        if end is not None:
            lazy = lazy.filter(pl.col(times[0]) <= end)
        frame = (lazy.select(columns) if features else lazy).collect()
    return frame if join_keys else frame.with_columns(pl.lit(DUMMY_ENTITY_VAL).alias(DUMMY_ENTITY_ID))


def _scan(config: RepoConfig, source: DataSource) -> pl.LazyFrame | None:
    """A source's rows, newest write first; None where nothing has been written yet."""
    source = _file_source(source)
    path = FileSource.get_uri_for_file_path(config.repo_path, source.path)
    if _is_delta(source):
        table = _delta_table(path)
        return None if table is None else pl.scan_delta(table)
    if Path(path).is_dir():
        files = sorted(Path(path).rglob("*.parquet"), reverse=True)
        return pl.scan_parquet(files, hive_partitioning=True) if files else None
    return pl.scan_parquet(path) if "://" in path or Path(path).exists() else None


def _file_source(source: DataSource) -> FileSource:
    if not isinstance(source, FileSource):
        raise OfflineStoreError(
            f"source '{source.name}' is a {type(source).__name__}: use FileSource with Delta or Parquet"
        )
    if not isinstance(source.file_format, DeltaFormat | ParquetFormat | None):
        raise OfflineStoreError(
            f"source '{source.name}' is in {type(source.file_format).__name__}: use DeltaFormat or ParquetFormat"
        )
    return source


def _is_delta(source: FileSource) -> bool:
    return isinstance(source.file_format, DeltaFormat)


def _delta_table(path: str) -> DeltaTable | None:
    try:
        return DeltaTable(path)
    except TableNotFoundError:
        return None


def _utc(schema: pl.Schema, column: str) -> pl.Expr:
    """A time column as Datetime[us, UTC]; naive times are UTC, as Feast has it."""
    kind = schema[column]
    expression = pl.col(column)
    if kind == pl.Date:
        expression, kind = expression.cast(pl.Datetime("us")), pl.Datetime("us")
    if not isinstance(kind, pl.Datetime):
        raise OfflineStoreError(f"column '{column}' is {kind}, not a time: store it as a timestamp")
    utc = expression.dt.replace_time_zone("UTC") if kind.time_zone is None else expression.dt.convert_time_zone("UTC")
    return utc.dt.cast_time_unit("us")


def _write_parquet(table: pa.Table, path: Path) -> None:
    """Write beside and rename, so that no reader sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    pq.write_table(table, partial)
    partial.replace(path)
