"""Ranks of what was wanted, by hand. Items score 4, 3, 2, 1 for the first user and 1, 1, 1, 1 for the second."""

import numpy as np
import pytest
import torch

from training.fit import TrainError
from training.ranks import best_unseen, ndcg, rank_of, target_ranks
from training.requests import Histories

USERS = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
ITEMS = torch.tensor([[4.0, 1.0], [3.0, 1.0], [2.0, 1.0], [1.0, 1.0]])
NOTHING = Histories(np.array([0, 0, 0]), np.zeros(0, np.int64))
SEEN = Histories(np.array([0, 2, 3]), np.array([0, 3, 1]))


def test_a_rank_counts_what_scores_higher_and_half_of_what_scores_the_same() -> None:
    assert target_ranks(USERS, ITEMS, np.array([2, 2]), NOTHING).tolist() == [2, 1]


def test_in_a_list_too_half_of_what_scores_the_same_comes_before() -> None:
    scores = torch.tensor([[1.0, 1.0, 1.0, 1.0], [3.0, 2.0, 2.0, float("-inf")], [0.0, 1.0, 2.0, 3.0]])
    assert rank_of(torch.tensor([1, 2, 3]), scores).tolist() == [1, 1, 0]


def test_what_a_user_has_met_is_not_counted() -> None:
    assert target_ranks(USERS, ITEMS, np.array([2, 2]), SEEN).tolist() == [1, 1]


def test_the_best_unseen_come_first_and_minus_one_where_there_are_no_more() -> None:
    assert best_unseen(USERS[:1], ITEMS, SEEN.take(np.array([0])), 10).tolist() == [[1, 2, -1, -1]]
    assert best_unseen(USERS[:1], ITEMS, NOTHING.take(np.array([0])), 2).tolist() == [[0, 1]]


def test_many_requests_are_ranked_as_one_by_one() -> None:
    rng = np.random.default_rng(0)
    users, items = (torch.from_numpy(rng.normal(size=shape).astype(np.float32)) for shape in ((1_100, 4), (50, 4)))
    lengths = rng.integers(0, 9, 1_100)
    seen = Histories(np.concatenate([[0], np.cumsum(lengths)]), rng.integers(0, 25, lengths.sum()))
    targets = rng.integers(25, 50, 1_100)
    together = target_ranks(users, items, targets, seen)
    for row in (0, 511, 512, 1_099):
        scores = (users[row] @ items.T).numpy()
        others = np.setdiff1d(np.arange(50), seen.of(row))
        assert together[row] == (scores[others] > scores[targets[row]]).sum()


def test_a_model_whose_scores_are_no_numbers_is_no_good_one() -> None:
    with pytest.raises(TrainError, match="take a lower learning rate"):
        target_ranks(USERS * float("nan"), ITEMS, np.array([2, 2]), NOTHING)


def test_ndcg_is_by_place_and_zero_beyond_k() -> None:
    assert ndcg(np.array([0, 2, 9, 10]), 10) == pytest.approx([1.0, 0.5, 1 / np.log2(11), 0.0])
