"""The rows that features are asked for: Feast's entity frame in any of its forms, or every entity of a range of time."""

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Final, TypeAlias

import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from feast import FeatureView
from feast.feature_view import DUMMY_ENTITY_ID
from feast.infra.offline_stores.offline_store import RetrievalMetadata

from headrace.aggregates.batch_events import Codes, as_codes
from headrace.arrays import Ints
from headrace.clock import from_micros, to_micros
from headrace.stores.offline_newest import CODE
from headrace.stores.sources import OfflineStoreError, Source, utc

EVENT_TIMESTAMP: Final = "event_timestamp"
"""Feast's name for the time column of an entity frame."""
_LABEL_TIME: Final = "__label_time"
_FIRST_US: Final = to_micros(datetime.min.replace(tzinfo=UTC))
_LAST_US: Final = to_micros(datetime.max.replace(tzinfo=UTC))
_SQL: Final = re.compile(r"\s*(select|with)\s", re.IGNORECASE)

EntityFrame: TypeAlias = pd.DataFrame | pl.DataFrame | pa.Table | str | Path


@dataclass(frozen=True)
class ViewKeys:
    """The entities of one view that the rows ask about, as numbers."""

    asked: pl.DataFrame
    """(Q,) the join keys of each row, under `columns`."""
    columns: dict[str, str]
    """Alias of each join key, by the name that the view gives it."""

    def __len__(self) -> int:
        return self.asked.height

    @property
    def codes(self) -> Codes:
        """(Q,) the entity of each row."""
        return self._numbered[0]

    @property
    def frame(self) -> pl.DataFrame:
        """A row for each entity: `CODE`, and its join keys."""
        return self._numbered[1]

    @cached_property
    def _numbered(self) -> tuple[Codes, pl.DataFrame]:
        """Found when it is first asked for: what is joined at once may not need it."""
        return as_codes(self.asked, CODE)


@dataclass(frozen=True)
class Labels:
    """Q rows asked for."""

    table: pa.Table
    """As given; the time column as timestamp[us, UTC]."""
    time_column: str

    @classmethod
    def read(cls, entity_df: EntityFrame) -> "Labels":
        """Raises OfflineStoreError where the rows have no usable time."""
        table = _to_arrow(entity_df).replace_schema_metadata(None)
        column = _time_column(table.schema)
        times = _times(table, column)
        if times.null_count():
            raise OfflineStoreError(
                f"entity_df has rows without a time in '{column}': give every row one, or leave the row out"
            )
        place = table.schema.get_field_index(column)
        micros = times.to_arrow().cast(pa.timestamp("us", "UTC"))
        bounds = pc.min_max(micros.cast(pa.int64())).as_py()
        if len(micros) and not (_FIRST_US <= bounds["min"] <= bounds["max"] <= _LAST_US):
            raise OfflineStoreError(f"entity_df has times in '{column}' before year 1 or after year 9999: correct them")
        return cls(table.set_column(place, column, micros), column)

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def slice(self, start: int, length: int) -> "Labels":
        return Labels(self.table.slice(start, length), self.time_column)

    @cached_property
    def times_us(self) -> Ints:
        return pl.Series(self.table[self.time_column]).to_physical().to_numpy()

    def key(self, view: FeatureView, join_key: str) -> pl.Series:
        """The column that a view's join key is read from, under the aliases of the view's projection."""
        column = key_column(view, join_key)
        if column not in self.table.column_names:
            raise OfflineStoreError(
                f"view '{view.projection.name_to_use()}' needs the column '{column}' in entity_df: add it"
            )
        return pl.Series(column, self.table[column])

    def keys(self, view: FeatureView, source: Source, column_of: dict[str, str]) -> ViewKeys:
        """The entities of a view; keys are compared in the type that the source gives them."""
        columns, aliases = [], {}
        for number, join_key in enumerate(join_keys(view)):
            column = column_of.get(join_key, join_key)
            source.column(column, "a join key")
            aliases[join_key] = f"__key_{number}"
            columns.append(_as_key(view, self.key(view, join_key), source.schema[column]).alias(aliases[join_key]))
        asked = pl.DataFrame(columns) if columns else pl.DataFrame({"__none": pl.zeros(len(self), pl.Int8, eager=True)})
        return ViewKeys(asked, aliases)

    def metadata(self, feature_refs: list[str]) -> RetrievalMetadata:
        times = self.times_us
        bounds = (from_micros(times.min()), from_micros(times.max())) if len(times) else (None, None)
        keys = [name for name in self.table.column_names if name != self.time_column]
        return RetrievalMetadata(feature_refs, keys, *bounds)


