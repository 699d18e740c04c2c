"""Metrics against hand arithmetic. Two requests: hits at places 1 and 3 of one with two relevant items; none of the other."""

import math

import numpy as np
import pytest

from training import metrics

HITS = np.array([[True, False, True], [False, False, False]])
RELEVANT = np.array([2, 1])


def test_recall_is_the_share_of_relevant_items_found_averaged_over_requests() -> None:
    assert metrics.recall_at(HITS, RELEVANT, 1) == pytest.approx((1 / 2 + 0) / 2)
    assert metrics.recall_at(HITS, RELEVANT, 3) == pytest.approx((2 / 2 + 0) / 2)


def test_hit_rate_counts_a_request_once() -> None:
    assert metrics.hit_rate_at(HITS, RELEVANT, 3) == 0.5


def test_ndcg_divides_by_the_best_possible_order() -> None:
    ideal = 1 / math.log2(2) + 1 / math.log2(3)
    assert metrics.ndcg_at(HITS, RELEVANT, 3) == pytest.approx((1 / math.log2(2) + 1 / math.log2(4)) / ideal / 2)
    assert metrics.ndcg_at(HITS, RELEVANT, 1) == pytest.approx(1 / 2)


def test_ndcg_beyond_the_slate_counts_missing_places_as_misses() -> None:
    assert metrics.ndcg_at(np.array([[True]]), np.array([1]), 10) == 1.0


def test_mrr_reads_the_first_hit_alone() -> None:
    assert metrics.mrr(np.array([[False, True, True], [True, False, False]]), np.array([2, 1])) == pytest.approx(0.75)


def test_a_request_without_relevant_items_is_left_out() -> None:
    assert metrics.recall_at(HITS, np.array([2, 0]), 3) == 1.0
    assert math.isnan(metrics.recall_at(HITS, np.array([0, 0]), 3))


def test_coverage_counts_distinct_items_and_no_empty_place() -> None:
    assert metrics.coverage_at(np.array([[0, 1, 2], [1, -1, -1]]), 8, 2) == 2 / 8


def test_auc_counts_ties_half() -> None:
    assert metrics.auc([0.9, 0.4, 0.4, 0.1], [1, 1, 0, 0]) == pytest.approx((1 + 1 + 0.5 + 1) / 4)


def test_auc_of_a_perfect_and_a_reversed_order() -> None:
    assert metrics.auc([3, 2, 1], [1, 0, 0]) == 1.0
    assert metrics.auc([1, 2, 3], [1, 0, 0]) == 0.0


def test_auc_of_one_label_alone_is_nan() -> None:
    assert math.isnan(metrics.auc([0.1, 0.2], [1, 1]))
