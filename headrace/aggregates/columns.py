"""Columns of events as the incremental engine reads them: NumPy arrays, NaN or a mask for null, times in microseconds.

What Polars runs as an expression costs a fixed time, which batches of a few events would feel: columns are cast and seen as they are.
"""

from collections.abc import Sequence

import numpy as np
import polars as pl

from headrace import names
from headrace.aggregates import spec as sp
from headrace.aggregates.expressions import evaluate
from headrace.arrays import Floats, Ints, Mask
from headrace.hashing import Hashes, hash_slices, xxh64

_TYPES = pl.Enum(list(names.EVENT_TYPES))
_TYPE_CODE = {event_type: code for code, event_type in enumerate(names.EVENT_TYPES)}


def concerned(spec: sp.ViewSpec, events: pl.DataFrame, codes: Ints) -> Mask:
    """What `concerns` says, of events whose `type_codes` are known. Shape (events,)."""
    return of_types(codes, spec.types) & is_there(spec.entity_column, events)


def concerns(spec: sp.ViewSpec) -> pl.Expr:
    """True for events that change a view's state."""
    return pl.col(names.TYPE).is_in(list(spec.types)) & pl.col(spec.entity_column).is_not_null()


def events_of(spec: sp.ViewSpec, events: pl.DataFrame, also: Sequence[str] = ()) -> pl.DataFrame:
    """The events that change a view's state, with the columns it needs and those named."""
    return events.filter(concerns(spec)).select(*dict.fromkeys([*spec.columns, *also]))


def type_codes(events: pl.DataFrame) -> Ints:
    """The place of each event's type in `names.EVENT_TYPES`. Shape (events,)."""
    return np.asarray(events[names.TYPE].cast(_TYPES).to_arrow().indices).astype(np.int64)


def type_mask(types: Sequence[str]) -> int:
    """Bit i is set where the i-th of `names.EVENT_TYPES` is among the types."""
    return sum(1 << _TYPE_CODE[event_type] for event_type in types)


def of_types(codes: Ints, types: Sequence[str]) -> Mask:
    """True for events of the types. Shape (events,)."""
    return np.asarray((type_mask(types) >> codes) & 1, np.bool_)


def micros(times: pl.Series) -> Ints:
    """Datetime as Unix microseconds. Shape (len(times),)."""
    return integers(times)


def integers(column: pl.Series) -> Ints:
    """A column of integers or times (in microseconds); what stands at nulls means nothing. Shape (len(column),)."""
    if isinstance(column.dtype, pl.Datetime) and column.dtype.time_unit != "us":
        column = column.dt.cast_time_unit("us")
    values = column.cast(pl.Int64).to_arrow()
    return np.frombuffer(values.buffers()[1], np.int64)[values.offset : values.offset + len(values)]


def numbers(expression: str, events: pl.DataFrame) -> Floats:
    """An expression's values, NaN for null; of a column that is no number, 1 where it is not null. Shape (events,)."""
    columns = {name: _floats(events[name]) for name in sp.columns_of(expression) or {names.EVENT_ID}}
    return evaluate(expression, columns)


def is_there(expression: str, events: pl.DataFrame) -> Mask:
    """True where an expression is not null. Shape (events,)."""
    if expression in events.columns and not events[expression].dtype.is_float():
        return ~_is_null(events[expression])
    return ~np.isnan(numbers(expression, events))


def value_hashes(expression: str, events: pl.DataFrame) -> Hashes:
    """What `count_distinct` knows a value by: xxh64 of a string's UTF-8, or of the eight bytes of an integer, a time or a float.

    What stands at nulls means nothing. Shape (events,).
    """
    if expression not in events.columns or events[expression].dtype.is_float():
        words = (numbers(expression, events) + 0.0).view(np.int64)  # -0.0 becomes 0.0
    elif events[expression].dtype == pl.String:
        return xxh64(events[expression])
    else:
        words = integers(events[expression])
    return np.asarray(hash_slices(words.view(np.uint8), np.arange(0, words.nbytes + 1, 8), np.uint64(0)))


def _floats(column: pl.Series) -> Floats:
    if not column.dtype.is_numeric():  # `count` of a column that is no number: only null or not matters
        return np.where(_is_null(column), np.nan, 1.0)
    return column.cast(pl.Float64).to_numpy()


def _is_null(column: pl.Series) -> Mask:
    return column.is_null().to_numpy() if column.null_count() else np.zeros(len(column), np.bool_)
