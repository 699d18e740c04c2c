"""Reads a column of features into NumPy, whether it is Arrow (training) or plain Python and NumPy (a request).

A column holds B values of one feature. What comes out is the same for the same values, so the formulas of
`headrace.models.preprocessing` are written once.
"""

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from headrace.arrays import Floats, Ints
from headrace.clock import to_micros

Column = Any  # pa.ChunkedArray | pa.Array | np.ndarray | Sequence; Arrow carries no types for mypy
Columns = Mapping[str, Column]
CodeOf = Callable[[object], int]


def numbers(column: Column) -> Floats:
    """Shape (B,). Null, NaN and infinite become NaN; a bool is 0 or 1."""
    return matrix(["column"], {"column": column}, len(column))[:, 0]


def matrix(names: Sequence[str], features: Columns, count: int) -> Floats:
    """The named features side by side, shape (count, len(names)): numbers, NaN for null, infinite, and what is not there."""
    table = np.full((count, len(names)), np.nan)
    for place, name in enumerate(names):
        if name in features:
            column = features[name]
            if not isinstance(column, np.ndarray):
                column = _rounded(column) if _is_arrow(column) else np.array(column, dtype=np.float64)
            table[:, place] = column
    table[~np.isfinite(table)] = np.nan
    return table


def codes(column: Column, code_of: CodeOf) -> Ints:
    """Shape (B,): `code_of` of each string. Each distinct value of an Arrow column is looked up once."""
    if _is_arrow(column):
        return _arrow_codes(column, code_of)
    return np.array(list(map(code_of, column)), dtype=np.int64)


def micros(column: Column) -> Ints:
    """Shape (B,): Unix microseconds of Arrow timestamps, `datetime64`, aware datetimes or integers."""
    if _is_arrow(column):
        if pa.types.is_timestamp(column.type):
            column = column.cast(pa.timestamp("us", tz=column.type.tz))
        return _to_numpy(column, pa.int64())
    if isinstance(column, np.ndarray) and column.dtype.kind == "M":
        return np.asarray(column.astype("datetime64[us]"), dtype=np.int64)
    if len(column) and set(map(type, column)) == {int}:
        return np.array(column, dtype=np.int64)
    values = (to_micros(value) if isinstance(value, datetime) else int(value) for value in column)
    return np.fromiter(values, dtype=np.int64, count=len(column))


def ragged(column: Column) -> tuple[Column, Ints]:
    """A column of lists as (all values in order, offsets of shape (B + 1,)). A null list is empty."""
    if _is_arrow(column):
        array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
        lengths = _to_numpy(pc.fill_null(pc.list_value_length(array), 0), pa.int64())
        return array.flatten(), np.concatenate([[0], np.cumsum(lengths)])
    lists: list[Sequence[object]] = [[] if value is None else value for value in column]
    offsets = np.concatenate([[0], np.cumsum([len(values) for values in lists])]).astype(np.int64)
    return (lists[0] if len(lists) == 1 else [value for values in lists for value in values]), offsets


def last_padded(flat: Ints, offsets: Ints, length: int) -> Ints:
    """The last `length` values of each list, the newest in the last column, zeros before. Shape (B, length)."""
    index_BL = offsets[1:, None] - length + np.arange(length)
    present_BL = index_BL >= offsets[:-1, None]
    padded_BL = np.zeros(index_BL.shape, dtype=np.int64)
    padded_BL[present_BL] = flat[index_BL[present_BL]]
    return padded_BL


def first_padded(flat: Ints, offsets: Ints, length: int) -> Ints:
    """The first `length` values of each list, zeros behind. Shape (B, length)."""
    index_BL = offsets[:-1, None] + np.arange(length)
    present_BL = index_BL < offsets[1:, None]
    padded_BL = np.zeros(index_BL.shape, dtype=np.int64)
    padded_BL[present_BL] = flat[index_BL[present_BL]]
    return padded_BL


def by_name(table: pa.Table) -> Columns:
    """The columns of an Arrow table by name."""
    return dict(zip(table.column_names, table.columns, strict=True))


def _is_arrow(column: Column) -> bool:
    return isinstance(column, pa.ChunkedArray | pa.Array)


def _to_numpy(column: Column, kind: pa.DataType) -> npt.NDArray[Any]:
    array = column.cast(kind)
    return np.asarray(array.to_numpy() if isinstance(array, pa.ChunkedArray) else array.to_numpy(zero_copy_only=False))


def _rounded(column: Column) -> npt.NDArray[Any]:
    """Integers above 2^53 as the float next to them, as NumPy and a request have it."""
    return _to_numpy(column.cast(pa.float64(), safe=False), pa.float64())


def _arrow_codes(column: Column, code_of: CodeOf) -> Ints:
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if isinstance(array, pa.ChunkedArray):  # combine_chunks keeps a chunked array where the strings exceed 2 GiB
        return np.concatenate([_arrow_codes(chunk, code_of) for chunk in array.chunks])
    encoded = array.dictionary_encode(null_encoding="encode")
    distinct = np.array([code_of(value) for value in encoded.dictionary.to_pylist()], dtype=np.int64)
    if len(distinct) == 0:
        return np.zeros(len(array), dtype=np.int64)
    return distinct[np.asarray(encoded.indices.to_numpy(zero_copy_only=False), dtype=np.int64)]
