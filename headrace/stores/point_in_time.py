"""The two point-in-time joins behind the offline store: plain views by ASOF, stream views by the as-of batch engine.

One answer for each label row, in the order given.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from feast import FeatureView, StreamFeatureView
from feast.feature_view import DUMMY_ENTITY_ID
from feast.infra.offline_stores.offline_store import RetrievalMetadata
from feast.repo_config import RepoConfig
from feast.types import from_feast_to_pyarrow_type

from headrace import names
from headrace.aggregates.batch import as_of
from headrace.aggregates.compile import compile_view
from headrace.aggregates.spec import ViewSpec
from headrace.clock import from_micros
from headrace.events import RECORD_SCHEMA
from headrace.settings import MICROS
from headrace.stores.sources import OfflineStoreError, scan, utc

EVENT_TIMESTAMP: Final = "event_timestamp"
"""Feast's name for the time column of an entity frame."""
_LABEL_TIME, _TIME, _CREATED, _KNOWN, _RANK, _ROW = "__label_time", "__time", "__created", "__known", "__rank", "__row"

EntityFrame: TypeAlias = pd.DataFrame | pl.DataFrame | pa.Table | str | Path


@dataclass(frozen=True)
class Wanted:
    """One feature that was asked for, and the name of its column in the answer."""

    view: FeatureView
    name: str
    output: str


def wanted_features(views: Sequence[FeatureView], refs: Sequence[str], full_feature_names: bool) -> list[Wanted]:
    """Features in the order of their references; those of on-demand views are Feast's to add."""
    by_name = {view.projection.name_to_use(): view for view in views}
    wanted = []
    for ref in dict.fromkeys(refs):
        view_name, _, feature = ref.partition(":")
        if view_name in by_name:
            output = f"{view_name}__{feature}" if full_feature_names else feature
            wanted.append(Wanted(by_name[view_name], feature, output))
    return wanted


@dataclass(frozen=True)
class Labels:
    """The rows asked for."""

    table: pa.Table
    frame: pl.DataFrame
    """The same columns, and `_LABEL_TIME` in microseconds."""
    time_column: str

    @classmethod
    def read(cls, entity_df: EntityFrame) -> "Labels":
        table = _to_arrow(entity_df).replace_schema_metadata(None)
        column = _time_column(table.schema)
        frame = pl.DataFrame(table)
        frame = frame.with_columns(utc(frame.schema, column).alias(_LABEL_TIME))
        if frame[_LABEL_TIME].null_count():
            raise OfflineStoreError(
                f"entity_df has rows without a time in '{column}': give every row one, or leave the row out"
            )
        place = table.schema.get_field_index(column)
        table = table.set_column(place, column, frame[_LABEL_TIME].to_arrow().cast(pa.timestamp("us", "UTC")))
        return cls(table, frame.with_columns(pl.col(_LABEL_TIME).to_physical()), column)

    @property
    def times_us(self) -> npt.NDArray[np.int64]:
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


def check_columns(labels: Labels, wanted: Sequence[Wanted]) -> None:
    """Raises OfflineStoreError where two columns of the answer would have one name."""
    outputs = [one.output for one in wanted]
    twice = sorted(
        {name for name in outputs if outputs.count(name) > 1} | (set(outputs) & set(labels.table.column_names))
    )
    if twice:
        raise OfflineStoreError(
            f"the answer would hold the column '{twice[0]}' twice: rename it, or set full_feature_names=True"
        )


def join(
    config: RepoConfig, labels: Labels, wanted: Sequence[Wanted], lateness_us: int, arrived_only: bool
) -> pa.Table:
    """The label rows with a column for each feature wanted.

    With `arrived_only`, from plain rows created and events received by each row's time.
    """
    answers: dict[str, pa.ChunkedArray] = {}
    for view in {id(one.view): one.view for one in wanted}.values():
        features = [one for one in wanted if one.view is view]
        if isinstance(view, StreamFeatureView):
            spec = compile_view(view, lateness_us)
            answers |= _stream_columns(config, view, spec, features, labels, arrived_only)
        else:
            answers |= _plain_columns(config, view, features, labels, arrived_only)
    table = labels.table
    for one in wanted:
        table = table.append_column(one.output, answers[one.output])
    return table


def _stream_columns(
    config: RepoConfig,
    view: StreamFeatureView,
    spec: ViewSpec,
    wanted: Sequence[Wanted],
    labels: Labels,
    arrived_only: bool,
) -> dict[str, pa.ChunkedArray]:
    """Columns of a stream view, label rows of neighbouring keys together so that memory stays bounded."""
    source = scan(config, view.batch_source)
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


def _events_of(lake: pl.LazyFrame, spec: ViewSpec, keys: pl.Series, times_us: npt.NDArray[np.int64]) -> pl.DataFrame:
    """The lake's events that can matter to these keys up to the last of the times."""
    if keys.drop_nulls().is_empty():
        lake = lake.limit(0)
    else:
        newest = pl.lit(int(times_us.max())).cast(pl.Datetime("us", "UTC"))
        entity = pl.col(spec.entity_column)
        lake = lake.filter(
            entity.is_between(pl.lit(keys.min()), pl.lit(keys.max())),
            pl.col(names.TYPE).is_in(list(spec.types)),
            pl.col(names.TIMESTAMP) < newest,
        )
    return lake.select(spec.columns).collect()


def _plain_columns(
    config: RepoConfig, view: FeatureView, wanted: Sequence[Wanted], labels: Labels, arrived_only: bool
) -> dict[str, pa.ChunkedArray]:
    """Columns of a plain view: the newest row at or before each time; null without one or past the TTL."""
    declared = {feature.name: from_feast_to_pyarrow_type(feature.dtype) for feature in view.features}
    lazy = scan(config, view.batch_source)
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
    view: FeatureView, lazy: pl.LazyFrame, features: Sequence[str], labels: Labels
) -> tuple[pl.DataFrame, dict[str, str]]:
    """A source's rows: the features, `_TIME` and `_CREATED` in microseconds, and each join key under an alias of ours.

    Sorted so that of two rows of an entity the one that counts stands later.
    """
    source = view.batch_source
    column_of = {name: column for column, name in (source.field_mapping or {}).items()}
    schema = lazy.collect_schema()
    keys = {one.name: f"__key_{one.name}" for one in view.entity_columns if one.name != DUMMY_ENTITY_ID}
    created = source.created_timestamp_column or source.timestamp_field
    time = utc(schema, source.timestamp_field)
    newest = pl.lit(int(labels.times_us.max(initial=0))).cast(pl.Datetime("us", "UTC"))
    rows = (
        lazy.filter(time <= newest)
        .select(
            *[pl.col(column_of.get(key, key)).alias(alias) for key, alias in keys.items()],
            *[pl.col(column_of.get(name, name)).alias(name) for name in dict.fromkeys(features)],
            time.to_physical().alias(_TIME),
            utc(schema, created).to_physical().alias(_CREATED),
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
