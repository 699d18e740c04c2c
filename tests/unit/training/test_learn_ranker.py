"""How the ranker is judged and scaled, by hand: lists of candidates whose logits are given."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from headrace.models.base import NOT_SHOWN, PlainRanker
from headrace.models.inputs import EncodedItems, ItemInputs, Retrieved, UserInputs
from tests.unit.models import tiny_shop
from training.fit import TrainError
from training.learn_ranker import calibrate, calibrated_quality, order_quality, platt
from training.lists import ListBatch

NOTHING = torch.zeros(0, 0)
NOBODY, NO_ITEMS = UserInputs(*[NOTHING] * 5), ItemInputs(*[NOTHING] * 5)


class Given(PlainRanker):
    """Gives each candidate these logits of click and cart."""

    def __init__(self, logits: list[list[list[float]]]) -> None:
        super().__init__(tiny_shop.preprocessing(), tiny_shop.MODEL)
        self.given_BNO = torch.tensor(logits)

    def encode(self, items: ItemInputs) -> Tensor:
        return items.content_NF

    def raw_logits(self, users: UserInputs, items: EncodedItems, history: EncodedItems, retrieved: Retrieved) -> Tensor:
        return self.given_BNO

    def forward(self, users: UserInputs, items: ItemInputs, retrieved: Retrieved, table: ItemInputs) -> Tensor:
        nothing = EncodedItems(items, NOTHING)
        return self.logits(users, nothing, nothing, retrieved)


class OneBatch:
    """Lists that are one batch: of each, scores of retrieval, and the place of what was turned to. Shorter ones are padded."""

    def __init__(self, retrieved: list[list[float]], wanted: list[int], clicks: list[list[float]]) -> None:
        longest = max(len(row) for row in retrieved)
        present_BN = torch.tensor([[place < len(row) for place in range(longest)] for row in retrieved])
        labels_BN = torch.tensor([row + [math.nan] * (longest - len(row)) for row in clicks])
        scores_BN = torch.tensor([row + row[:1] * (longest - len(row)) for row in retrieved])
        self.batch = ListBatch(
            NOBODY,
            NO_ITEMS,
            Retrieved(scores_BN, torch.zeros_like(scores_BN)),
            present_BN,
            torch.stack([labels_BN, 0 * labels_BN], dim=-1),
            torch.full(present_BN.shape, NOT_SHOWN),
            torch.tensor(wanted),
        )

    def parts(self) -> list[ListBatch]:
        return [self.batch]


def quality(ranker: Given, lists: OneBatch) -> float:
    return order_quality(ranker, NO_ITEMS, lists, "cpu")  # type: ignore[arg-type]


def test_of_candidates_that_score_the_same_half_stand_before_what_was_wanted() -> None:
    """Three alike: the wanted one is second, for retrieval as for the ranker, and the gain of one list has no error."""
    alike = OneBatch([[1.0, 1.0, 1.0]], [2], [[0.0, 0.0, 1.0]])
    assert quality(Given([[[0.0, 0.0]] * 3]), alike) == pytest.approx(1 / math.log2(3))
    # One above, and one of two that are equal: an even half is rounded down.
    assert quality(Given([[[2.0, 0.0], [0.0, 0.0], [0.0, 0.0]]]), alike) == pytest.approx(1 / math.log2(3))


def test_what_pads_a_list_stands_before_nothing() -> None:
    lists = OneBatch([[1.0, 0.0], [0.0, 1.0, 2.0]], [0, 2], [[1.0, 0.0], [0.0, 0.0, 1.0]])
    logits = [[[1.0, 0.0], [0.0, 0.0], [9.0, 0.0]], [[0.0, 0.0], [1.0, 0.0], [2.0, 0.0]]]
    assert quality(Given(logits), lists) == 1.0
    assert quality(Given([[*logits[0][:2], [math.nan, 0.0]], logits[1]]), lists) == 1.0


@pytest.mark.parametrize(
    ("model", "retrieved", "logit"),
    [("ranker", 0.0, math.nan), ("towers", math.nan, 0.0), ("towers", math.inf, 0.0)],
)
def test_a_score_that_is_no_number_is_not_the_best_one(model: str, retrieved: float, logit: float) -> None:
    lists = OneBatch([[1.0, retrieved]], [1], [[0.0, 1.0]])
    with pytest.raises(TrainError, match=f"scores of the {model} are not finite: take a lower learning rate"):
        quality(Given([[[1.0, 0.0], [logit, 0.0]]]), lists)


def test_a_ranker_of_several_outcomes_is_judged_by_the_order_that_scaling_leaves() -> None:
    """Carts never come of it, so the one that looked like a cart falls behind the one that was clicked."""
    lists = OneBatch([[1.0, 0.0]], [0], [[1.0, 0.0]])
    ranker = Given([[[1.0, -1.0], [-1.0, 1.0]]])
    assert quality(ranker, lists) == pytest.approx(1 / math.log2(3))
    judged = calibrated_quality(ranker, NO_ITEMS, lists, "cpu")  # type: ignore[arg-type]
    assert judged == 1.0
    assert quality(ranker, lists) == pytest.approx(1 / math.log2(3)), "what is judged stays as it is"
    calibrate(ranker, NO_ITEMS, lists, "cpu")  # type: ignore[arg-type]
    assert quality(ranker, lists) == judged


def test_scaling_finds_the_line_that_the_labels_were_drawn_by() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=200_000)
    labels = (rng.random(200_000) < 1 / (1 + np.exp(-(0.5 * logits - 2)))).astype(float)
    slope, shift = platt(logits, labels)
    assert slope == pytest.approx(0.5, abs=0.03)
    assert shift == pytest.approx(-2, abs=0.03)


@pytest.mark.parametrize("label", [0.0, 1.0])
def test_labels_that_are_all_alike_leave_finite_numbers_and_the_order(label: float) -> None:
    slope, shift = platt(np.array([-1.0, 0.0, 2.0]), np.full(3, label))
    assert np.isfinite([slope, shift]).all()
    assert slope > 0


def test_logits_that_say_the_contrary_do_not_turn_the_order_around() -> None:
    slope, _ = platt(np.array([-1.0, -2.0, 1.0, 2.0]), np.array([1.0, 1.0, 0.0, 0.0]))
    assert slope == 0.05


def test_no_label_at_all_changes_nothing() -> None:
    assert platt(np.zeros(0), np.zeros(0)) == (1.0, 0.0)
