"""The estimators by hand, and against the simulated shop's true value."""

from dataclasses import dataclass
from functools import cache

import numpy as np
import pytest

from headrace.arrays import Floats, Ints
from tests.unit.training.shop_slates import PLACES, Policy, Shop, open_shop, visit
from training.estimators import OffPolicyError, Worth, clipped, doubly_robust, ips, on_policy, snips, weights

REWARDS = np.array([1.0, 0.0, 1.0, 0.0])
WEIGHTS = np.array([2.0, 1.0, 0.5, 0.5])

# By hand.


def test_ips_is_the_mean_of_weighted_rewards() -> None:
    found = ips(REWARDS, WEIGHTS)
    assert found.value == pytest.approx(2.5 / 4)
    assert found.effective == pytest.approx(4**2 / 5.5)
    assert (found.largest, found.mean_weight) == (2.0, 1.0)
    spread = np.std([2.0, 0.0, 0.5, 0.0], ddof=1) / 2
    assert found.high - found.value == pytest.approx(1.959964 * spread)
    assert found.value - found.low == pytest.approx(1.959964 * spread)


def test_snips_divides_by_the_weights() -> None:
    found = snips(REWARDS, np.array([2.0, 1.0, 0.5, 1.5]))
    assert found.value == pytest.approx(2.5 / 5)
    residuals = np.array([1.0, -0.5, 0.25, -0.75])
    assert found.high - found.value == pytest.approx(1.959964 * np.sqrt((residuals**2).sum() * 4 / 3) / 5)


def test_doubly_robust_corrects_a_model_by_what_it_missed() -> None:
    predicted, expected = np.array([0.5, 0.5, 0.5, 0.0]), np.array([0.5, 0.25, 0.5, 0.25])
    found = doubly_robust(REWARDS, WEIGHTS, predicted, expected)
    assert found.value == pytest.approx((1.5 + (0.25 - 0.5) + 0.75 + 0.25) / 4)


def test_below_a_place_that_the_target_never_shows_the_model_counts_for_nothing() -> None:
    rewards, weights, above = np.array([1.0, 1.0, 1.0, 0.0]), np.array([1.0, 0.0, 1.0, 1.0]), np.array([1.0, 0, 1, 1])
    half = np.full(4, 0.5)
    assert doubly_robust(rewards, weights, half, half, None, above).value == pytest.approx((1.0 + 0.0 + 1.0 + 0.0) / 4)


def test_impressions_of_one_request_vary_together() -> None:
    """Two requests of two impressions, all or nothing: the mean of two numbers, 1 and 0, twice as wide as that of four."""
    rewards, requests = np.array([1.0, 1.0, 0.0, 0.0]), np.array([7, 7, 3, 3])
    together, apart = on_policy(rewards, requests), on_policy(rewards)
    assert (together.value, together.effective) == (0.5, 2.0)
    assert together.high - together.low == pytest.approx(2 * 1.959964 * 0.5)
    assert apart.high - apart.low == pytest.approx(2 * 1.959964 * np.sqrt(1 / 3) / 2)


def test_weights_are_ratios_of_chances_and_a_clipped_one_is_the_bound() -> None:
    found = weights(np.array([0.5, 0.0, 1.0]), np.array([0.1, 0.2, 1.0]))
    assert found == pytest.approx([5.0, 0.0, 1.0])
    assert clipped(found, 2.0).tolist() == [2.0, 0.0, 1.0]


@pytest.mark.parametrize(
    ("target", "logged", "said"),
    [
        ([], [], "no impression was logged: take a longer window"),
        ([0.5, 0.5], [0.5, np.nan], "1 of 2 impressions have no propensity"),
        ([0.5, 0.5], [0.5, 0.0], r"1 propensities lie outside \(0, 1\], the first is 0:"),
        ([0.5, 0.5], [1.5, 0.5], r"1 propensities lie outside \(0, 1\], the first is 1.5:"),
        ([0.5, 1.5], [0.5, 0.5], "chances of the target policy lie outside 0 to 1"),
        ([0.5, np.nan], [0.5, 0.5], "chances of the target policy lie outside 0 to 1"),
        ([0.0, 0.0], [0.5, 0.5], "shows nothing of what was logged: log with more exploration"),
    ],
)
def test_chances_that_say_nothing_are_refused_by_name(target: list[float], logged: list[float], said: str) -> None:
    with pytest.raises(OffPolicyError, match=said):
        weights(np.array(target), np.array(logged))


