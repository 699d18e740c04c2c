"""Where the one item that was wanted stands among all items: enough for every metric of a single relevant item, and no sort.

Shapes: T requests, I items of the catalogue, D width, H items of all own histories together.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl
import torch
from torch import Tensor

from headrace import names
from headrace.arrays import Floats, Ints
from training.dataset import T_US

_BLOCK = 512
"""Requests whose scores of all items are held at once."""


class ModelError(RuntimeError):
    """A model whose scores are no numbers."""


@dataclass(frozen=True)
class Ragged:
    """Lists of places side by side: list t is `values_H[offsets_T[t] : offsets_T[t + 1]]`."""

    values_H: Ints
    offsets_T: Ints

    def __len__(self) -> int:
        return len(self.offsets_T) - 1

    def pairs(self, start: int, stop: int) -> tuple[Ints, Ints]:
        """Of lists `start` to `stop`: which of them (from 0), and what stands in it."""
        offsets = self.offsets_T[start : stop + 1]
        return np.repeat(np.arange(stop - start), np.diff(offsets)), self.values_H[offsets[0] : offsets[-1]]

    def take(self, lists: Ints) -> "Ragged":
        lengths = np.diff(self.offsets_T)[lists]
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        starts = np.repeat(self.offsets_T[lists] - offsets[:-1], lengths)
        return Ragged(self.values_H[starts + np.arange(offsets[-1])], offsets)


def own_histories(requests: pl.DataFrame, episodes: pl.DataFrame, place_of: pl.DataFrame) -> Ragged:
    """The items of each request's user in episodes before it. `place_of` has columns item_id and place."""
    before = (
        requests.select(names.USER_ID, pl.col(T_US).alias("asked_us"))
        .with_row_index("request")
        .join(episodes.select(names.USER_ID, names.ITEM_ID, T_US), on=names.USER_ID)
        .filter(pl.col(T_US) < pl.col("asked_us"))
        .join(place_of, on=names.ITEM_ID)
        .select("request", "place")
        .unique()
        .sort("request", "place")
    )
    counts = np.bincount(before["request"].to_numpy(), minlength=requests.height)
    return Ragged(before["place"].to_numpy().astype(np.int64), np.concatenate([[0], np.cumsum(counts)]))


@torch.inference_mode()  # type: ignore[untyped-decorator]
def target_ranks(user_TD: Tensor, item_ID: Tensor, target_T: Ints, seen: Ragged) -> Ints:
    """How many items that the user has not seen score above the target, which is none of these; of equal ones half. Shape (T,)."""
    ranks = []
    for start in range(0, len(target_T), _BLOCK):
        scores_BI = _without_seen(user_TD, item_ID, seen, start)
        wanted_B1 = scores_BI.gather(1, torch.from_numpy(target_T[start : start + _BLOCK, None]).to(scores_BI.device))
        above_B = (scores_BI > wanted_B1).sum(dim=1)
        equal_B = (scores_BI == wanted_B1).sum(dim=1) - 1
        ranks.append((above_B + torch.div(equal_B.clamp(min=0), 2, rounding_mode="floor")).cpu().numpy())
    return np.concatenate([np.zeros(0, np.int64), *ranks])


@torch.inference_mode()  # type: ignore[untyped-decorator]
def best_unseen(user_TD: Tensor, item_ID: Tensor, seen: Ragged, k: int) -> Ints:
    """Places of the k best items that each user has not seen, best first, -1 where there are fewer. Shape (T, K)."""
    k = min(k, len(item_ID))
    found = [np.zeros((0, k), np.int64)]
    for start in range(0, len(user_TD), _BLOCK):
        scores_BI = _without_seen(user_TD, item_ID, seen, start)
        scores_BK, places_BK = scores_BI.topk(k, dim=1)
        found.append(places_BK.masked_fill(scores_BK == float("-inf"), -1).cpu().numpy())
    return np.concatenate(found)


def _without_seen(user_TD: Tensor, item_ID: Tensor, seen: Ragged, start: int) -> Tensor:
    """Scores of a block of users, those of what they have seen minus infinity. Raises ModelError for one that is not finite."""
    block = user_TD[start : start + _BLOCK]
    scores_BI = block @ item_ID.T
    if not torch.isfinite(scores_BI).all():
        raise ModelError(
            "the towers give scores that are not finite: take a lower learning rate (`--set learning_rate=...`)"
        )
    request, place = (torch.from_numpy(each).to(scores_BI.device) for each in seen.pairs(start, start + len(block)))
    scores_BI[request, place] = float("-inf")
    return scores_BI


def ndcg(ranks_T: Ints, k: int) -> Floats:
    """Of each request: 1 / log2(rank + 2) within the first k places, else 0."""
    return np.where(ranks_T < k, 1 / np.log2(ranks_T + 2.0), 0.0)


def recall(ranks_T: Ints, k: int) -> npt.NDArray[np.float64]:
    return (ranks_T < k).astype(np.float64)
