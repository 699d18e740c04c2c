"""Chances of an order under a policy that now and then draws one: the one formula of what is logged and of what is evaluated.

A coin is tossed for each slate. With chance `share` its items stand in an order drawn by Plackett-Luce (R. L. Plackett, "The analysis of
permutations", 1975: one item after the other, each with a chance in proportion to its weight among those that are left), else in the
deterministic one, best first. So the items down to a place k are shown with chance

    P(1..k) = (1 - share) [the deterministic order begins with them] + share PL(1..k)

and the propensity of the item at k, given those above it, is P(1..k) / P(1..k-1). Reckoned in logarithms: the chance of a long prefix is
less than a float can hold.
"""

import math
from typing import Final

import numpy as np

from headrace.arrays import Floats, Mask

LEAST_SCORE: Final = 1e-12
"""Scores below it count as it: a chance is never 0."""
_LEAST_CHANCE: Final = float(np.finfo(np.float64).tiny)


def log_weights(scores: Floats, temperature: float) -> Floats:
    """Logarithms of the weights score ** (1 / temperature). Shape (n,).

    A score is the expected value of showing an item, above 0 and in a unit of its own. The logarithm makes chances depend on ratios of
    scores, whatever the unit: at temperature 1 an item worth twice as much is twice as likely, at 1/2 four times, towards 0 it is sure.
    """
    return np.log(np.maximum(scores, LEAST_SCORE)) / temperature


def plackett_luce(log_weights: Floats) -> Floats:
    """The chance of the item at each place given those above it; log weights of all that could be drawn, in the order shown. Shape (n,)."""
    left = np.logaddexp.accumulate(log_weights[::-1])[::-1]
    return np.clip(np.exp(log_weights - left), _LEAST_CHANCE, 1.0)


def log_prefix_chances(log_drawn: Floats, greedy: Mask, share: float) -> Floats:
    """log P(1..k) for each place k, -inf for what is never shown. Elementwise: shapes are those of `log_drawn`.

    `log_drawn` is log PL(1..k); `greedy`: the deterministic order begins with 1..k.
    """
    if share == 0:
        return np.where(greedy, 0.0, -np.inf)
    drawn = log_drawn + math.log(share)
    if share == 1:
        return drawn
    return np.where(greedy, np.logaddexp(math.log1p(-share), drawn), drawn)


def propensities(drawn: Floats, greedy: Mask, share: float) -> Floats:
    """The chance of the item at each place given those above it, coin included, in (0, 1]. Shape (n,).

    `drawn` are the chances by Plackett-Luce alone, of an order that the policy can show: `share` is above 0.
    """
    assert 0 < share <= 1, share
    log_prefix = log_prefix_chances(np.cumsum(np.log(drawn)), greedy, share)
    return np.clip(np.exp(np.diff(log_prefix, prepend=0.0)), _LEAST_CHANCE, 1.0)
