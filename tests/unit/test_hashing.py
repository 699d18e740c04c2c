"""Columns hash as single strings do."""

import polars as pl
import pyarrow as pa
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.hashing import xxh64


@settings(deadline=None)  # the first example compiles
@given(st.lists(st.text(max_size=100), max_size=20), st.integers(0, 2**64 - 1))
def test_a_column_hashes_as_each_string_alone_does(strings: list[str], seed: int) -> None:
    expected = [xxhash.xxh64_intdigest(text.encode(), seed) for text in strings]
    assert xxh64(pa.array(strings, pa.string()), seed).tolist() == expected
    assert xxh64(pl.Series(strings, dtype=pl.String), seed).tolist() == expected


def test_a_slice_of_a_column_hashes_like_the_column() -> None:
    column = pa.array(["a", None, "bc", "", "user-17"])
    assert xxh64(column.slice(2)).tolist() == xxh64(column).tolist()[2:]
