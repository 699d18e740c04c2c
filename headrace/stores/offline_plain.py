"""The point-in-time join of plain views: for each label row, the newest row of its entity at or before its time.

Keys and times are read first, and tell which row of the scan each label sees; then those rows alone are fetched, so that
a wide table takes no more memory than the answer.
"""

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
import polars as pl
import pyarrow as pa
from feast import FeatureView
from feast.types import FeastType, from_feast_to_pyarrow_type

from headrace.aggregates.batch_events import Codes, as_codes
from headrace.arrays import Ints
from headrace.settings import MICROS
from headrace.stores.offline_labels import Labels, ViewKeys
from headrace.stores.offline_memory import key_ranges
from headrace.stores.offline_newest import CODE, ROW, TIME, Created, newest_before, newest_of_each
from headrace.stores.sources import OfflineStoreError, Source

_BYTES_PER_ROW: Final = 64
"""Of a row's key, time and number, at the peak."""
_CHUNK_BYTES: Final = 1 << 30
"""Of a column: Arrow counts the bytes of text in 32 bits."""


def plain_features(
    view: FeatureView, source: Source | None, features: Sequence[str], labels: Labels, bound: int, arrived_only: bool
) -> dict[str, pa.ChunkedArray]:
    """The features of a plain view for each label row: of the newest row at or before its time; null without one or past the TTL."""
    declared = {feature.name: _arrow_type(feature.dtype) for feature in view.features}
    if source is None:
        return {name: pa.chunked_array([pa.nulls(len(labels), declared[name] or pa.null())]) for name in features}
    column_of = {name: column for column, name in (view.batch_source.field_mapping or {}).items()}
    columns = {name: column_of.get(name, name) for name in features}
    for name, column in columns.items():
        source.column(column, f"feature '{name}'")
    keys = labels.keys(view, source, column_of)
    seen = _seen_rows(view, source, keys, column_of, labels.times_us, bound, arrived_only)
    values = source_rows(source, source.rows.select(list(dict.fromkeys(columns.values()))), seen)
    return {
        name: _as_declared(values[column], declared[name], f"{source.name}: feature '{name}'")
        for name, column in columns.items()
    }


def _seen_rows(
    view: FeatureView,
    source: Source,
    keys: ViewKeys,
    column_of: Mapping[str, str],
    times_us: Ints,
    bound: int,
    arrived_only: bool,
) -> Ints:
    """(Q,) number in the scan of the row that each label sees; -1 for none."""
    seen = np.full(len(times_us), -1, dtype=np.int64)
    if not len(times_us):
        return seen
    ttl_us = round(view.ttl.total_seconds() * MICROS) if view.ttl else None
    time = source.time(view.batch_source.timestamp_field, "the timestamp")
    created = created_times(source, view.batch_source.created_timestamp_column or view.batch_source.timestamp_field)
    in_time = time <= _moment(times_us.max())
    if ttl_us is not None:
        in_time &= time >= _moment(times_us.min() - ttl_us)
    on = [column_of.get(key, key) for key in keys.columns]
    rows = source.rows.with_row_index(ROW).filter(in_time).select(ROW, *on, time.to_physical().alias(TIME))
    for labels in key_ranges(source, rows, keys, on, _BYTES_PER_ROW, bound):
        codes, times = keys.codes[labels], times_us[labels]
        found = source.collect(_of_entities(rows, keys, codes, on).select(ROW, CODE, TIME))
        numbers, ages = newest_before(found, created, codes, times, keys.frame.height, arrived_only)
        seen[labels] = numbers if ttl_us is None else np.where(ages <= ttl_us, numbers, -1)
    return seen


def _of_entities(rows: pl.LazyFrame, keys: ViewKeys, codes: Codes, on: list[str]) -> pl.LazyFrame:
    """The rows of some entities, with their CODE; of a view without keys, all rows."""
    if not on:
        return rows.with_columns(pl.lit(0, pl.UInt32).alias(CODE))
    asked = np.zeros(keys.frame.height, dtype=np.bool_)
    asked[codes] = True
    return rows.join(keys.frame.filter(asked).lazy(), left_on=on, right_on=list(keys.columns.values()))


def latest_rows(source: Source, numbered: pl.LazyFrame, keys: Sequence[str], time: str, created: Created) -> Ints:
    """Number of the newest of the `numbered` rows of each entity; without keys, of them all."""
    frame = source.collect(numbered.select(ROW, *keys, pl.col(time).to_physical().alias(TIME)))
    if not keys:
        return newest_of_each(frame.with_columns(pl.lit(0, pl.UInt32).alias(CODE)), created, 1)
    codes, entities = as_codes(frame.select(keys), CODE)
    return newest_of_each(frame.select(ROW, TIME, pl.Series(CODE, codes)), created, entities.height)


def created_times(source: Source, column: str) -> Created:
    """Looks up created times by row number."""
    created = source.rows.select(source.time(column, "the created time").to_physical().alias("created"))
    return lambda numbers: source_rows(source, created, numbers)["created"]


def source_rows(source: Source, rows: pl.LazyFrame, numbers: Ints) -> pl.DataFrame:
    """(Q,) the numbered ones of a source's rows, null at -1. Holds no more of the source than that."""
    numbers = numbers.astype(np.int64, copy=False)
    wanted = np.zeros(int(numbers.max(initial=-1)) + 1, dtype=np.bool_)
    wanted[numbers[numbers >= 0]] = True
    mask, number = pl.lit(pl.Series(wanted)), pl.col(ROW)
    among = rows.with_row_index(ROW).head(len(wanted)).filter(mask.gather(number)).drop(ROW)
    chosen = source.collect(among).rechunk()
    if chosen.height < np.count_nonzero(wanted):
        raise OfflineStoreError(f"{source.name} was replaced while it was read: ask again")
    at = pl.Series(np.append(np.cumsum(wanted) - 1, -1)[numbers])
    return chosen.select(pl.all().gather(at.set(at < 0, None)))


def _arrow_type(kind: FeastType) -> pa.DataType | None:
    """None where Feast names no Arrow type, as for bytes: then the source's own stands."""
    try:
        return from_feast_to_pyarrow_type(kind)
    except ValueError:
        return None


def _as_declared(values: pl.Series, kind: pa.DataType | None, what: str) -> pa.ChunkedArray:
    """A feature in the type that its view declares."""
    step = max(1, len(values) * _CHUNK_BYTES // max(int(values.estimated_size()), 1))
    chunks = [values.slice(start, step).to_arrow() for start in range(0, max(len(values), 1), step)]
    try:
        return pa.chunked_array(chunks if kind is None else [chunk.cast(kind) for chunk in chunks])
    except pa.ArrowException as error:
        raise OfflineStoreError(
            f"{what} is {values.dtype} in the source and {kind} in the view, and cannot be converted "
            f"({str(error).splitlines()[0]}): correct one of the two"
        ) from error


def _moment(micros: int) -> pl.Expr:
    return pl.lit(int(micros)).cast(pl.Datetime("us", "UTC"))
