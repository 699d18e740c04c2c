"""Where the one item that was wanted stands among all items: enough for every metric of a single relevant item, and no sort.

Shapes: T requests, I items of the catalogue, D width, K offered.
"""

import numpy as np
import torch
from torch import Tensor

from headrace.arrays import Floats, Ints
from training.fit import TrainError
from training.requests import Histories

_BLOCK = 512
"""Requests whose scores of all items are held at once."""


@torch.inference_mode()  # type: ignore[untyped-decorator]
def target_ranks(user_TD: Tensor, item_ID: Tensor, target_T: Ints, history: Histories) -> Ints:
    """How many items that the user has not seen score above the target, which is none of these; of equal ones half. Shape (T,)."""
    ranks = []
    for start in range(0, len(target_T), _BLOCK):
        scores_BI = _without_seen(user_TD, item_ID, history, start)
        wanted_B1 = scores_BI.gather(1, torch.tensor(target_T[start : start + _BLOCK, None], device=scores_BI.device))
        above_B = (scores_BI > wanted_B1).sum(dim=1)
        equal_B = (scores_BI == wanted_B1).sum(dim=1) - 1
        ranks.append((above_B + torch.div(equal_B.clamp(min=0), 2, rounding_mode="floor")).cpu().numpy())
    return np.concatenate([np.zeros(0, np.int64), *ranks])


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
    if not torch.isfinite(scores_BI).all():
        raise TrainError(
            "the towers give scores that are not finite: take a lower learning rate (`--set learning_rate=...`)"
        )
    pairs = history.rows(slice(start, start + len(block))).pairs
    request, place = (torch.tensor(each, device=scores_BI.device) for each in pairs)
    scores_BI[request, place] = float("-inf")
    return scores_BI


def ndcg(ranks_T: Ints, k: int) -> Floats:
    """Of each request: 1 / log2(rank + 2) within the first k places, else 0."""
    return np.where(ranks_T < k, 1 / np.log2(ranks_T + 2.0), 0.0)