def join_keys(view: FeatureView) -> list[str]:
    """Names of a view's join keys, as the view has them."""
    return [str(column.name) for column in view.entity_columns if column.name != DUMMY_ENTITY_ID]


def key_column(view: FeatureView, join_key: str) -> str:
    """The column of the entity frame that holds a view's join key."""
    return str(view.projection.join_key_map.get(join_key, join_key))


def _as_key(view: FeatureView, keys: pl.Series, kind: pl.DataType) -> pl.Series:
    """Label keys in the source's type. Raises OfflineStoreError where that would need guessing, as 1.0 for "1"."""
    given = keys.dtype
    texts = (pl.String, pl.Categorical, pl.Enum)
    same = given == kind or given == pl.Null or (given.is_numeric() and kind.is_numeric())
    if not (same or (kind in texts and (given in texts or given.is_integer()))):
        raise OfflineStoreError(
            f"view '{view.projection.name_to_use()}': column '{keys.name}' of entity_df is {given}, the source's key is "
            f"{kind}: cast it"
        )
    cast = keys.cast(kind, strict=False)
    if not (given.is_float() and kind.is_integer()):
        return cast
    return cast.zip_with((cast.cast(given) == keys).fill_null(False), pl.Series([None], dtype=kind))  # 1.5 is nobody


def _to_arrow(entity_df: EntityFrame) -> pa.Table:
    match entity_df:
        case pa.Table():
            return entity_df
        case pl.DataFrame():
            return entity_df.to_arrow()
        case pd.DataFrame():
            return pa.Table.from_pandas(entity_df, preserve_index=False)
        case str() if _SQL.match(entity_df):
            raise OfflineStoreError(
                "entity_df is SQL, which this store does not run: give the path of a Parquet file, or a pandas, Polars or Arrow table"
            )
        case str() | Path():
            return _read_parquet(Path(entity_df))
    raise OfflineStoreError(
        f"entity_df is a {type(entity_df).__name__}: use pandas, Polars, Arrow or the path of a Parquet file"
    )


def _read_parquet(path: Path) -> pa.Table:
    if not path.exists():
        raise OfflineStoreError(
            f"entity_df '{path}' is no Parquet file: give a path, or a pandas, Polars or Arrow table"
        )
    try:
        return pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise OfflineStoreError(
            f"entity_df '{path}' cannot be read as Parquet ({str(error).splitlines()[0]}): write it again"
        ) from error


def _time_column(schema: pa.Schema) -> str:
    if EVENT_TIMESTAMP in schema.names:
        return EVENT_TIMESTAMP
    times = [column.name for column in schema if pa.types.is_timestamp(column.type)]
    if len(times) != 1:
        raise OfflineStoreError(f"entity_df needs a column '{EVENT_TIMESTAMP}'; its time columns are {times}")
    return str(times[0])


def _times(table: pa.Table, column: str) -> pl.Series:
    """A column's times as Datetime[us, UTC]: timestamps of any unit, dates, or ISO 8601 text; without a zone they are UTC."""
    times = pl.Series(_LABEL_TIME, table[column])
    if times.dtype == pl.String:
        try:
            parsed = pd.to_datetime(times.to_pandas(), utc=True, format="ISO8601")
        except ValueError as error:
            raise OfflineStoreError(
                f"entity_df: column '{column}' holds text that is no ISO 8601 time: {error}"
            ) from error
        times = pl.Series(_LABEL_TIME, parsed)
    if not isinstance(times.dtype, pl.Datetime | pl.Date):
        raise OfflineStoreError(f"entity_df: column '{column}' is {times.dtype}, not a time: store it as a timestamp")
    return times.to_frame().select(utc(pl.col(_LABEL_TIME), times.dtype)).to_series()
