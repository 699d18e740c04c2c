import numpy as np
import polars as pl
import pytest

from training.baselines import co_occurrence_scores, neighbours, popularity

ITEMS = ["a", "b", "c", "d"]
WALKS = pl.DataFrame(
    {"user_id": ["u", "u", "u", "v", "v"], "item_id": ["a", "b", "c", "a", "b"], "t_us": [1, 2, 3, 1, 2]},
)


def test_popularity_counts_episodes_and_is_zero_for_an_item_without_any() -> None:
    assert popularity(WALKS, ITEMS).tolist() == [2, 2, 1, 0]


def test_neighbours_are_items_of_the_same_walk_weighted_by_their_own_pairs() -> None:
    places, scores = neighbours(WALKS, ITEMS, k=2)
    # pairs: a-b twice, a-c once, b-c once; so a has 3, b has 3, c has 2
    assert places.tolist() == [[1, 2], [0, 2], [0, 1], [-1, -1]]
    assert scores[0].tolist() == pytest.approx([2 / 3, 1 / 6**0.5])


def test_reach_bounds_how_far_apart_two_episodes_may_be() -> None:
    places, _ = neighbours(WALKS, ITEMS, k=2, reach=1)
    assert places.tolist() == [[1, -1], [0, 2], [1, -1], [-1, -1]]


def test_newer_items_of_a_history_count_more_and_popularity_settles_ties() -> None:
    near = np.array([[1], [2], [-1], [-1]], dtype=np.int32)
    score = np.array([[0.5], [0.5], [0], [0]], dtype=np.float32)
    popular = np.array([4, 2, 1, 0], dtype=np.float32)
    scores = co_occurrence_scores(np.array([[-1, 0, 1], [-1, -1, -1]]), near, score, popular, decay=0.5)
    assert scores[0].tolist() == pytest.approx([1e-6, 0.25 + 5e-7, 0.5 + 2.5e-7, 0.0])
    assert scores[1].argsort()[::-1].tolist() == [0, 1, 2, 3]
