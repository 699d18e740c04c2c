import numpy as np
import pytest

from training import intervals
from training.intervals import Estimate, estimates, resampled_means, resampled_users, wilson

SEED = 7


def test_two_users_resample_to_the_three_means_that_there_are() -> None:
    means = resampled_means(np.array([[0.0], [1.0]]), np.array([0, 1]), seed=SEED, resamples=4_000)[:, 0]
    values, counts = np.unique(means, return_counts=True)
    assert values.tolist() == [0, 0.5, 1]
    assert (counts / 4_000).tolist() == pytest.approx([1 / 4, 1 / 2, 1 / 4], abs=0.03)


def test_a_user_is_drawn_with_all_requests_and_counts_by_their_number() -> None:
    values = np.array([[0.0], [0.0], [0.0], [1.0]])
    means = resampled_means(values, np.array([5, 5, 5, 9]), seed=SEED, resamples=500)[:, 0]
    assert sorted(set(means.tolist())) == [0, 1 / 4, 1]


def test_the_interval_is_the_middle_of_the_resampled_means() -> None:
    found = estimates({"hit": np.array([0.0, 1.0])}, np.array([0, 1]), seed=SEED)
    assert found == {"hit": Estimate(0.5, 0.0, 1.0)}
    assert str(found["hit"]) == "0.5000 [0.0000, 1.0000]"


def test_equal_values_have_an_interval_of_no_width_and_one_user_has_none() -> None:
    assert estimates({"hit": np.ones(3)}, np.array([0, 1, 2]), seed=SEED)["hit"] == Estimate(1.0, 1.0, 1.0)
    assert estimates({"hit": np.ones(3)}, np.array([0, 0, 0]), seed=SEED)["hit"] == Estimate(1.0)


def test_what_is_not_there_is_left_out_of_mean_and_resamples() -> None:
    values = {"some": np.array([1.0, np.nan, 3.0]), "none": np.full(3, np.nan)}
    found = estimates(values, np.array([0, 1, 2]), seed=SEED)
    assert found == {"some": Estimate(2.0, 1.0, 3.0)}


def test_one_seed_draws_the_same_users_whatever_fits_into_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = np.concatenate(list(resampled_users(3, seed=SEED, resamples=5)))
    monkeypatch.setattr(intervals, "_WEIGHTS", 6)
    parts = list(resampled_users(3, seed=SEED, resamples=5))
    assert [len(part) for part in parts] == [2, 2, 1]
    assert np.array_equal(np.concatenate(parts), whole)
    assert whole.sum(axis=1).tolist() == [3] * 5


def test_a_share_of_few_rows_has_an_interval_within_0_and_1() -> None:
    """By hand for 5 of 10: (1/2 + z²/20) / (1 + z²/10) ± z / (1 + z²/10) · (1/40 + z²/400)^½, z = 1.96."""
    assert wilson(0.5, 10) == pytest.approx((0.2366, 0.7634), abs=1e-4)
    assert wilson(0.0, 10) == pytest.approx((0, 0.2775), abs=1e-4)
    assert wilson(1.0, 1) == pytest.approx((0.2065, 1), abs=1e-4)


def test_a_difference_is_clear_where_zero_is_outside_of_its_interval() -> None:
    assert Estimate(0.2, 0.1, 0.3).is_clear
    assert Estimate(-0.2, -0.3, -0.1).is_clear
    assert not Estimate(0.2, -0.1, 0.5).is_clear
    assert not Estimate(0.2).is_clear


def test_intervals_hold_the_true_mean_about_as_often_as_they_say_where_requests_depend_on_their_user() -> None:
    """60 users with 5 requests each that share most of their luck; treating requests as independent would hold it far less often."""
    rng, trials, held, naive = np.random.default_rng(SEED), 300, 0, 0
    for trial in range(trials):
        luck = np.repeat(rng.normal(size=60), 5) + 0.3 * rng.normal(size=300)
        by_user = estimates({"x": luck}, np.repeat(np.arange(60), 5), seed=trial, resamples=400)["x"]
        by_request = estimates({"x": luck}, np.arange(300), seed=trial, resamples=400)["x"]
        held += by_user.low < 0 < by_user.high  # type: ignore[operator]
        naive += by_request.low < 0 < by_request.high  # type: ignore[operator]
    assert 0.91 < held / trials < 0.98
    assert naive / trials < 0.75
