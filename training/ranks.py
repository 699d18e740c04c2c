"""Where the one item that was wanted stands among all items, or in a list: enough for every metric of a single relevant item, and no sort.

Shapes: T requests, B of them at once, I items of the catalogue, N candidates, D width, K offered.
"""

import numpy as np
import torch
from torch import Tensor

from headrace.arrays import Floats, Ints
from training.fit import TrainError
from training.metrics import discount
from training.requests import Histories

_BLOCK = 512
"""Requests whose scores of all items are held at once."""


@torch.inference_mode()  # type: ignore[untyped-decorator]
def target_ranks(user_TD: Tensor, item_ID: Tensor, target_T: Ints, history: Histories) -> Ints:
    """How many items that the user has not seen score above the target, which is none of these; of equal ones half. Shape (T,)."""
    ranks = []
    for start in range(0, len(target_T), _BLOCK):
        scores_BI = _without_seen(user_TD, item_ID, history, start)
        wanted_B = torch.tensor(target_T[start : start + _BLOCK], device=scores_BI.device)
        ranks.append(rank_of(wanted_B, scores_BI).cpu().numpy())
    return np.concatenate([np.zeros(0, np.int64), *ranks])


def rank_of(wanted_B: Tensor, scores_BN: Tensor) -> Tensor:
    """How many of its row score above the wanted place; of equal ones half, rounded down: who scores all alike is not first. (B,)"""
    wanted_B1 = scores_BN.gather(1, wanted_B[:, None])
    above_B, equal_B = (scores_BN > wanted_B1).sum(dim=1), (scores_BN == wanted_B1).sum(dim=1)
    return above_B + (equal_B - 1) // 2


def check_finite(scores: Tensor, model: str) -> None:
    """Raises TrainError: of a NaN nothing is more, and so it would be first."""
    if not torch.isfinite(scores).all():
        raise TrainError(
            f"scores of the {model} are not finite: take a lower learning rate (`--set learning_rate=...`), "
            "and look whether a feature has huge values"
        )


@torch.inference_mode()  # type: ignore[untyped-decorator]
def best_unseen(user_TD: Tensor, item_ID: Tensor, history: Histories, k: int) -> Ints:
    """Places of the k best items that each user has not seen, best first, -1 where there are fewer. Shape (T, K)."""
    k = min(k, len(item_ID))
    found = [np.zeros((0, k), np.int64)]
    for start in range(0, len(user_TD), _BLOCK):
        scores_BI = _without_seen(user_TD, item_ID, history, start)
        scores_BK, places_BK = scores_BI.topk(k, dim=1)
        found.append(places_BK.masked_fill(scores_BK == float("-inf"), -1).cpu().numpy())
    return np.concatenate(found)


def _without_seen(user_TD: Tensor, item_ID: Tensor, history: Histories, start: int) -> Tensor:
    """Scores of a block of users, those of what they have seen minus infinity. Raises TrainError for one that is not finite."""
    block = user_TD[start : start + _BLOCK]
    scores_BI = block @ item_ID.T
    check_finite(scores_BI, "towers")
    pairs = history.rows(slice(start, start + len(block))).pairs
    request, place = (torch.tensor(each, device=scores_BI.device) for each in pairs)
    scores_BI[request, place] = float("-inf")
    return scores_BI


def ndcg(ranks_T: Ints, k: int) -> Floats:
    """Of each request: 1 / log2(rank + 2) within the first k places, else 0."""
    return np.where(ranks_T < k, discount(ranks_T), 0.0)
