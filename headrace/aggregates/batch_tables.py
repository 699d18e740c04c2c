"""The answers of the batch engine as Arrow columns: single values, lists, and tables put together from parts.

Arrow counts the bytes of a text column in 32 bits, so what may be long is built in chunks.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from headrace.aggregates.batch_order import read_only
from headrace.arrays import Ints
from headrace.hashing import string_buffers
from headrace.kernel import kernel

_CHUNK_BYTES: Final = 1 << 28


def picked(values: pl.Series, rows: Ints, kind: pa.DataType) -> pa.Array:
    """`values` at the rows; null at a row of -1."""
    at = pl.Series(rows).set(pl.Series(rows < 0), None)
    return values.gather(at).to_arrow().cast(kind) if len(values) else pa.nulls(len(rows), kind)


def listed(values: pl.Series, first: Ints, last: Ints, kind: pa.DataType) -> pa.ChunkedArray:
    """For each pair the list values[first:last]. `values` (N,) has no nulls."""
    if pa.types.is_string(kind):
        ends, data = string_buffers(values)
        sizes = ends[last] - ends[first] + 4 * (last - first)
    else:
        numbers = values.to_physical().cast(pl.Float64 if pa.types.is_floating(kind) else pl.Int64).to_numpy()
        sizes = 8 * (last - first)
    chunks = []
    for start, stop in _slices(sizes):
        some_first, some_last = first[start:stop], last[start:stop]
        lengths = np.concatenate([[0], np.cumsum(some_last - some_first)])
        if pa.types.is_string(kind):
            cuts, text = _copied_texts(read_only(ends), read_only(data), some_first, some_last)
            items = pa.StringArray.from_buffers(len(cuts) - 1, pa.py_buffer(cuts), pa.py_buffer(text))
        else:
            items = pa.array(_copied(read_only(numbers), some_first, some_last), kind)
        chunks.append(pa.ListArray.from_arrays(pa.array(lengths, pa.int32()), items, type=pa.list_(kind)))
    return pa.chunked_array(chunks, pa.list_(kind))


def _slices(sizes: Ints) -> Iterator[tuple[int, int]]:
    """Consecutive lists that together hold about a chunk's bytes."""
    ends = np.cumsum(sizes)
    start = 0
    while start < len(sizes):
        before = ends[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, before + _CHUNK_BYTES, side="right")))
        yield start, stop
        start = stop


@kernel
def _copied(values: npt.NDArray[Any], first: Ints, last: Ints) -> npt.NDArray[Any]:
    """values[first[0]:last[0]], values[first[1]:last[1]], ... one after another."""
    copies = np.empty(np.sum(last - first), values.dtype)
    at = 0
    for pair in range(len(first)):
        source = values[first[pair] : last[pair]]
        target = copies[at : at + len(source)]
        for i in range(len(target)):
            target[i] = source[i]
        at += len(source)
    return copies


@kernel
def _copied_texts(
    ends: Ints, data: npt.NDArray[np.uint8], first: Ints, last: Ints
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.uint8]]:
    """The same of texts, text i being data[ends[i]:ends[i + 1]]: where each copy ends, from 0, and their bytes."""
    cuts = np.zeros(np.sum(last - first) + 1, np.int32)
    copies = np.empty(np.sum(ends[last] - ends[first]), np.uint8)
    at, size = 1, 0
    for pair in range(len(first)):
        begin = ends[first[pair]]
        source = ends[first[pair] + 1 : last[pair] + 1]
        target = cuts[at : at + len(source)]
        for i in range(len(target)):
            target[i] = source[i] - begin + size
        at += len(source)
        text = data[begin : ends[last[pair]]]
        copy = copies[size : size + len(text)]
        for i in range(len(copy)):
            copy[i] = text[i]
        size += len(text)
    return cuts, copies


def put_back(tables: Sequence[pa.Table], rows: Sequence[Ints]) -> pa.Table:
    """One table of several, `tables[i]` holding the rows `rows[i]` of it. Together they hold each row once."""
    if len(tables) == 1:
        return tables[0]
    whole = pa.concat_tables(tables)
    order = np.empty(whole.num_rows, dtype=np.int64)
    order[np.concatenate(rows)] = np.arange(whole.num_rows)
    return pa.table([_take(column, order) for column in whole.columns], schema=whole.schema)


def _take(column: pa.ChunkedArray, order: Ints) -> pa.ChunkedArray:
    """`column` in another order, in chunks whose strings Arrow can count."""
    step = max(1, len(order) * _CHUNK_BYTES // max(column.nbytes, 1))
    chunks: list[Any] = [column.take(pa.array(order[at : at + step])) for at in range(0, len(order), step)]
    return pa.chunked_array([chunk for taken in chunks for chunk in taken.chunks], column.type)