@pytest.mark.parametrize(
    ("rewards", "found", "units", "said"),
    [
        ([], [], None, "no impression was logged"),
        ([1.0, np.nan], [1.0, 1.0], None, "rewards are not one finite number for each of 2"),
        ([1.0, 0.0], [1.0], None, "weights are not one finite number for each of 2"),
        ([1.0, 0.0], [1.0, np.inf], None, "weights are not one finite number"),
        ([1.0, 0.0], [1.0, -1.0], None, "weights below 0"),
        ([1.0, 0.0], [0.0, 0.0], None, "shows nothing of what was logged"),
        ([1.0, 0.0], [0.0, 1.0], None, "none of 2 impressions that the target policy shows brought anything"),
        ([1.0, 0.0], [1.0, 1.0], [5, 5], "one request alone has no interval"),
    ],
)
def test_what_cannot_be_estimated_is_an_error_and_never_a_nan(
    rewards: list[float], found: list[float], units: list[int] | None, said: str
) -> None:
    for estimator in (ips, snips):
        with pytest.raises(OffPolicyError, match=said):
            estimator(np.array(rewards), np.array(found), None if units is None else np.array(units))


def test_a_model_that_is_not_finite_is_refused() -> None:
    with pytest.raises(OffPolicyError, match="expected is not one finite number for each of 4"):
        doubly_robust(REWARDS, WEIGHTS, WEIGHTS, np.array([1.0, 1.0, np.nan, 1.0]))


def test_a_bound_of_weights_is_above_zero() -> None:
    with pytest.raises(OffPolicyError, match=r"clipped at 0: the bound must be above 0"):
        clipped(WEIGHTS, 0)


# Against the simulator's true value.

LOGGED = Policy(share=0.7, temperature=1.0)
TARGETS = {
    "deterministic": Policy(0.0),
    "always drawn": Policy(1.0, 1.0),
    "another share and temperature": Policy(0.5, 0.4),
}
SLATES, SEEDS = 1_500, 300


@dataclass(frozen=True)
class Tables:
    """Of each prefix of each visit, shapes (C, F, K): weights of the cascade, those of the places above, what a good model expects."""

    weights: Floats
    above: Floats
    predicted: Floats
    expected: Floats
    value: float


@cache
def shop() -> Shop:
    return open_shop()


@cache
def tables(name: str) -> Tables:
    target = TARGETS[name]
    found = shop().chances(target) / np.cumprod(shop().logged(LOGGED), axis=2)
    above = np.concatenate([np.ones_like(found[:, :, :1]), found[:, :, :-1]], axis=2)
    return Tables(found, above, shop().clicks(), shop().expected(target), shop().value(target))


@cache
def logs(seed: int) -> tuple[Ints, Ints, Floats]:
    return visit(shop(), shop().chances(LOGGED), SLATES, np.random.default_rng(seed))


def estimates(name: str, seed: int) -> dict[str, Worth]:
    visit_S, prefix_S, clicks_SK = logs(seed)
    of, rewards, units = tables(name), clicks_SK.ravel(), np.repeat(np.arange(SLATES), PLACES)
    weighed, above, predicted, expected = (
        each[visit_S, prefix_S].ravel() for each in (of.weights, of.above, of.predicted, of.expected)
    )
    return {
        "ips": ips(rewards, weighed, units),
        "snips": snips(rewards, weighed, units),
        "doubly robust": doubly_robust(rewards, weighed, predicted, expected, units, above),
        "as logged": on_policy(rewards, units),
    }


@pytest.mark.parametrize("name", TARGETS)
def test_intervals_hold_the_true_value_as_often_as_they_say(name: str) -> None:
    """95% of 300 logs have a standard deviation of 1.3%: 91 to 98.7% is within three of them. The mean over all is the value itself."""
    found = [estimates(name, seed) for seed in range(SEEDS)]
    truth = tables(name).value
    for estimator in ("ips", "snips", "doubly robust"):
        each = [estimate[estimator] for estimate in found]
        held = np.mean([one.low <= truth <= one.high for one in each])
        assert 0.91 <= held <= 0.987, (estimator, held)
        values = np.array([one.value for one in each])
        assert abs(values.mean() - truth) < 4 * values.std() / np.sqrt(SEEDS), estimator
        assert np.mean([one.mean_weight for one in each]) == pytest.approx(1.0, abs=0.02)


def test_the_policy_that_logged_is_estimated_too() -> None:
    truth = shop().value(LOGGED)
    held = [
        each.low <= truth <= each.high for each in (estimates("deterministic", s)["as logged"] for s in range(SEEDS))
    ]
    assert 0.91 <= np.mean(held) <= 0.987


@pytest.mark.parametrize("name", TARGETS)
def test_doubly_robust_with_a_good_model_varies_less_than_inverse_propensities_alone(name: str) -> None:
    found = [estimates(name, seed) for seed in range(SEEDS)]
    spread = {each: np.std([one[each].value for one in found]) for each in ("ips", "doubly robust")}
    assert spread["doubly robust"] < 0.95 * spread["ips"]


def test_targets_differ_from_what_was_logged_by_more_than_the_estimates_err() -> None:
    """So that holding the truth is no accident: what was logged is not the target's value."""
    for name in ("deterministic", "always drawn"):
        values = [estimates(name, seed)["ips"].value for seed in range(50)]
        assert abs(tables(name).value - shop().value(LOGGED)) > 2 * np.std(values) / np.sqrt(50)
