"""Requests made up out of a bundle alone, in which everything that its models read occurs: what two computations are compared on.

Half of the candidates are neighbours of the history: of a large catalogue hardly one would be among those drawn from all of it.

They need neither lake nor store, and reach where real ones seldom do: nulls, strings and items that training did not see, histories
from empty to full.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from headrace import names
from headrace.arrays import Floats, Ints, Ints32
from headrace.models.bundle import Bundle
from headrace.models.preprocessing import RECENT_TIMES, Number, Vocabulary
from headrace.settings import MICROS

NOBODY_KNOWS: Final = "@made-up"
_NULLS: Final = 0.1
_LONGEST_S: Final = 1e6


@dataclass(frozen=True)
class MadeUp:
    """A user's features at t, plain values by full name, and N candidates: rows of the bundle's items, and their activity, NaN for null."""

    t_us: int
    user: dict[str, Any]
    rows_N: Ints
    activity_NA: Floats


def made_up(bundle: Bundle, count: int, candidates: int, seed: int = 0) -> list[MadeUp]:
    """The first user is one of whom nothing is known. Candidates are distinct, as many as there are items at most."""
    rng = np.random.default_rng(seed)
    return [_request(bundle, candidates, rng, is_new=number == 0) for number in range(count)]


def _request(bundle: Bundle, candidates: int, rng: np.random.Generator, *, is_new: bool) -> MadeUp:
    pre, item_ids = bundle.preprocessing, bundle.items.item_ids
    t_us = bundle.snapshot.as_of_us + MICROS
    user: dict[str, Any] = {}
    history_L = (
        np.zeros(0, np.int64) if is_new else rng.integers(0, len(item_ids), int(rng.integers(0, pre.length + 2)))
    )
    rows_N = _candidates(bundle.items.neighbours_NK[history_L], len(item_ids), candidates, rng)
    activity_NA = np.array([[_number(each, rng) for each in pre.activity_numbers] for _ in rows_N], np.float64)
    if not is_new:
        known = [*(item_ids[row] for row in history_L), NOBODY_KNOWS]
        since_s = np.sort(np.exp(rng.uniform(0, np.log(_LONGEST_S), len(known))))[::-1]
        user = {
            **{each.name: _number(each, rng) for each in pre.user_numbers},
            **{name: _string(vocabulary, rng) for name, vocabulary in pre.user_categories.items()},
            names.RECENT_ITEMS: [known[place] for place in rng.permutation(len(known))],
            names.RECENT_TYPES: [names.EVENT_TYPES[place] for place in rng.integers(0, len(names.EVENT_TYPES), len(known))],
            RECENT_TIMES: [t_us - int(each * MICROS) for each in since_s],
        }  # fmt: skip
    return MadeUp(t_us, user, rows_N, activity_NA.reshape(len(rows_N), len(pre.activity_numbers)))


def _candidates(near_LK: Ints32, items: int, count: int, rng: np.random.Generator) -> Ints:
    """Half of them of those that are near, as far as there are so many, the rest of all; in random order."""
    near = rng.permutation(np.unique(near_LK[near_LK >= 0]))[: count // 2]
    both = dict.fromkeys([*near.tolist(), *rng.permutation(items)[:count].tolist()])
    return rng.permutation(np.array(list(both)[:count], np.int64))


def _number(number: Number, rng: np.random.Generator) -> float:
    """As the fit saw them, now and then null."""
    if rng.random() < _NULLS:
        return float("nan")
    log = rng.normal(number.mean, number.std)
    value = float(np.sign(log) * np.expm1(min(abs(log), 30.0)))
    return max(0.0, float(np.round(value))) if number.kind == "count" else value


def _string(vocabulary: Vocabulary, rng: np.random.Generator) -> str | None:
    values: Sequence[str | None] = (*vocabulary.values, None, NOBODY_KNOWS)
    return values[int(rng.integers(len(values)))]
