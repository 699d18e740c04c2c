"""How near candidates are to a history, beside the sum written out."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.models.neighbours import DECAY, SCALE, Neighbours
from headrace.models.preprocessing import Catalogue

FIRST = Catalogue.FIRST
# a is turned to around b and c, b around a; nobody around c
TABLE = Neighbours.of_items(
    np.array([[1, 2], [0, -1], [-1, -1]], np.int32), np.array([[0.5, 0.25], [0.5, 0], [0, 0]], np.float32)
)
A, B, C = FIRST, FIRST + 1, FIRST + 2


def nearness(history: list[int], candidates: list[int], table: Neighbours = TABLE) -> list[float]:
    """Before the logarithm."""
    found = table.nearness(np.array([history], np.int64), np.array([candidates], np.int64))[0]
    return [pytest.approx(each) for each in (np.expm1(found.astype(np.float64)) / SCALE).tolist()]


def test_a_candidate_is_as_near_as_it_is_to_the_items_of_the_history_newer_ones_more() -> None:
    assert nearness([A], [A, B, C]) == [0, 0.5, 0.25]
    assert nearness([A, C], [B, C]) == [DECAY * 0.5, DECAY * 0.25]
    assert nearness([A, B, A], [A, B]) == [DECAY * 0.5, 0.5 + DECAY**2 * 0.5]


def test_empty_places_weigh_nothing_and_count_as_places() -> None:
    assert nearness([0, 0, A], [B]) == [0.5]
    assert nearness([A, 0], [B]) == [DECAY * 0.5]
    assert nearness([0, 0], [A, B]) == nearness([], [A, B]) == [0, 0]


def test_padding_items_that_nobody_knows_and_items_behind_the_end_are_nobodys_neighbours() -> None:
    assert nearness([1, A, C + 7], [0, 1, C + 7, A]) == [0, 0, 0, 0]


def test_a_candidate_that_stands_twice_has_its_nearness_twice() -> None:
    assert nearness([A], [B, A, B]) == [0.5, 0, 0.5]


def test_without_candidates_or_users_there_is_nothing() -> None:
    assert TABLE.nearness(np.zeros((2, 3), np.int64), np.zeros((2, 0), np.int64)).shape == (2, 0)
    assert TABLE.nearness(np.zeros((0, 3), np.int64), np.zeros((0, 4), np.int64)).shape == (0, 4)


def test_items_stand_where_the_catalogue_has_them() -> None:
    table = Neighbours(TABLE.near_NK, TABLE.scores_NK, np.array([9, 4, 6]))
    assert nearness([9], [4, 6, A, B], table) == [0.5, 0.25, 0, 0]
    assert nearness([A, B, C], [9, 4, 6], table) == [0.5, 0, 0]  # row 4 is b


def test_rows_have_the_places_of_their_items() -> None:
    assert TABLE.places(np.array([C, A, 0, C + 1, B])).tolist() == [2, 0, -1, -1, 1]
    elsewhere = Neighbours(TABLE.near_NK, TABLE.scores_NK, np.array([9, 4, 6]))
    assert elsewhere.places(np.array([4, 5, 9])).tolist() == [1, -1, 0]
    assert elsewhere.places(np.zeros(0, np.int64)).tolist() == []


def test_numbers_of_any_width_are_rows() -> None:
    found = TABLE.nearness(np.array([[A]], np.int32), np.array([[B, C]], np.int32))
    assert found.tolist() == TABLE.nearness(np.array([[A]]), np.array([[B, C]])).tolist()


@st.composite
def tables(draw: st.DrawFn) -> tuple[Neighbours, np.ndarray, np.ndarray]:
    """Of up to 12 items, with rows of histories and candidates of any kind."""
    items, k = draw(st.integers(1, 12)), draw(st.integers(1, 4))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    counts = rng.integers(0, min(k, items) + 1, items)
    near_IK, scores_IK = np.full((items, k), -1, np.int32), np.zeros((items, k), np.float32)
    for item, count in enumerate(counts):
        near_IK[item, :count] = rng.permutation(items)[:count]
        scores_IK[item, :count] = rng.random(count)
    history_BL = rng.integers(0, items + FIRST + 2, (3, draw(st.integers(0, 6))))
    rows = rng.permutation(items + 4)[:items]
    return Neighbours(near_IK, scores_IK, rows), history_BL, rng.integers(0, items + FIRST + 2, (3, 9))


@given(tables())
def test_it_is_the_sum_over_the_history_of_each_items_score(case: tuple[Neighbours, np.ndarray, np.ndarray]) -> None:
    table, history_BL, candidates_BN = case
    expected, rows = np.zeros(candidates_BN.shape), table.row_N.tolist()
    for user, candidate in np.ndindex(candidates_BN.shape):
        for place, row in enumerate(history_BL[user]):
            if row in rows:
                near_K = table.near_NK[rows.index(row)]
                is_it = (near_K >= 0) & (table.row_N[near_K] == candidates_BN[user, candidate])
                weight = DECAY ** (history_BL.shape[1] - 1 - place)
                expected[user, candidate] += weight * table.scores_NK[rows.index(row)][is_it].sum()
    assert np.allclose(table.nearness(history_BL, candidates_BN), np.log1p(SCALE * expected), atol=1e-5)
