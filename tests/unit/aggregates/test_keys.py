"""Keys find the slots that they were given, by their bytes and not by their hash alone."""

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.aggregates import keys as module
from headrace.aggregates.keys import ABSENT, KeyTable, grouped


def strings(*texts: str) -> pl.Series:
    return pl.Series(texts, dtype=pl.String)


@settings(deadline=None)
@given(st.lists(st.lists(st.text(max_size=12), max_size=40), max_size=6), st.lists(st.text(max_size=12), max_size=20))
def test_a_key_keeps_the_slot_of_its_first_appearance(batches: list[list[str]], asked: list[str]) -> None:
    table, expected = KeyTable(), {}
    for batch in batches:
        slots = [expected.setdefault(key, len(expected)) for key in batch]
        assert table.add(strings(*batch)).tolist() == slots
    assert table.keys == list(expected)
    wanted = [*asked, *expected]
    assert table.find(strings(*wanted)).tolist() == [expected.get(key, ABSENT) for key in wanted]


def test_many_keys_are_found_again() -> None:
    table, keys = KeyTable(), [f"user-{i}" for i in range(30_000)]
    table.add(strings(*keys[:100]))
    table.add(strings(*keys))
    assert np.array_equal(table.find(strings(*keys)), np.arange(30_000))
    assert table.find(strings("user-30000")).tolist() == [ABSENT]


def test_keys_of_one_hash_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "hash_slices", lambda _, offsets, __: np.zeros(len(offsets) - 1, np.uint64))
    table = KeyTable()
    assert table.add(strings("a", "b", "a", "")).tolist() == [0, 1, 0, 2]
    assert table.find(strings("", "b", "c")).tolist() == [2, 1, ABSENT]


def test_a_slice_of_a_column_is_found_like_the_column() -> None:
    table = KeyTable()
    table.add(strings("a", "b", "c"))
    assert table.find(strings("x", "c", "a").slice(1)).tolist() == [2, 0]


def test_places_are_grouped_by_slot_in_their_order() -> None:
    assert grouped(np.array([2, 0, 2, 1, 0]), 4).tolist() == [1, 4, 3, 0, 2]
