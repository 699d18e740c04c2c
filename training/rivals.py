"""The baselines as they answer a test. What they have to choose, they choose on the validation part; what they learn from is
everything before the cut, and popularity of late also what happened after it, up to each request.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from training import metrics
from training.baselines import (
    co_occurrence_scores,
    item_knn,
    item_knn_scores,
    neighbours,
    popularity,
    recent_popularity,
)
from training.config import TrainConfig
from training.dataset import DatasetError, Split
from training.requests import Requests, Scores, best_places, read_requests

POPULAR, RECENT, ITEM_KNN, CO_OCCURRENCE = "most popular", "recent popular", "item-kNN", "co-occurrence"
RIVALS = (POPULAR, RECENT, ITEM_KNN, CO_OCCURRENCE)
HALF_LIFE_SHARES = (1.0, 1 / 4, 1 / 16, 1 / 64, 1 / 256)
"""Of the time from the window's start to the cut."""
ITEM_KNN_NEIGHBOURS = (20, 50, 200)
_UNTUNED = (1 / 16, 50)
# Of co-occurrence: the newest items of a history that count, and the neighbours of each. Serving's source looks at 5 and 20.
_WALK = 50
_NEAR = 100
_TUNED_ON = 2_000
_CHOSEN_BY = 10

Choice = TypeVar("Choice")


@dataclass(frozen=True)
class Knobs:
    """`half_life_share` of recent popularity, `neighbours` of item-kNN; `validated` is False where there was no validation to choose by."""

    half_life_share: float
    neighbours: int
    validated: bool


def rivals(requests: Requests, split: Split, item_ids: Sequence[str], knobs: Knobs) -> dict[str, Scores]:
    """Scores of every item by each baseline, for these requests."""
    before = split.before_cut
    popularity_I = popularity(before, item_ids)
    recent = recent_popularity(split.everything, item_ids, knobs.half_life_share * (split.cut_us - split.start_us))
    nearest_IK, likeness_IK = item_knn(before, item_ids, knobs.neighbours)
    near_IK, near_scores_IK = neighbours(before, item_ids, k=_NEAR)
    return {
        POPULAR: lambda some: np.tile(popularity_I, (len(requests.target_T[some]), 1)),
        RECENT: lambda some: recent(requests.t_us[some]),
        ITEM_KNN: item_knn_scores(requests.history, nearest_IK, likeness_IK, popularity_I),
        CO_OCCURRENCE: lambda some: co_occurrence_scores(
            requests.history.rows(some).last(_WALK), near_IK, near_scores_IK, popularity_I
        ),
    }


def choose_knobs(split: Split, item_ids: Sequence[str], config: TrainConfig) -> Knobs:
    """Those of the highest NDCG@10 on requests of the validation part, of equals the first."""
    everything = split.before_cut
    try:
        requests = read_requests(split.validation, everything, item_ids, _TUNED_ON, config.seed)
    except DatasetError:
        return Knobs(*_UNTUNED, validated=False)
    popularity_I = popularity(split.train, item_ids)
    span_us = split.validation_us - split.start_us

    def by_half_life(share: float) -> Scores:
        recent = recent_popularity(everything, item_ids, share * span_us)
        return lambda some: recent(requests.t_us[some])

    near_IK, scores_IK = item_knn(split.train, item_ids, max(ITEM_KNN_NEIGHBOURS))

    def by_neighbours(k: int) -> Scores:
        return item_knn_scores(requests.history, near_IK[:, :k], scores_IK[:, :k], popularity_I)

    return Knobs(
        _best(requests, ((share, by_half_life(share)) for share in HALF_LIFE_SHARES)),
        _best(requests, ((k, by_neighbours(k)) for k in ITEM_KNN_NEIGHBOURS)),
        validated=True,
    )


def _best(requests: Requests, choices: Iterable[tuple[Choice, Scores]]) -> Choice:
    def ndcg(scores: Scores) -> float:
        hits_TK = best_places(scores, requests.history, _CHOSEN_BY) == requests.target_T[:, None]
        return metrics.mean(metrics.ndcg_at(hits_TK, np.ones(len(hits_TK), np.int64), _CHOSEN_BY))

    measured = [(ndcg(scores), choice) for choice, scores in choices]
    return max(measured, key=lambda pair: pair[0])[1]
