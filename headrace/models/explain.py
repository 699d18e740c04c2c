"""Which features weighed in a score: the score's gradient by each input, times how far it is from its base (Shrikumar et al., 2016).

To first order it is what the score would lose if the input were at its base. The base of a number is its mean, since numbers are
standardised; of the towers' score it is that of the shop's mean item, for this user. Of the rest it is 0: that a number is missing, how
near the candidate is to the history, the vectors of the history's items.
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
RETRIEVAL: Final = "retrieval"
"""What the towers' score is called."""


class Weights(NamedTuple):
    """Of R candidates: what each feature of the user, of the content and of the activity, each place of the history, that people turn to
    it around those items, and the towers' score adds.
    """

    user_RF: Tensor
    content_RF: Tensor
    activity_RF: Tensor
    history_RL: Tensor
    nearness_R: Tensor
    retrieval_R: Tensor


def weigh(
    ranker: RankingModel,
    users: UserInputs,
    items: EncodedItems,
    history: EncodedItems,
    retrieved: Retrieved,
    usual_score: float,
) -> Weights:
    """Of R rows of one candidate each (N = 1); the user stands R times. `usual_score` is the base of the towers' score. What a ranker does
    not read by a gradient adds 0.
    """
    with torch.enable_grad():
        read = (users.numbers_BF, items.inputs.content_NF, items.inputs.activity_NF, history.vectors_ND)
        inputs = [each.clone().requires_grad_() for each in (*read, retrieved.nearness_BN, retrieved.scores_BN)]
        numbers, content, activity, vectors, nearness, scores = inputs
        logits_RNO = ranker.logits(
            users._replace(numbers_BF=numbers),
            EncodedItems(items.inputs._replace(content_NF=content, activity_NF=activity), items.vectors_ND),
            EncodedItems(history.inputs, vectors),
            Retrieved(scores, nearness),
        )
        score = ranker.scores(logits_RNO).sum()
        slopes = torch.autograd.grad(score, inputs, allow_unused=True) if score.requires_grad else [None] * len(inputs)
    bases = [0.0] * len(read) + [0.0, usual_score]
    user, item_content, item_activity, past, near, found = (
        ((each - base) * (0 if slope is None else slope)).detach()
        for each, base, slope in zip(inputs, bases, slopes, strict=True)
    )
    return Weights(user, item_content[:, 0], item_activity[:, 0], past.sum(dim=-1), near[:, 0], found[:, 0])


def named(
    weights: Weights, preprocessing: Preprocessing, history: Sequence[str], most: int
) -> list[list[dict[str, Any]]]:
    """For each candidate the features that weighed most, none that added nothing. `history`: item ids of the newest places, oldest
    first.
    """
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
        found += [(NEARNESS, float(weights.nearness_R[row])), (RETRIEVAL, float(weights.retrieval_R[row]))]
        found.sort(key=lambda pair: -abs(pair[1]))
        rounded = [(name, round(weight, 6)) for name, weight in found[:most]]
        explained.append([{"feature": name, "weight": weight} for name, weight in rounded if weight])
    return explained


def _by_feature(numbers: Sequence[Number], weights: Sequence[float]) -> list[tuple[str, float]]:
    found, at = [], 0
    for number in numbers:
        found.append((number.name, sum(weights[at : at + number.width])))
        at += number.width
    return found
