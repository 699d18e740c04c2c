import numpy as np
import polars as pl
import pytest

from training import baselines
from training.baselines import (
    co_occurrence_scores,
    item_knn,
    item_knn_scores,
    neighbours,
    popularity,
    recent_popularity,
)
from training.requests import Histories

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


def test_popularity_of_late_halves_with_every_half_life_and_knows_nothing_of_the_future() -> None:
    scores = recent_popularity(WALKS, ITEMS, half_life_us=1.0)
    # at 3: a was met twice 2 before, b twice 1 before; c only at 3 itself
    assert scores(np.array([3, 1, 4])).tolist() == [[2 / 4, 2 / 2, 0, 0], [0, 0, 0, 0], [2 / 8, 2 / 4, 1 / 2, 0]]


def test_popularity_of_late_leaves_out_what_the_catalogue_lacks() -> None:
    assert recent_popularity(WALKS, ["b"], half_life_us=1.0)(np.array([3])).tolist() == [[1.0]]


WHO_TURNED_TO_WHAT = pl.DataFrame(
    {"user_id": ["u", "u", "v", "v", "v", "w", "u"], "item_id": ["a", "b", "a", "b", "c", "c", "a"]}
)


@pytest.mark.parametrize("block", [1, 256])
def test_likeness_is_the_cosine_over_users_and_no_item_is_like_itself(
    block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(baselines, "_BLOCK", block)
    near, scores = item_knn(WHO_TURNED_TO_WHAT, ITEMS, k=3)
    # a: u, v; b: u, v; c: v, w; d: nobody. An item that a user met twice counts once.
    assert near.tolist() == [[1, 2, -1], [0, 2, -1], [0, 1, -1], [-1, -1, -1]]
    assert scores == pytest.approx(np.array([[1, 1 / 2, 0], [1, 1 / 2, 0], [1 / 2, 1 / 2, 0], [0, 0, 0]]))


def test_only_the_nearest_are_kept_of_equals_the_first() -> None:
    assert item_knn(WHO_TURNED_TO_WHAT, ITEMS, k=1)[0].tolist() == [[1], [0], [0], [-1]]


def test_likeness_to_each_item_of_a_history_is_summed_once_an_item_and_popularity_settles_ties() -> None:
    near = item_knn(WHO_TURNED_TO_WHAT, ITEMS, k=3)
    history = Histories(np.array([0, 3, 3]), np.array([1, 0, 1]))
    popular = np.array([4, 2, 1, 0], dtype=np.float32)
    scores = item_knn_scores(history, *near, popular)(slice(0, 2))
    assert scores[0].tolist() == pytest.approx([1 + 1e-6, 1 + 5e-7, 1 + 2.5e-7, 0])
    assert scores[1].tolist() == pytest.approx([1e-6, 5e-7, 2.5e-7, 0])
    assert history.places.tolist() == [1, 0, 1]


def test_nobody_turning_to_anything_is_like_nothing() -> None:
    near, scores = item_knn(WHO_TURNED_TO_WHAT.clear(), ITEMS, k=2)
    assert (near.tolist(), scores.tolist()) == ([[-1, -1]] * 4, [[0.0, 0.0]] * 4)
