"""How far one distribution has moved from another, and from how much on that counts.

Of a distribution the population stability index is taken: the sum over bins of (q - p) ln(q / p), p the bin's share before and q its share
now (Siddiqi, "Credit Risk Scorecards", Wiley 2006; it is the symmetrised divergence of Jeffreys 1946). Half an event is added to every
bin, so that an empty one has a logarithm. Between two draws of one distribution it is about (bins - 1) (1/n + 1/m) (Yurdakul 2018): so
there are at most 20 bins, and nothing is said of few events. K bins, B values.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf
from typing import Any, Final

import numpy as np

from headrace.arrays import Floats, Ints
from training.changes import changed
from training.intervals import wilson

BINS: Final = 10
MOST_CATEGORIES: Final = 20


@dataclass(frozen=True)
class DriftConfig:
    """What counts as drift, and from how much on anything is said."""

    psi: float = 0.2
    """Index of any one distribution."""
    unknown_share: float = 0.1
    """Of the new events, those on items that the champion does not know."""
    click_drop: float = 0.3
    """Of the click rate in the window, what is lost."""
    calibration: float = 1.5
    """Predicted clicks for each that came, or the other way round."""
    min_events: int = 1_000
    min_users: int = 500
    """Nothing is said of users' features below it: one event of each is looked at, since those of one user are alike."""
    min_hours: float = 12.0
    """From the first new event to the last. Of less nothing is said of users' features: part of a day is not like whole days."""
    min_impressions: int = 1_000
    min_clicks: int = 30
    sample: int = 1_000
    """Users whose features are compared, and impressions whose probabilities are, on each side."""
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("min_events", "min_users", "min_impressions", "min_clicks", "sample"):
            self._check(name, getattr(self, name) >= 1, "at least 1: of nothing nothing can be said")
        self._check("min_hours", 0 <= self.min_hours < inf, "0 or more, and finite")
        self._check("psi", 0 <= self.psi < inf, "0 or more, and finite")
        for name in ("unknown_share", "click_drop"):
            self._check(name, 0 <= getattr(self, name) <= 1, "a share from 0 to 1")
        self._check("calibration", 1 <= self.calibration < inf, "1 or more, and finite: 1 is as predicted")
        self._check("seed", self.seed >= 0, "0 or more")

    def _check(self, name: str, holds: bool, bound: str) -> None:
        if not holds:
            raise ValueError(f"{name} of drift is {getattr(self, name)}; it must be {bound}")

    def changed(self, **changes: Any) -> "DriftConfig":
        """A copy with some values changed. Raises ValueError for an unknown key, or a value out of range."""
        return changed(self, "setting of drift", changes)


@dataclass(frozen=True)
class Signal:
    """One thing that is watched: what it is now, what it may be, and what it was and is in words."""

    name: str
    value: float
    bound: float
    drifted: bool
    said: str = ""


def psi(before_K: Ints | Floats, now_K: Ints | Floats) -> float:
    """The index between two histograms over the same K bins."""
    before = (before_K + 0.5) / (before_K.sum() + 0.5 * len(before_K))
    now = (now_K + 0.5) / (now_K.sum() + 0.5 * len(now_K))
    return float(((now - before) * np.log(now / before)).sum())


def popularity_deciles(counts: Mapping[str, int]) -> dict[str, int]:
    """By item, 0 to 9: the most popular that have the first tenth of all events, and so on."""
    order = sorted(counts, key=lambda item: (-counts[item], item))
    before = np.concatenate([[0], np.cumsum([counts[item] for item in order])])
    return {item: int(BINS * first // before[-1]) for item, first in zip(order, before[:-1], strict=True)}


def of_rates(name: str, before: tuple[int, int], now: tuple[int, int], bound: float) -> Signal:
    """What a rate has lost, of (taken, shown) on both sides: drift where it is more than the bound, and the intervals of the two rates
    lie apart (Wilson, 1927).
    """
    was, rate = (taken / shown for taken, shown in (before, now))
    (low, high), (least, most) = (wilson(taken / shown, shown) for taken, shown in (before, now))
    drop = 1 - rate / was
    said = f"{was:.2%} [{low:.2%}, {high:.2%}], now {rate:.2%} [{least:.2%}, {most:.2%}]"
    return Signal(name, drop, bound, drop > bound and most < low, said)


def of_histogram(name: str, before: Mapping[Any, int], now: Mapping[Any, int], config: DriftConfig) -> Signal:
    """The most frequent values have a bin each, all others one together."""
    order = sorted({**now, **before}, key=lambda value: (-before.get(value, 0), str(value)))
    kept, rest = order[: MOST_CATEGORIES - 1], order[MOST_CATEGORIES - 1 :]
    sides = [
        np.array([*(side.get(value, 0) for value in kept), sum(side.get(value, 0) for value in rest)], np.float64)
        for side in (before, now)
    ]
    before_K, now_K = (side if rest else side[:-1] for side in sides)
    most = int(np.abs(now_K / max(now_K.sum(), 1) - before_K / max(before_K.sum(), 1)).argmax())
    label = str(kept[most]) if most < len(kept) else "all others"
    shares = [side[most] / max(side.sum(), 1) for side in (before_K, now_K)]
    return distribution(name, psi(before_K, now_K), config, f"{label}: {shares[0]:.1%}, now {shares[1]:.1%}")


def of_numbers(name: str, before_B: Floats, now_B: Floats, config: DriftConfig) -> Signal:
    """NaN for null."""
    means = [f"{np.nanmean(side):.4g}" if np.isfinite(side).any() else "none" for side in (before_B, now_B)]
    return distribution(name, psi(*in_bins(before_B, now_B)), config, f"mean {means[0]}, now {means[1]}")


def in_bins(before_B: Floats, now_B: Floats) -> tuple[Ints, Ints]:
    """Counts in the deciles of the first, those that coincide being one, and of nulls. Shape (K,) both."""
    known = before_B[~np.isnan(before_B)]
    edges = np.unique(np.quantile(known, np.arange(1, BINS) / BINS, method="lower")) if len(known) else np.zeros(0)

    def counts(values: Floats) -> Ints:
        bins = np.where(np.isnan(values), len(edges) + 1, np.searchsorted(edges, values))
        return np.bincount(bins, minlength=len(edges) + 2).astype(np.int64)

    return counts(before_B), counts(now_B)


def distribution(name: str, index: float, config: DriftConfig, said: str) -> Signal:
    return Signal(name, index, config.psi, index > config.psi, said)
