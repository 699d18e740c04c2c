"""Folds over moving windows, against the same folded afresh for each window."""

from math import fsum
from statistics import pstdev

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.aggregates.batch_order import Ordered, by_entity_and_time, first_places, places_before
from headrace.aggregates.batch_windows import fold_windows

# Of numbers below 1e-150 no square is left.
NUMBERS = st.floats(-1e6, 1e6).map(lambda x: x if abs(x) > 1e-150 else 0.0)
EVENTS = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 50), NUMBERS), max_size=60)
PAIRS = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 60)), min_size=1, max_size=30)
HALF_LIFE = 8


def decayed(values: list[tuple[int, float]], t: int) -> float:
    return fsum(x * 0.5 ** ((t - at) / HALF_LIFE) for at, x in values)


EXPECTED = {
    "sum": lambda window, t: fsum(x for _, x in window),
    "mean": lambda window, t: fsum(x for _, x in window) / len(window),
    "min": lambda window, t: min(x for _, x in window),
    "max": lambda window, t: max(x for _, x in window),
    "std": lambda window, t: pstdev(x for _, x in window),
    "decayed_sum": decayed,
}


def fold(function: str, values: np.ndarray, timeline: Ordered, asked: Ordered, width: int | None) -> np.ndarray:
    last = places_before(timeline, asked, asked.times)
    first = first_places(timeline, asked) if width is None else places_before(timeline, asked, asked.times - width)
    return fold_windows(function, values[timeline.rows], timeline, asked, first, last, HALF_LIFE)


@pytest.mark.parametrize("function", EXPECTED)
@settings(max_examples=60, deadline=None)
@given(EVENTS, PAIRS, st.sampled_from([1, 5, 17, None]))
def test_a_fold_is_that_of_the_windows_own_values(
    function: str, events: list[tuple[int, int, float]], pairs: list[tuple[int, int]], width: int | None
) -> None:
    timeline = by_entity_and_time(
        np.array([c for c, _, _ in events], np.uint32), np.array([t for _, t, _ in events], np.int64), 3
    )
    asked = by_entity_and_time(np.array([c for c, _ in pairs], np.uint32), np.array([t for _, t in pairs], np.int64), 3)
    got = fold(function, np.array([x for _, _, x in events], np.float64), timeline, asked, width)
    for row, value in zip(asked.rows, got, strict=True):
        code, t = pairs[row]
        window = [(at, x) for c, at, x in events if c == code and at < t and (width is None or at >= t - width)]
        scale = fsum(abs(x) for _, x in window)
        expected = EXPECTED[function](window, t) if window else 0.0
        assert value == pytest.approx(expected, rel=0, abs=1e-12 * scale)


def one_entity(values: list[float]) -> tuple[np.ndarray, Ordered, Ordered]:
    """Values a microsecond apart, asked about once after each."""
    times, codes = np.arange(len(values)), np.zeros(len(values), np.uint32)
    return np.array(values), by_entity_and_time(codes, times, 1), by_entity_and_time(codes, times + 1, 1)


def test_a_sum_of_a_million_prices_is_exact_to_the_last_digit() -> None:
    values = np.random.default_rng(0).random(1_000_000) * 1e3
    got = fold("sum", *one_entity(values.tolist()), None)
    assert got[-1] == fsum(values)


def test_what_has_left_the_window_leaves_no_trace() -> None:
    assert fold("sum", *one_entity([1e300, -1.0, 0.1, 0.2]), 2).tolist() == [1e300, 1e300, -0.9, 0.1 + 0.2]
    assert fold("std", *one_entity([1e300, 3.0, 3.0, 5.0]), 2).tolist()[2:] == [0.0, 1.0]


def test_a_decayed_sum_of_ancient_events_is_zero_and_not_null() -> None:
    values, timeline, _ = one_entity([5.0, 7.0])
    asked = by_entity_and_time(np.zeros(1, np.uint32), np.array([10**7]), 1)
    assert fold("decayed_sum", values, timeline, asked, None).tolist() == [0.0]
