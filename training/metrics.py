"""Metrics of slates and of probabilities. Shapes: T requests, K places of their slates, best first; I items; R rows; B bins.

`hits_TK` is True where the item at that place is relevant; `relevant_T` is how many items are relevant to the request. What is
said of a request is a value for each, so that intervals and segments follow; NaN where nothing can be said, which `mean` leaves
out. `slates_TK` holds places in the catalogue, -1 for an empty one. docs/evaluation.md has the formulas and their sources.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from headrace.arrays import Floats, Ints, Mask

CALIBRATION_BINS = 15
_LEAST = 1e-12


def mean(values_T: npt.ArrayLike) -> float:
    """Of the values that are there; NaN where there are none."""
    values = np.asarray(values_T, np.float64)
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")


def recall_at(hits_TK: Mask, relevant_T: Ints, k: int) -> Floats:
    """Share of the request's relevant items that stand in its first k places. Shape (T,)."""
    return _of_relevant(hits_TK[:, :k].sum(axis=1) / np.maximum(relevant_T, 1), relevant_T)


def hit_rate_at(hits_TK: Mask, relevant_T: Ints, k: int) -> Floats:
    """1 where a relevant item stands in the first k places, else 0. Shape (T,)."""
    return _of_relevant(hits_TK[:, :k].any(axis=1), relevant_T)


def ndcg_at(hits_TK: Mask, relevant_T: Ints, k: int) -> Floats:
    """DCG / ideal DCG with binary relevance: 1 / log2(place + 1), places from 1. Shape (T,)."""
    gains_K = discount(np.arange(k))
    ideal_K = np.concatenate([[0.0], np.cumsum(gains_K)])
    found_T = (hits_TK[:, :k] * gains_K[: hits_TK.shape[1]]).sum(axis=1)
    return _of_relevant(found_T / ideal_K[np.clip(relevant_T, 1, k)], relevant_T)


def discount(rank: Ints) -> Floats:
    """What a relevant item at that rank, the first being 0, adds to DCG (Järvelin & Kekäläinen, TOIS 2002). Shape of `rank`."""
    gain: Floats = 1.0 / np.log2(rank + 2.0)
    return gain


def average_precision_at(hits_TK: Mask, relevant_T: Ints, k: int) -> Floats:
    """Mean precision at the places of the relevant items, of min(relevant, k) of them; its mean is MAP@k. Shape (T,)."""
    hits = hits_TK[:, :k]
    precision_TK = np.cumsum(hits, axis=1) / np.arange(1, hits.shape[1] + 1)
    return _of_relevant((precision_TK * hits).sum(axis=1) / np.clip(relevant_T, 1, k), relevant_T)


def reciprocal_rank(hits_TK: Mask, relevant_T: Ints) -> Floats:
    """1 / place of the first relevant item, 0 where none is among the K; its mean is MRR. Shape (T,)."""
    return _of_relevant(np.where(hits_TK.any(axis=1), 1.0 / (1 + hits_TK.argmax(axis=1)), 0.0), relevant_T)


def novelty_at(slates_TK: Ints, share_I: Floats, k: int) -> Floats:
    """Mean self-information of the first k items, -log2 of each one's share, in bits. Shape (T,)."""
    shown_TK = slates_TK[:, :k] >= 0
    bits_TK = -np.log2(share_I[slates_TK[:, :k]]) * shown_TK
    return _ratio(bits_TK.sum(axis=1), shown_TK.sum(axis=1))


def diversity_at(slates_TK: Ints, group_I: Ints, k: int) -> Floats:
    """Share of the pairs of the first k items that are of different groups. Shape (T,).

    A pair with an item of no group (-1) is left out.
    """
    slates = slates_TK[:, :k]
    group_TK = np.where(slates >= 0, group_I[slates], -1)
    known_TK = group_TK >= 0
    above_KK = np.triu(np.ones((slates.shape[1], slates.shape[1]), np.bool_), 1)
    pairs_TKK = known_TK[:, :, None] & known_TK[:, None, :] & above_KK
    differ_TKK = pairs_TKK & (group_TK[:, :, None] != group_TK[:, None, :])
    return _ratio(differ_TKK.sum(axis=(1, 2)), pairs_TKK.sum(axis=(1, 2)))


