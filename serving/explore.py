"""Some slates are shown in a drawn order, so that the log can tell what another policy would have earned (docs/off_policy.md).

Coin and order are functions of the request's id: the same id gives the same slate, on every replica that has the same candidates.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
import xxhash

from headrace.arrays import Floats, Ints
from headrace.exploration import log_weights, plackett_luce, propensities
from serving.candidates import Candidates, Chances

_COIN, _ORDER = 1, 2
"""Seeds of two hashes of one id, so that the order does not depend on how the coin fell."""


@dataclass(frozen=True)
class Exploration:
    """`share` of slates, 0 to 1, are drawn; `temperature` above 0: `headrace.exploration.log_weights`."""

    share: float = 0.0
    temperature: float = 1.0


OFF: Final = Exploration()


def explore(ranked: Candidates, how: Exploration, request_id: str) -> tuple[Candidates, Chances | None]:
    """The candidates as they are shown, and with which chances; `ranked` stands best first, and stays so without exploration."""
    if not how.share or not len(ranked):
        return ranked, None
    weights = log_weights(ranked.scores, how.temperature)
    drawn = coin(request_id) < how.share
    order = draw(weights, request_id) if drawn else np.arange(len(ranked))
    greedy = np.logical_and.accumulate(order == np.arange(len(ranked)))
    by_drawing = plackett_luce(weights[order])
    return ranked.take(order), Chances(propensities(by_drawing, greedy, how.share), by_drawing, greedy, drawn)


def coin(request_id: str) -> float:
    """Uniform in [0, 1)."""
    return (xxhash.xxh64_intdigest(request_id.encode(), _COIN) >> 11) / 2**53


def draw(log_weights: Floats, request_id: str) -> Ints:
    """An order by Plackett-Luce: that of the log weights with Gumbel noise added. Places in `log_weights`, shape (n,).

    J. I. Yellott, "The relationship between Luce's choice axiom, Thurstone's theory of comparative judgment, and the double exponential
    distribution", 1977.
    """
    noise = np.random.Generator(np.random.PCG64(xxhash.xxh64_intdigest(request_id.encode(), _ORDER)))
    return np.argsort(-(log_weights + noise.gumbel(size=len(log_weights))), kind="stable")
