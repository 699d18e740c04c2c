"""Ranking metrics. Shapes: T test requests, K places of their slates, best first.

`hits_TK` is True where the item at that place is relevant; `relevant_T` is how many items are relevant to the request.
A request without a relevant item is left out of the means; with no request left a metric is NaN.
"""

import numpy as np
import numpy.typing as npt

from headrace.arrays import Ints

Bools = npt.NDArray[np.bool_]


def recall_at(hits_TK: Bools, relevant_T: Ints, k: int) -> float:
    """Mean share of a request's relevant items that stand in its first k places."""
    return _mean(hits_TK[:, :k].sum(axis=1) / np.maximum(relevant_T, 1), relevant_T)


def hit_rate_at(hits_TK: Bools, relevant_T: Ints, k: int) -> float:
    """Share of requests with at least one relevant item in the first k places."""
    return _mean(hits_TK[:, :k].any(axis=1).astype(np.float64), relevant_T)


def ndcg_at(hits_TK: Bools, relevant_T: Ints, k: int) -> float:
    """Mean of DCG / ideal DCG with binary relevance: 1 / log2(place + 1), places from 1."""
    gains_K = 1.0 / np.log2(np.arange(2, k + 2))
    ideal_K = np.concatenate([[0.0], np.cumsum(gains_K)])
    found_T = (hits_TK[:, :k] * gains_K[: hits_TK.shape[1]]).sum(axis=1)
    return _mean(found_T / ideal_K[np.clip(relevant_T, 1, k)], relevant_T)


def mrr(hits_TK: Bools, relevant_T: Ints) -> float:
    """Mean of 1 / place of the first relevant item, 0 where none is among the K."""
    first_T = np.where(hits_TK.any(axis=1), 1.0 / (1 + hits_TK.argmax(axis=1)), 0.0)
    return _mean(first_T, relevant_T)


def coverage_at(slates_TK: Ints, catalogue: int, k: int) -> float:
    """Share of the catalogue that stands in the first k places of any request. -1 marks an empty place."""
    shown = np.unique(slates_TK[:, :k])
    return float((shown >= 0).sum() / catalogue) if catalogue else float("nan")


def auc(scores: npt.ArrayLike, labels: npt.ArrayLike) -> float:
    """Chance that a positive scores above a negative, ties counting half. NaN where all labels are equal."""
    values, positive = np.asarray(scores, dtype=np.float64), np.asarray(labels, dtype=bool)
    positives, negatives = int(positive.sum()), int((~positive).sum())
    if positives == 0 or negatives == 0:
        return float("nan")
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    mean_rank = np.cumsum(count) - (count - 1) / 2
    return float((mean_rank[place][positive].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def _mean(values_T: npt.ArrayLike, relevant_T: Ints) -> float:
    kept = np.asarray(values_T)[relevant_T > 0]
    return float(kept.mean()) if len(kept) else float("nan")
