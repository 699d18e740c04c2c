"""The order that the batch engine works in, and its sweeps, against sorted lists and bisection."""

from bisect import bisect_left
from itertools import pairwise

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.aggregates.batch_order import by_entity_and_time, first_places, places_before

ROWS = st.lists(st.tuples(st.integers(0, 3), st.integers(-5, 5)), max_size=40)


def arrays(rows: list[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([code for code, _ in rows], np.uint32), np.array([time for _, time in rows], np.int64)


@settings(max_examples=200, deadline=None)
@given(ROWS)
def test_rows_stand_by_entity_and_time_and_equal_ones_as_given(rows: list[tuple[int, int]]) -> None:
    order = by_entity_and_time(*arrays(rows), 5)
    expected = sorted(range(len(rows)), key=lambda row: rows[row])
    assert order.rows.tolist() == expected
    assert order.times.tolist() == [rows[row][1] for row in expected]
    assert np.diff(order.starts).tolist() == [sum(code == c for code, _ in rows) for c in range(5)]


@settings(max_examples=200, deadline=None)
@given(ROWS, ROWS)
def test_a_sweep_places_each_question_as_bisection_does(
    rows: list[tuple[int, int]], questions: list[tuple[int, int]]
) -> None:
    order, asked = by_entity_and_time(*arrays(rows), 4), by_entity_and_time(*arrays(questions), 4)
    firsts, places = first_places(order, asked).tolist(), places_before(order, asked, asked.times).tolist()
    for question, first, place in zip(asked.rows.tolist(), firsts, places, strict=True):
        code, time = questions[question]
        times = sorted(t for c, t in rows if c == code)
        assert first == sum(c < code for c, _ in rows)
        assert place == first + bisect_left(times, time)


@settings(max_examples=200, deadline=None)
@given(ROWS)
def test_ties_are_the_places_that_share_entity_and_time(rows: list[tuple[int, int]]) -> None:
    ordered = sorted(rows)
    expected = {n for i, (one, other) in enumerate(pairwise(ordered)) if one == other for n in (i, i + 1)}
    assert by_entity_and_time(*arrays(rows), 4).tied().tolist() == sorted(expected)


def test_many_descending_runs_are_merged() -> None:
    times = np.concatenate([np.arange(start, start + 7) for start in range(700, 0, -7)])
    order = by_entity_and_time(np.zeros(len(times), np.uint32), times, 1)
    assert order.times.tolist() == sorted(times.tolist())
    assert times[order.rows].tolist() == order.times.tolist()
