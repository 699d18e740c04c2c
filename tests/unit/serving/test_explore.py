"""Explored orders come as often as their propensities say, and are the same for the same request."""

from collections import Counter
from itertools import permutations
from math import sqrt

import numpy as np
import pytest

from serving.candidates import Candidates
from serving.explore import OFF, Exploration, coin, draw, explore
from tests import policies

SCORES = [0.8, 0.4, 0.3, 0.05]
DRAWS = 20_000


def ranked(scores: list[float] = SCORES) -> Candidates:
    return Candidates(np.arange(len(scores)), np.ones(len(scores), np.int64), np.array(scores))


def test_every_order_comes_as_often_as_its_chance_and_is_logged_with_it() -> None:
    """Monte Carlo: within 4.5 standard deviations of 24 chances, and the product of propensities is the chance of the whole order."""
    how = Exploration(share=0.6, temperature=0.7)
    seen: Counter[tuple[int, ...]] = Counter()
    logged: dict[tuple[int, ...], float] = {}
    for number in range(DRAWS):
        shown, chances = explore(ranked(), how, f"request-{number}")
        order = tuple(shown.rows.tolist())
        assert chances is not None
        seen[order] += 1
        logged[order] = float(chances.propensities.prod())
    for order in permutations(range(4)):
        chance = policies.prefix(SCORES, order, how.share, how.temperature)
        assert abs(seen[order] / DRAWS - chance) < 4.5 * sqrt(chance * (1 - chance) / DRAWS)
        if order in logged:
            assert logged[order] == pytest.approx(chance)


def test_the_coin_falls_as_often_as_its_share_and_an_order_does_not_depend_on_it() -> None:
    ids = [f"request-{number}" for number in range(DRAWS)]
    drawn = [each for each in ids if coin(each) < 0.25]
    assert abs(len(drawn) / DRAWS - 0.25) < 4.5 * sqrt(0.25 * 0.75 / DRAWS)
    evenly = np.zeros(2)
    for each in drawn:
        evenly[draw(np.zeros(2), each)[0]] += 1
    assert abs(evenly[0] / len(drawn) - 0.5) < 4.5 * sqrt(0.25 / len(drawn))


def test_the_same_request_is_shown_the_same_and_another_one_another() -> None:
    how = Exploration(share=1.0)
    orders = [explore(ranked([1.0] * 50), how, request)[0].rows.tolist() for request in ("a", "a", "b")]
    assert orders[0] == orders[1] != orders[2]


def test_a_drawn_order_keeps_each_item_with_its_score_and_says_how_the_coin_fell() -> None:
    drawn = next(f"r{number}" for number in range(100) if coin(f"r{number}") < 0.5)
    sure = next(f"r{number}" for number in range(100) if coin(f"r{number}") >= 0.5)
    shown, chances = explore(ranked([1.0 + place for place in range(50, 0, -1)]), Exploration(0.5), drawn)
    assert chances is not None
    assert chances.is_drawn
    assert shown.scores.tolist() == [51.0 - row for row in shown.rows.tolist()]
    assert sorted(shown.rows.tolist()) == list(range(50))
    shown, chances = explore(ranked(), Exploration(0.5), sure)
    assert chances is not None
    assert not chances.is_drawn
    assert shown.rows.tolist() == [0, 1, 2, 3]
    assert chances.greedy.all()
    assert (chances.propensities[:3] > 0.5).all()


def test_without_exploration_the_order_is_the_ranker_s_and_nothing_is_reckoned() -> None:
    candidates = ranked()
    assert explore(candidates, OFF, "r") == (candidates, None)
