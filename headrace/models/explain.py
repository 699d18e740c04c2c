"""Which features weighed in a score: the score's gradient by each input, times the input (Shrikumar et al., 2016).

To first order it is what the score would lose if the input were at its mean, since inputs are standardised.
"""

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor

from headrace.models.base import RankingModel
from headrace.models.inputs import EncodedItems, Retrieved, UserInputs
from headrace.models.preprocessing import Number, Preprocessing

NEARNESS: Final = "neighbours of the history"
"""What the nearness to the history is called among features."""


class Weights(NamedTuple):
    """Of R candidates: what each feature of the user, of the content and of the activity, each place of the history, and that people turn
    to it around those items, adds.
    """

    user_RF: Tensor
    content_RF: Tensor
    activity_RF: Tensor
    history_RL: Tensor
    nearness_R: Tensor


def weigh(
    ranker: RankingModel, users: UserInputs, items: EncodedItems, history: EncodedItems, retrieved: Retrieved
) -> Weights:
    """Of R rows of one candidate each (N = 1); the user stands R times. What a ranker does not read by a gradient adds 0."""
    with torch.enable_grad():
        read = (users.numbers_BF, items.inputs.content_NF, items.inputs.activity_NF, history.vectors_ND)
        inputs = [each.clone().requires_grad_() for each in (*read, retrieved.nearness_BN)]
        numbers, content, activity, vectors, nearness = inputs
        logits_RNO = ranker.logits(
            users._replace(numbers_BF=numbers),
            EncodedItems(items.inputs._replace(content_NF=content, activity_NF=activity), items.vectors_ND),
            EncodedItems(history.inputs, vectors),
            retrieved._replace(nearness_BN=nearness),
        )
        score = ranker.scores(logits_RNO).sum()
        slopes = torch.autograd.grad(score, inputs, allow_unused=True) if score.requires_grad else [None] * len(inputs)
    user, item_content, item_activity, past, near = (
        (each * (0 if slope is None else slope)).detach() for each, slope in zip(inputs, slopes, strict=True)
    )
    return Weights(user, item_content[:, 0], item_activity[:, 0], past.sum(dim=-1), near[:, 0])


def named(
    weights: Weights, preprocessing: Preprocessing, history: Sequence[str], most: int
) -> list[list[dict[str, Any]]]:
    """For each candidate the features that weighed most. `history`: item ids of the newest places, oldest first."""
    groups = (
        (preprocessing.user_numbers, weights.user_RF),
        (preprocessing.content_numbers, weights.content_RF),
        (preprocessing.activity_numbers, weights.activity_RF),
    )
    explained = []
    for row in range(len(weights.user_RF)):
        found = [pair for numbers, table in groups for pair in _by_feature(numbers, table[row].tolist())]
        places = weights.history_RL[row].tolist()[len(weights.history_RL[row]) - len(history) :]
        found += [(f"history: {item}", weight) for item, weight in zip(history, places, strict=True)]
        found.append((NEARNESS, float(weights.nearness_R[row])))
        found.sort(key=lambda pair: -abs(pair[1]))
        explained.append([{"feature": name, "weight": round(weight, 6)} for name, weight in found[:most]])
    return explained


def _by_feature(numbers: Sequence[Number], weights: Sequence[float]) -> list[tuple[str, float]]:
    found, at = [], 0
    for number in numbers:
        found.append((number.name, sum(weights[at : at + number.width])))
        at += number.width
    return found
