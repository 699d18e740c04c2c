"""What another policy would have earned, from what one policy showed: estimators over arrays, no data and no files.

Shapes: R impressions. `rewards_R` is what each brought, `weights_R` how many times likelier the target policy was to show it than the
policy that did (`weights`), `units_R` the number of its request: impressions of one request are not independent, so requests are what
varies. Every estimate is per impression.

An interval is the normal approximation for a ratio of two sums over units, by its linearisation (W. G. Cochran, "Sampling Techniques",
1977, 6.4): with few clicks or a few large weights it is too short, which `effective` and `largest` tell.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np

from headrace.arrays import Floats, Ints, Mask
from training.intervals import Z

_PRIOR: Final = 100.0
"""Impressions of its prior that a rate is drawn towards it by."""
_FOLDS: Final = 5


class OffPolicyError(ValueError):
    """Logs that do not say what is asked of them; the message says what is missing and what to do."""


@dataclass(frozen=True)
class Worth:
    """A mean per impression with the bounds of its interval.

    `effective` is L. Kish's effective sample size (sum w)^2 / sum w^2 ("Survey Sampling", 1965) of units by their mean weight, `largest`
    the largest weight. `mean_weight` is 1 in expectation where the logs can show all that the target shows; below, something is missing.
    """

    value: float
    low: float
    high: float
    effective: float
    largest: float
    mean_weight: float


def weights(target_R: Floats, logged_R: Floats) -> Floats:
    """How many times likelier the target is to show what was shown. Shape (R,).

    `target_R`: its chances, 0 to 1; `logged_R`: the propensities that were logged, above 0 and up to 1. Raises OffPolicyError.
    """
    check_propensities(logged_R)
    if not ((target_R >= 0) & (target_R <= 1 + 1e-9)).all():
        raise OffPolicyError("chances of the target policy lie outside 0 to 1: normalise them over what it can show")
    if not (target_R > 0).any():
        raise OffPolicyError("the target policy shows nothing of what was logged: log with more exploration")
    return np.asarray(target_R / logged_R)


def check_propensities(logged_R: Floats) -> None:
    """Raises OffPolicyError unless each is above 0 and up to 1; NaN where there is none."""
    if not len(logged_R):
        raise OffPolicyError("no impression was logged: take a longer window, or another source")
    missing = int(np.isnan(logged_R).sum())
    if missing:
        raise OffPolicyError(
            f"{missing} of {len(logged_R)} impressions have no propensity: leave out what was shown with chances that are not known"
        )
    outside = logged_R[~((logged_R > 0) & (logged_R <= 1))]
    if len(outside):
        raise OffPolicyError(
            f"{len(outside)} propensities lie outside (0, 1], the first is {outside[0]:g}: each is the chance of what was shown"
        )


def clipped(weights_R: Floats, most: float) -> Floats:
    """Weights of at most `most`: less variance, biased towards what was logged (E. L. Ionides, "Truncated importance sampling", 2008)."""
    if not most > 0:
        raise OffPolicyError(f"weights are clipped at {most:g}: the bound must be above 0, 10 for example")
    return np.minimum(weights_R, most)


def on_policy(rewards_R: Floats, units_R: Ints | None = None) -> Worth:
    """What the policy that logged has earned."""
    return ips(rewards_R, np.ones(len(rewards_R)), units_R)


def ips(rewards_R: Floats, weights_R: Floats, units_R: Ints | None = None) -> Worth:
    """Inverse propensity scoring: the mean of w r (D. G. Horvitz and D. J. Thompson, 1952). Unbiased. Raises OffPolicyError."""
    units_R = _check(rewards_R, weights_R, units_R)
    return _ratio(weights_R * rewards_R, np.ones(len(rewards_R)), weights_R, units_R)


def snips(rewards_R: Floats, weights_R: Floats, units_R: Ints | None = None) -> Worth:
    """Self-normalised: sum w r / sum w (A. Swaminathan and T. Joachims, "The self-normalized estimator for counterfactual learning",
    2015). Consistent, and never outside the rewards. Raises OffPolicyError.
    """
    units_R = _check(rewards_R, weights_R, units_R)
    return _ratio(weights_R * rewards_R, weights_R, weights_R, units_R)


def doubly_robust(
    rewards_R: Floats,
    weights_R: Floats,
    predicted_R: Floats,
    expected_R: Floats,
    units_R: Ints | None = None,
    above_R: Floats | None = None,
) -> Worth:
    """The mean of v e + w (r - p): unbiased where the weights are right, whatever the model of rewards says, and the better the model, the
    less it varies (M. Dudik, J. Langford and L. Li, "Doubly robust policy evaluation and learning", 2011).

    `predicted_R` (p): what the model expects of the item shown; `expected_R` (e): in the mean over what the target would show there.
    `above_R` (v): of places of a slate, the weight of those above, 1 at the first (H. Kiyohara et al., "Doubly robust off-policy evaluation
    for ranking policies under the cascade behavior model", 2022); None: each impression stands alone. The model must not have learnt from
    the impressions that it speaks of. Raises OffPolicyError.
    """
    units_R = _check(rewards_R, weights_R, units_R)
    above_R = np.ones(len(rewards_R)) if above_R is None else above_R
    for name, column in (("predicted", predicted_R), ("expected", expected_R), ("above", above_R)):
        if column.shape != rewards_R.shape or not np.isfinite(column).all():
            raise OffPolicyError(f"{name} is not one finite number for each of {len(rewards_R)} impressions")
    corrected = above_R * expected_R + weights_R * (rewards_R - predicted_R)
    return _ratio(corrected, np.ones(len(rewards_R)), weights_R, units_R)


def _check(rewards_R: Floats, weights_R: Floats, units_R: Ints | None) -> Ints:
    """The units, numbered from 0. What cannot be estimated is an error and never a NaN, nor an interval of no width."""
    count = len(rewards_R)
    if not count:
        raise OffPolicyError("no impression was logged: take a longer window, or another source")
    for name, column in (("rewards", rewards_R), ("weights", weights_R)):
        if column.shape != (count,) or not np.isfinite(column).all():
            raise OffPolicyError(f"{name} are not one finite number for each of {count} impressions")
    if (weights_R < 0).any():
        raise OffPolicyError("weights below 0: they are ratios of chances")
    if not weights_R.any():
        raise OffPolicyError("the target policy shows nothing of what was logged: log with more exploration")
    if not (weights_R * rewards_R).any():
        raise OffPolicyError(
            f"none of {count} impressions that the target policy shows brought anything: take a longer window"
        )
    numbered = np.arange(count) if units_R is None else np.unique(units_R, return_inverse=True)[1]
    if numbered.max() < 1:
        raise OffPolicyError("one request alone has no interval: take a longer window")
    return np.asarray(numbered)


def folds(units_R: Ints) -> Iterator[tuple[Mask, Mask]]:
    """A fifth of the units each time, and the others that a model of its rewards learns from. Shapes (R,)."""
    fold_R = units_R % _FOLDS
    for fold in range(_FOLDS):
        here_R = fold_R == fold
        yield here_R, ~here_R


def shrunk_rate(rewards: Floats | Ints, seen: Ints, prior: Floats | float) -> Floats:
    """Rewards per impression, drawn towards `prior` by 100 impressions of it: of few nothing else is known. Shape of `rewards`."""
    return np.asarray((rewards + _PRIOR * prior) / (seen + _PRIOR))


def _ratio(top_R: Floats, bottom_R: Floats, weights_R: Floats, units_R: Ints) -> Worth:
    """sum top / sum bottom, both of which vary from unit to unit."""
    top_U, bottom_U = np.bincount(units_R, top_R), np.bincount(units_R, bottom_R)
    units, total = len(top_U), bottom_U.sum()
    value = top_U.sum() / total
    spread = np.sqrt(((top_U - value * bottom_U) ** 2).sum() * units / (units - 1)) / total
    reach = Z * spread
    mean_U = np.bincount(units_R, weights_R) / np.bincount(units_R)
    return Worth(
        value=float(value),
        low=float(value - reach),
        high=float(value + reach),
        effective=float(mean_U.sum() ** 2 / (mean_U**2).sum()),
        largest=float(weights_R.max()),
        mean_weight=float(weights_R.mean()),
    )
