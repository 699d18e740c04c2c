"""Metrics against hand arithmetic. Two requests: hits at places 1 and 3 of one with two relevant items; none of the other."""

import math

import numpy as np
import pytest

from training import metrics
from training.metrics import Bin

HITS = np.array([[True, False, True], [False, False, False]])
RELEVANT = np.array([2, 1])


def test_recall_is_the_share_of_relevant_items_found() -> None:
    assert metrics.recall_at(HITS, RELEVANT, 1).tolist() == [1 / 2, 0]
    assert metrics.recall_at(HITS, RELEVANT, 3).tolist() == [2 / 2, 0]


def test_hit_rate_counts_a_request_once() -> None:
    assert metrics.hit_rate_at(HITS, RELEVANT, 3).tolist() == [1, 0]


def test_ndcg_divides_by_the_best_possible_order() -> None:
    ideal = 1 / math.log2(2) + 1 / math.log2(3)
    found = 1 / math.log2(2) + 1 / math.log2(4)
    assert metrics.ndcg_at(HITS, RELEVANT, 3).tolist() == pytest.approx([found / ideal, 0])
    assert metrics.ndcg_at(HITS, RELEVANT, 1).tolist() == [1, 0]


def test_ndcg_beyond_the_slate_counts_missing_places_as_misses() -> None:
    assert metrics.ndcg_at(np.array([[True]]), np.array([1]), 10).tolist() == [1.0]


def test_average_precision_is_the_mean_precision_at_each_hit() -> None:
    assert metrics.average_precision_at(HITS, RELEVANT, 3).tolist() == pytest.approx([(1 / 1 + 2 / 3) / 2, 0])
    assert metrics.average_precision_at(HITS, RELEVANT, 1).tolist() == [1, 0]  # one place can hold one item at most


def test_average_precision_of_one_relevant_item_is_its_reciprocal_rank() -> None:
    one = np.array([[False, True, False], [True, False, False]])
    assert metrics.average_precision_at(one, np.array([1, 1]), 3).tolist() == [1 / 2, 1]


def test_reciprocal_rank_reads_the_first_hit_alone() -> None:
    hits = np.array([[False, True, True], [True, False, False], [False, False, False]])
    assert metrics.reciprocal_rank(hits, np.array([2, 1, 1])).tolist() == [1 / 2, 1, 0]


def test_a_request_without_relevant_items_is_left_out_of_the_mean() -> None:
    assert metrics.mean(metrics.recall_at(HITS, np.array([2, 0]), 3)) == 1.0
    assert math.isnan(metrics.mean(metrics.recall_at(HITS, np.array([0, 0]), 3)))


def test_novelty_is_the_mean_bits_of_the_items_shown_and_no_empty_place_counts() -> None:
    share = np.array([1 / 2, 1 / 4, 1 / 8, 1 / 8])
    slates = np.array([[0, 1, 2], [3, -1, -1], [-1, -1, -1]])
    found = metrics.novelty_at(slates, share, 2)
    assert found[:2].tolist() == [(1 + 2) / 2, 3]
    assert math.isnan(found[2])


def test_diversity_is_the_share_of_pairs_of_two_groups() -> None:
    group = np.array([0, 0, 1, 2, -1])
    slates = np.array([[0, 1, 2, 3], [0, 1, -1, -1], [0, 2, 4, -1], [0, 4, -1, -1]])
    found = metrics.diversity_at(slates, group, 4)
    # of (0, 0, 1, 2): five of six pairs differ; an item of no group makes no pair
    assert found[:3].tolist() == pytest.approx([5 / 6, 0, 1])
    assert math.isnan(found[3])


def test_coverage_counts_distinct_items_and_no_empty_place() -> None:
    exposure = metrics.exposure_at(np.array([[0, 1, 2], [1, -1, -1]]), 8, 2)
    assert exposure.tolist() == [1, 2, 0, 0, 0, 0, 0, 0]
    assert metrics.coverage(exposure) == 2 / 8


def test_gini_is_zero_of_equals_and_all_but_one_share_of_a_monopoly() -> None:
    assert metrics.gini(np.array([3, 3, 3, 3])) == 0.0
    assert metrics.gini(np.array([0, 5, 0, 0])) == 3 / 4
    # mean difference of all pairs over twice the mean, which is 7 / 3: 12 / 9 / (14 / 3) = 2 / 7
    assert metrics.gini(np.array([1, 4, 2])) == pytest.approx((3 + 1 + 2) * 2 / 9 / (2 * 7 / 3))
    assert math.isnan(metrics.gini(np.array([0, 0])))


def test_auc_counts_ties_half() -> None:
    assert metrics.auc([0.9, 0.4, 0.4, 0.1], [1, 1, 0, 0]) == pytest.approx((1 + 1 + 0.5 + 1) / 4)


def test_auc_of_a_perfect_and_a_reversed_order() -> None:
    assert metrics.auc([3, 2, 1], [1, 0, 0]) == 1.0
    assert metrics.auc([1, 2, 3], [1, 0, 0]) == 0.0


def test_auc_of_one_label_alone_is_nan() -> None:
    assert math.isnan(metrics.auc([0.1, 0.2], [1, 1]))


def test_a_row_of_weight_two_counts_as_two_rows() -> None:
    place, positive = np.array([2, 0, 1]), np.array([True, False, True])
    doubled = metrics.auc([0.9, 0.1, 0.1, 0.5], [1, 0, 0, 1])
    assert metrics.weighted_auc(place, positive, np.array([1.0, 2.0, 1.0])) == doubled
    assert math.isnan(metrics.weighted_auc(place, positive, np.array([1.0, 0.0, 1.0])))


def test_log_loss_is_the_surprise_at_what_happened() -> None:
    assert metrics.log_loss([0.25, 0.25], [1, 0]).tolist() == pytest.approx([math.log(4), math.log(4 / 3)])
    assert metrics.log_loss([0.0], [1])[0] == pytest.approx(-math.log(1e-12))


def test_rows_of_one_probability_are_calibrated_in_whatever_order_they_come() -> None:
    """Half of 30 happen, and .5 is said of all: no error, though bins of two rows cut the happened from the others."""
    for labels in ([0] * 15 + [1] * 15, [0, 1] * 15):
        bins = metrics.calibration_bins([0.5] * 30, labels)
        assert metrics.calibration_error(bins) == pytest.approx(0.0)
    two = metrics.calibration_bins([0.2, 0.2, 0.2, 0.6], [1, 0, 0, 1], bins=2)
    assert [each.observed for each in two] == pytest.approx([1 / 3, (1 / 3 + 1) / 2])


def test_calibration_bins_hold_equal_numbers_of_rows_in_the_order_of_probability() -> None:
    bins = metrics.calibration_bins([0.9, 0.1, 0.7, 0.3], [1, 0, 0, 1], bins=2)
    assert bins == (Bin(pytest.approx(0.2), 0.5, 2), Bin(pytest.approx(0.8), 0.5, 2))
    assert metrics.calibration_error(bins) == pytest.approx((2 * 0.3 + 2 * 0.3) / 4)


def test_fewer_rows_than_bins_are_a_bin_each() -> None:
    assert [each.rows for each in metrics.calibration_bins([0.2, 0.4], [0, 1])] == [1, 1]
    assert math.isnan(metrics.calibration_error(()))