def exposure_at(slates_TK: Ints, items: int, k: int) -> Ints:
    """How often each item stands in the first k places. Shape (I,)."""
    shown = slates_TK[:, :k]
    return np.bincount(shown[shown >= 0], minlength=items)


def coverage(exposure_I: Ints) -> float:
    """Share of the catalogue that was shown at all."""
    return float((exposure_I > 0).mean()) if len(exposure_I) else float("nan")


def gini(exposure_I: Ints) -> float:
    """How unequally items are shown: 0 where all are shown alike, (I - 1) / I where one takes everything."""
    total, items = int(exposure_I.sum()), len(exposure_I)
    if total == 0:
        return float("nan")
    return float(((2 * np.arange(1, items + 1) - items - 1) * np.sort(exposure_I)).sum() / (items * total))


def auc(scores: npt.ArrayLike, labels: npt.ArrayLike) -> float:
    """Chance that a positive scores above a negative, ties counting half. NaN where all labels are equal."""
    _, place_R = np.unique(np.asarray(scores, np.float64), return_inverse=True)
    positive_R = np.asarray(labels, bool)
    return weighted_auc(place_R, positive_R, np.ones(len(positive_R)))


def weighted_auc(place_R: Ints, positive_R: Mask, weight_R: Floats) -> float:
    """`auc` of rows that count so many times; `place_R` numbers their distinct scores in rising order."""
    positive_S = np.bincount(place_R, weight_R * positive_R)
    negative_S = np.bincount(place_R, weight_R * ~positive_R)
    pairs = positive_S.sum() * negative_S.sum()
    below_S = np.cumsum(negative_S) - negative_S / 2
    return float((positive_S * below_S).sum() / pairs) if pairs > 0 else float("nan")


def log_loss(probability_R: npt.ArrayLike, labels: npt.ArrayLike) -> Floats:
    """-log of the probability that was given to what happened, in nats. Shape (R,)."""
    probability = np.asarray(probability_R, np.float64)
    happened_R = np.where(np.asarray(labels, bool), probability, 1.0 - probability)
    return -np.log(np.maximum(happened_R, _LEAST))


@dataclass(frozen=True)
class Bin:
    """Rows of like probability: its mean, the share of positives, how many."""

    predicted: float
    observed: float
    rows: int


def calibration_bins(
    probability_R: npt.ArrayLike, labels: npt.ArrayLike, bins: int = CALIBRATION_BINS
) -> tuple[Bin, ...]:
    """Rows in order of their probability, in bins of equal numbers of rows; fewer bins where there are fewer rows.

    Of rows of one probability each counts as their mean label, so that how a bin cuts through them is no matter.
    """
    probability = np.asarray(probability_R, np.float64)
    _, place_R, count_S = np.unique(probability, return_inverse=True, return_counts=True)
    positive = (np.bincount(place_R, np.asarray(labels, np.float64), len(count_S)) / np.maximum(count_S, 1))[place_R]
    parts = np.array_split(np.argsort(probability, kind="stable"), bins)
    return tuple(
        Bin(float(probability[part].mean()), float(positive[part].mean()), len(part)) for part in parts if len(part)
    )


def calibration_error(bins: tuple[Bin, ...]) -> float:
    """Mean distance of probability and share over rows (expected calibration error)."""
    rows = sum(each.rows for each in bins)
    return sum(each.rows * abs(each.predicted - each.observed) for each in bins) / rows if rows else float("nan")


def _of_relevant(values_T: npt.ArrayLike, relevant_T: Ints) -> Floats:
    return np.where(relevant_T > 0, np.asarray(values_T, np.float64), np.nan)


def _ratio(sum_T: npt.ArrayLike, count_T: Ints) -> Floats:
    return np.where(count_T > 0, np.asarray(sum_T, np.float64) / np.maximum(count_T, 1), np.nan)
