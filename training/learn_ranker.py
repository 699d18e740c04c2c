"""How the ranker learns: to put what a user turns to before the rest of the offer, and how likely each outcome is.

Retrieved lists teach the order, by a softmax over the candidates, and with the shown ones the outcomes, by a cross entropy each. The
position at which an item was shown adds a bias of its own, which no request has: what is learnt of the item is free of it, as far as a
position's pull does not depend on the item. The probabilities are scaled on lists that nothing was learnt from (Platt, 1999).

Shapes: C candidates of lists, O outcomes, the rest as in `training.lists`.
"""

import copy
from typing import Final

import numpy as np
import torch
from torch import Tensor, nn

from headrace.arrays import Floats, Ints
from headrace.models.base import NOT_SHOWN, RankingModel
from headrace.models.config import CLICK
from headrace.models.inputs import ItemInputs
from headrace.models.ranker import choice_loss, outcome_loss
from training.fit import Units
from training.lists import ListBatch, Lists
from training.ranks import check_finite, ndcg, rank_of

REFERENCE: Final = 1
"""The position that probabilities speak of: the first."""
_STEPS: Final = 100


class RankerObjective(nn.Module):  # type: ignore[misc]
    """Both losses, side by side and at equal weight: of what was chosen, and of outcomes."""

    def __init__(self, ranker: RankingModel, table: ItemInputs) -> None:
        super().__init__()
        self.ranker = ranker
        self._table = table
        self._click = ranker.outcomes.index(CLICK)

    def forward(self, batch: ListBatch) -> Tensor:
        logits_BNO = self.ranker(batch.users, batch.items, batch.retrieved, self._table)
        clicks_BN = logits_BNO[..., self._click].masked_fill(~batch.present_BN, float("-inf"))
        placed_BNO = self.ranker.at_positions(logits_BNO, batch.positions_BN)
        return torch.stack([choice_loss(clicks_BN, batch.wanted_B), outcome_loss(placed_BNO, batch.labels_BNO)])


def units(lists: Lists, device: str) -> Units:
    """Batches for `fit`, of lists; each loss is the mean over what it is of."""

    def read(batch: Ints, share: Ints) -> ListBatch:
        return lists.take(share).to(device)

    counts_R2 = np.stack([lists.choices_R, lists.labels_R], axis=1)
    return Units(lists.users.lengths_R, np.ones(len(lists), np.int64), counts_R2, read)


@torch.inference_mode()  # type: ignore[untyped-decorator]
def calibrated_quality(ranker: RankingModel, table: ItemInputs, lists: Lists, device: str) -> float:
    """`order_quality` of the ranker as `calibrate` would leave it, and that stays as it is: scaling moves the outcomes' probabilities
    against each other, and with them the order of their expected value.
    """
    settled = copy.deepcopy(ranker)
    calibrate(settled, table, lists, device)
    quality: float = order_quality(settled, table, lists, device)
    return quality


@torch.inference_mode()  # type: ignore[untyped-decorator]
def order_quality(ranker: RankingModel, table: ItemInputs, lists: Lists, device: str, k: int = 10) -> float:
    """Mean NDCG@k of what was turned to in retrieved lists, by the ranker's scores as it is; NaN without any.

    What it has over the order of retrieval counts less its standard error: with few lists the best of some epochs would mostly be the
    luckiest. Raises TrainError for scores that are not finite.
    """
    gains, before = [np.zeros(0)], [np.zeros(0)]
    for batch in lists.parts():
        chosen_B = batch.wanted_B >= 0
        on_device = batch.to(device)
        scores_BN = ranker.scores(ranker(on_device.users, on_device.items, on_device.retrieved, table)).cpu()
        retrieved_B, ranked_B = (
            _ndcg_of_wanted(each[chosen_B], batch.present_BN[chosen_B], batch.wanted_B[chosen_B], k, model)
            for each, model in ((batch.retrieved.scores_BN, "towers"), (scores_BN, "ranker"))
        )
        before.append(retrieved_B)
        gains.append(ranked_B - retrieved_B)
    gain_R = np.concatenate(gains)
    if not len(gain_R):
        return float("nan")
    return float(np.concatenate(before).mean() + gain_R.mean() - gain_R.std() / len(gain_R) ** 0.5)


def _ndcg_of_wanted(scores_BN: Tensor, present_BN: Tensor, wanted_B: Tensor, k: int, model: str) -> Floats:
    check_finite(scores_BN[present_BN], model)
    return ndcg(rank_of(wanted_B, scores_BN.masked_fill(~present_BN, float("-inf"))).numpy(), k)


@torch.no_grad()  # type: ignore[untyped-decorator]
def calibrate(ranker: RankingModel, table: ItemInputs, lists: Lists, device: str) -> None:
    """Scale the outcomes' probabilities by lists that the ranker has not learnt from: shown ones where there are any, whose clicks
    are what is to be foretold, else retrieved ones, and then they are of an item among those.
    """
    logits_CO, labels_CO, positions_C = _all(ranker, table, lists, device)
    shown_C = positions_C != NOT_SHOWN
    used_C = shown_C if shown_C.any() else ~shown_C
    fitted = [platt(logits_CO[used_C, place], labels_CO[used_C, place]) for place in range(len(ranker.outcomes))]
    slopes, shifts = (torch.tensor(each, dtype=torch.float32, device=device) for each in zip(*fitted, strict=True))
    ranker.settle(REFERENCE if shown_C.any() else NOT_SHOWN, slopes, shifts)


def _all(ranker: RankingModel, table: ItemInputs, lists: Lists, device: str) -> tuple[Floats, Floats, Ints]:
    """Logits at the positions shown, labels and positions of every candidate."""
    logits, labels, positions = [], [], []
    for batch in lists.parts():
        present_BN = batch.present_BN
        on_device = batch.to(device)
        found = ranker(on_device.users, on_device.items, on_device.retrieved, table)
        logits.append(ranker.at_positions(found, on_device.positions_BN).cpu()[present_BN].double().numpy())
        labels.append(batch.labels_BNO[present_BN].double().numpy())
        positions.append(batch.positions_BN[present_BN].numpy())
    return np.concatenate(logits), np.concatenate(labels), np.concatenate(positions)


def platt(logits_C: Floats, labels_C: Floats) -> tuple[float, float]:
    """Slope and shift of the logistic regression of labels on logits, by Newton's method; labels are drawn a little towards each
    other, as Platt has it, so that both stay finite. A slope is at least 0.05: no outcome turns the order around. Without labels
    nothing changes.
    """
    if not len(labels_C):
        return 1.0, 0.0
    positives, negatives = float(labels_C.sum()), float((1 - labels_C).sum())
    high, low = (positives + 1) / (positives + 2), 1 / (negatives + 2)
    wanted_C = np.where(labels_C > 0, high, low)
    design_C2 = np.stack([logits_C, np.ones_like(logits_C)], axis=1)
    found = np.array([1.0, 0.0])
    for _ in range(_STEPS):
        chances_C = 1 / (1 + np.exp(-design_C2 @ found))
        gradient = design_C2.T @ (chances_C - wanted_C)
        curvature = (design_C2 * (chances_C * (1 - chances_C))[:, None]).T @ design_C2 + 1e-6 * np.eye(2)
        step = np.linalg.solve(curvature, gradient)
        found = found - step * min(1.0, 1 / max(np.abs(step).max(), 1e-12))
        if np.abs(step).max() < 1e-8:
            break
    return max(float(found[0]), 0.05), float(found[1])
