"""The obvious version of a policy that now and then draws an order: products of floats, an order at a time. Right by reading."""

from collections.abc import Sequence


def drawn_prefix(scores: Sequence[float], prefix: Sequence[int], temperature: float) -> float:
    """The chance that an order drawn by Plackett-Luce begins with these places of `scores`."""
    left, chance = list(range(len(scores))), 1.0
    for place in prefix:
        chance *= scores[place] ** (1 / temperature) / sum(scores[each] ** (1 / temperature) for each in left)
        left.remove(place)
    return chance


def prefix(scores: Sequence[float], prefix: Sequence[int], share: float, temperature: float) -> float:
    """The same under the whole policy; `scores` stand best first."""
    is_greedy = list(prefix) == list(range(len(prefix)))
    return (1 - share) * is_greedy + share * drawn_prefix(scores, prefix, temperature)
