"""The chances of an order, against products of floats over every order that there is."""

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.exploration import log_prefix_chances, log_weights, plackett_luce, propensities
from tests import policies

SCORES = st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=5).map(lambda scores: sorted(scores, reverse=True))
SHARES = st.floats(0.01, 1.0)
TEMPERATURES = st.floats(0.25, 10.0)


def of_order(scores: list[float], order: tuple[int, ...], share: float, temperature: float) -> np.ndarray:
    """Propensities of an order of scores that stand best first."""
    places = np.array(order)
    greedy = np.logical_and.accumulate(places == np.arange(len(places)))
    return propensities(plackett_luce(log_weights(np.array(scores)[places], temperature)), greedy, share)


def test_by_hand() -> None:
    """Weights 4, 2, 1 at temperature 1/2: 16, 4, 1. The second comes first with 4/21; a third of the slates are drawn."""
    assert of_order([4.0, 2.0, 1.0], (1, 0, 2), 1 / 3, 0.5) == pytest.approx([4 / 63, 16 / 17, 1.0])
    greedy = [2 / 3 + 16 / 63, (2 / 3 + 16 / 21 * 4 / 5 / 3) / (2 / 3 + 16 / 63), 1.0]
    assert of_order([4.0, 2.0, 1.0], (0, 1, 2), 1 / 3, 0.5) == pytest.approx(greedy)


@given(SCORES, SHARES, TEMPERATURES)
def test_a_propensity_is_what_it_says_and_those_of_all_orders_sum_to_one(
    scores: list[float], share: float, temperature: float
) -> None:
    total = {}
    for order in permutations(range(len(scores))):
        found = of_order(scores, order, share, temperature)
        assert ((found > 0) & (found <= 1)).all()
        chances = [policies.prefix(scores, order[:k], share, temperature) for k in range(len(order) + 1)]
        assert found == pytest.approx([chances[k + 1] / chances[k] for k in range(len(order))], rel=1e-9)
        for k in range(1, len(order) + 1):
            total.setdefault(k, {})[order[:k]] = found[:k].prod()
    for prefixes in total.values():
        assert sum(prefixes.values()) == pytest.approx(1.0)


@given(SCORES, TEMPERATURES)
def test_a_policy_that_always_draws_is_plackett_luce_alone(scores: list[float], temperature: float) -> None:
    for order in permutations(range(len(scores))):
        drawn = plackett_luce(log_weights(np.array(scores)[list(order)], temperature))
        assert of_order(scores, order, 1.0, temperature) == pytest.approx(drawn, rel=1e-12)


def test_one_that_never_draws_shows_the_deterministic_order_and_nothing_else() -> None:
    log_drawn, greedy = np.log([0.5, 0.25, 0.1]), np.array([True, True, False])
    assert log_prefix_chances(log_drawn, greedy, 0.0).tolist() == [0.0, 0.0, -np.inf]


def test_a_prefix_is_drawn_or_greedy_or_both() -> None:
    log_drawn, greedy = np.log([0.5, 0.25, 0.1]), np.array([True, True, False])
    assert np.exp(log_prefix_chances(log_drawn, greedy, 0.2)) == pytest.approx([0.9, 0.85, 0.02])


def test_a_thousand_places_and_scores_of_nothing_keep_every_chance_above_zero() -> None:
    scores = np.concatenate([np.full(500, 0.9), np.zeros(500)])
    for order in (np.arange(1_000), np.arange(1_000)[::-1]):
        greedy = np.logical_and.accumulate(order == np.arange(1_000))
        found = propensities(plackett_luce(log_weights(scores[order], 0.02)), greedy, 0.05)
        assert np.isfinite(found).all()
        assert ((found > 0) & (found <= 1)).all()
        assert found[-1] == 1.0


def test_an_item_worth_twice_as_much_is_four_times_as_likely_at_half_the_temperature() -> None:
    assert plackett_luce(log_weights(np.array([2.0, 1.0]), 1.0))[0] == pytest.approx(2 / 3)
    assert plackett_luce(log_weights(np.array([2.0, 1.0]), 0.5))[0] == pytest.approx(4 / 5)
    assert plackett_luce(log_weights(np.array([200.0, 100.0]), 0.5))[0] == pytest.approx(4 / 5)
