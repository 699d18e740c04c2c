"""What is measured of slates. T requests, K places, I items of the catalogue."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from headrace import names
from headrace.arrays import Floats, Ints
from headrace.models.preprocessing import Catalogue, Preprocessing
from training import metrics
from training.requests import Requests

TOWERS, RANKED, CHAMPION = "two towers", "towers + ranker", "champion"
DEPTH = 100
"""Places of a slate; what stands behind them counts as not found."""
CUTOFFS = (10, 20)
_DEEP = (50, DEPTH)
MAIN = "ndcg_at_10"
_SLATE = 10
_CATEGORY = f"{names.ITEM_CATALOGUE}__category"
NO_CATEGORY = -1


@dataclass(frozen=True)
class Facts:
    """Of the catalogue's items: their share of the training episodes, one added to each; their category, -1 for none, and its names."""

    share_I: Floats
    category_I: Ints
    categories: tuple[str, ...]

    @property
    def items(self) -> int:
        return len(self.share_I)


def facts_of(preprocessing: Preprocessing, shop: Catalogue, trained_I: npt.NDArray[np.float32]) -> Facts:
    """A category that training did not see counts as none."""
    smooth_I = trained_I.astype(np.float64) + 1
    category_I = np.full(len(trained_I), NO_CATEGORY, np.int64)
    categories: tuple[str, ...] = ()
    features = list(preprocessing.content_categories)
    if _CATEGORY in features:
        vocabulary = preprocessing.content_categories[_CATEGORY]
        codes_I = shop.inputs.categories_NC[Catalogue.FIRST :, features.index(_CATEGORY)].numpy()
        category_I = np.maximum(codes_I - vocabulary.first_known, NO_CATEGORY)
        categories = tuple(vocabulary.values)
    return Facts(smooth_I / smooth_I.sum(), category_I, categories)


def values_of(slates_TK: Ints, requests: Requests, facts: Facts) -> dict[str, Floats]:
    """By metric, a value of each request, whose one relevant item is its target. Shapes (T,)."""
    hits_TK = slates_TK == requests.target_T[:, None]
    one_T = np.ones(len(hits_TK), dtype=np.int64)
    measured = {}
    for k in CUTOFFS:
        measured[f"ndcg_at_{k}"] = metrics.ndcg_at(hits_TK, one_T, k)
        measured[f"recall_at_{k}"] = metrics.recall_at(hits_TK, one_T, k)
        measured[f"hit_rate_at_{k}"] = metrics.hit_rate_at(hits_TK, one_T, k)
        measured[f"map_at_{k}"] = metrics.average_precision_at(hits_TK, one_T, k)
    for k in _DEEP:
        measured[f"recall_at_{k}"] = metrics.recall_at(hits_TK, one_T, k)
    measured["mrr"] = metrics.reciprocal_rank(hits_TK, one_T)
    measured[f"novelty_at_{_SLATE}"] = metrics.novelty_at(slates_TK, facts.share_I, _SLATE)
    measured[f"diversity_at_{_SLATE}"] = metrics.diversity_at(slates_TK, facts.category_I, _SLATE)
    return measured


def exposure_of(slates_TK: Ints, facts: Facts) -> Ints:
    """How often each item was in a slate of 10. Shape (I,)."""
    return metrics.exposure_at(slates_TK, facts.items, _SLATE)


def together(exposure_I: Ints) -> dict[str, float]:
    """What only all slates together have."""
    return {f"coverage_at_{_SLATE}": metrics.coverage(exposure_I), f"gini_at_{_SLATE}": metrics.gini(exposure_I)}
