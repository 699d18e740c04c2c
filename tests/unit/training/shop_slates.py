"""Slates of the simulated shop whose true value is known: every order of a few candidates, its chance, and the shop's chances of a click.

C visits (a category wanted, a segment), I candidates best first by an imperfect score, F ordered prefixes of K places.
"""

from dataclasses import dataclass
from itertools import permutations
from typing import Final

import numpy as np

from headrace.arrays import Floats, Ints
from headrace.exploration import log_weights, plackett_luce, propensities
from headrace.ingest.shop import ShopConfig, stock_shop
from headrace.ingest.simulator import click_chance
from tests import policies

ITEMS, PLACES, VISITS = 5, 3, 4
PREFIXES: Final = np.array(list(permutations(range(ITEMS), PLACES)))
"""Shape (F, K): places of candidates."""


@dataclass(frozen=True)
class Policy:
    share: float
    temperature: float = 1.0


@dataclass(frozen=True)
class Shop:
    """Shapes (C, I) and (C, I, K)."""

    scores_CI: Floats
    clicks_CIK: Floats

    def chances(self, policy: Policy) -> Floats:
        """Of each prefix down to each place, by products of floats. Shape (C, F, K)."""
        return np.array(
            [
                [
                    [policies.prefix(scores, order[: k + 1], policy.share, policy.temperature) for k in range(PLACES)]
                    for order in PREFIXES.tolist()
                ]
                for scores in self.scores_CI.tolist()
            ]
        )

    def clicks(self) -> Floats:
        """Chance of a click at each place of each prefix. Shape (C, F, K)."""
        return self.clicks_CIK[:, PREFIXES, np.arange(PLACES)]

    def value(self, policy: Policy) -> float:
        """Clicks per impression."""
        return float((self.chances(policy)[:, :, -1:] * self.clicks()).sum(axis=(1, 2)).mean() / PLACES)

    def logged(self, policy: Policy) -> Floats:
        """Propensities as serving logs them. Shape (C, F, K)."""
        found = np.empty((VISITS, len(PREFIXES), PLACES))
        for visit, scores in enumerate(self.scores_CI):
            for number, prefix in enumerate(PREFIXES):
                whole = np.concatenate([prefix, np.setdiff1d(np.arange(ITEMS), prefix)])
                greedy = np.logical_and.accumulate(whole == np.arange(ITEMS))
                drawn = plackett_luce(log_weights(scores[whole], policy.temperature))
                found[visit, number] = propensities(drawn, greedy, policy.share)[:PLACES]
        return found

    def expected(self, policy: Policy) -> Floats:
        """The chance of a click at each place in the mean over what the policy shows there, given what stands above. Shape (C, F, K)."""
        chances, clicks, found = self.chances(policy), self.clicks(), np.zeros((VISITS, len(PREFIXES), PLACES))
        for k in range(PLACES):
            for above in np.unique(PREFIXES[:, :k], axis=0):
                same = (PREFIXES[:, :k] == above).all(axis=1)
                here = chances[:, same, -1]
                total = here.sum(axis=1, keepdims=True)
                mean = (here * clicks[:, same, k]).sum(axis=1, keepdims=True) / np.where(total > 0, total, 1)
                found[:, same, k] = mean
        return found


def open_shop(seed: int = 0) -> Shop:
    rng = np.random.default_rng(seed)
    stock = stock_shop(ShopConfig(users=1, items=40, categories=VISITS, days=1), rng)
    scores, clicks = [], []
    for wanted in range(VISITS):
        of_category = np.array(stock.category) == wanted
        found, others = (rng.permutation(np.flatnonzero(which)) for which in (of_category, ~of_category))
        items = np.concatenate([found[: ITEMS - 1], others[:1]])
        chances = np.array(
            [
                [
                    click_chance(stock.category[item] == wanted, stock.segment[item] == wanted, place)
                    for place in range(PLACES)
                ]
                for item in items
            ]
        )
        score = chances[:, 0] * rng.lognormal(0, 0.7, ITEMS)
        best = np.argsort(-score)
        scores.append(score[best])
        clicks.append(chances[best])
    return Shop(np.array(scores), np.array(clicks))


def visit(shop: Shop, chances_CFK: Floats, slates: int, rng: np.random.Generator) -> tuple[Ints, Ints, Floats]:
    """Visits and prefixes of so many slates, shapes (S,), and their clicks, shape (S, K)."""
    visit_S = rng.integers(VISITS, size=slates)
    totals_CF = np.cumsum(chances_CFK[:, :, -1], axis=1)
    prefix_S = (rng.random(slates)[:, None] * totals_CF[visit_S, -1:] > totals_CF[visit_S]).sum(axis=1)
    clicks_SK = rng.random((slates, PLACES)) < shop.clicks()[visit_S, prefix_S]
    return visit_S, prefix_S, clicks_SK.astype(np.float64)
