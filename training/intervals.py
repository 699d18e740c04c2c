"""How sure a mean is: bootstrap over users, since requests of one user resemble each other.

Resampled are users with all that is theirs, as many as there are, with replacement; an interval is the middle 95 % of the
resampled means (percentile bootstrap: Efron & Tibshirani 1993, chapter 13; of clusters: Field & Welsh 2007). A paired difference
is the interval of the differences of each request, so both sides are resampled alike.

T values, U users, M means, N resamples.
"""

from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass
from statistics import NormalDist
from typing import Final, TypeVar

import numpy as np

from headrace.arrays import Floats, Ints

LEVEL: Final = 0.95
RESAMPLES = 1_000
# Standard deviations of a normal distribution to either side that hold LEVEL of it.
Z = NormalDist().inv_cdf(0.5 + LEVEL / 2)
"""Standard deviations from the middle of a normal distribution to the ends of its interval."""
# Weights that are held at once.
_WEIGHTS = 4_000_000

Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class Estimate:
    """A value and its 95 % interval; the ends are None where one user alone says nothing of others, or none was asked for."""

    value: float
    low: float | None = None
    high: float | None = None

    def __str__(self) -> str:
        return f"{self.value:.4f}" if self.low is None else f"{self.value:.4f} [{self.low:.4f}, {self.high:.4f}]"

    @property
    def is_clear(self) -> bool:
        """Whether zero lies outside of the interval."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


def estimates(
    values: Mapping[Key, Floats], user_T: Ints, *, seed: int, resamples: int = RESAMPLES
) -> dict[Key, Estimate]:
    """Means with intervals of many values (T,) of the same requests. A NaN is left out; values of NaN alone have no entry."""
    kept = {key: value_T for key, value_T in values.items() if not np.isnan(value_T).all()}
    if not kept:
        return {}
    values_TM = np.stack(list(kept.values()), axis=1)
    means_M = np.nanmean(values_TM, axis=0)
    means_NM = resampled_means(values_TM, user_T, seed=seed, resamples=resamples)
    return {key: estimate(float(mean), means_N) for key, mean, means_N in zip(kept, means_M, means_NM.T, strict=True)}


def estimate(value: float, resampled_N: Floats) -> Estimate:
    """A value with the middle 95 % of its resamples; those that are NaN, of which there was nothing to say, are left out."""
    known = resampled_N[~np.isnan(resampled_N)]
    if len(known) == 0:
        return Estimate(value)
    low, high = np.quantile(known, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(value, float(low), float(high))


def wilson(share: float, rows: int) -> tuple[float, float]:
    """The 95 % interval of a share of rows that know nothing of each other (Wilson, 1927)."""
    middle = (share + Z**2 / (2 * rows)) / (1 + Z**2 / rows)
    half = Z / (1 + Z**2 / rows) * (share * (1 - share) / rows + Z**2 / (4 * rows**2)) ** 0.5
    return max(middle - half, 0.0), min(middle + half, 1.0)


def resampled_means(values_TM: Floats, user_T: Ints, *, seed: int, resamples: int = RESAMPLES) -> Floats:
    """Shape (N, M); none (0, M) where there are fewer than two users."""
    users, place_T = np.unique(user_T, return_inverse=True)
    present_TM = ~np.isnan(values_TM)
    sums_UM = _of_users(np.where(present_TM, values_TM, 0.0), place_T, len(users))
    counts_UM = _of_users(present_TM.astype(np.float64), place_T, len(users))
    parts = [np.zeros((0, values_TM.shape[1]))]
    for weights_NU in resampled_users(len(users), seed=seed, resamples=resamples):
        counts_NM = weights_NU @ counts_UM
        parts.append(np.where(counts_NM > 0, (weights_NU @ sums_UM) / np.maximum(counts_NM, 1), np.nan))
    return np.concatenate(parts)


def resampled_users(users: int, *, seed: int, resamples: int = RESAMPLES) -> Iterator[Floats]:
    """How often each user is drawn, in parts of the resamples, (N, U) in all; nothing where there are fewer than two users."""
    if users < 2:
        return
    rng = np.random.default_rng(seed)
    at_once = max(1, _WEIGHTS // users)
    for start in range(0, resamples, at_once):
        count = min(at_once, resamples - start)
        drawn = rng.integers(users, size=(count, users)) + users * np.arange(count)[:, None]
        yield np.bincount(drawn.ravel(), minlength=count * users).reshape(count, users).astype(np.float64)


def _of_users(values_TM: Floats, place_T: Ints, users: int) -> Floats:
    sums_UM = np.zeros((users, values_TM.shape[1]))
    np.add.at(sums_UM, place_T, values_TM)
    return sums_UM
