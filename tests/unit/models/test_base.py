"""What an architecture inherits."""

import numpy as np
import pytest
import torch

from headrace.models import columns
from headrace.models.base import NOT_SHOWN, Towers, written_out
from headrace.models.inputs import EncodedItems, ItemInputs, UserInputs
from headrace.models.preprocessing import Catalogue
from headrace.models.ranker import Ranker
from headrace.models.towers import TwoTowers
from tests.unit.models import tiny_shop
from tests.unit.models.foreign import Line, Mean
from tests.unit.models.tiny_shop import MODEL, T_US

FITTED = tiny_shop.preprocessing()
SHOP = Catalogue(FITTED, columns.by_name(tiny_shop.catalogue()))
NOBODY = torch.zeros((0, 0), dtype=torch.int64)


def windows() -> tuple[UserInputs, UserInputs, torch.Tensor, torch.Tensor]:
    """Two histories, of three events and of one; all rows of both, with counts of their own."""
    places = torch.tensor([[2, 3, 4], [0, 0, 5]])
    nothing = torch.zeros((2, 0))
    histories = UserInputs(nothing.long(), nothing, places, torch.tensor([[1, 2, 1], [0, 0, 1]]),
                           torch.tensor([[4, 7, 2], [0, 0, 9]]))  # fmt: skip
    row_R, seen_R = torch.tensor([0, 0, 0, 0, 1, 1]), torch.tensor([0, 1, 2, 3, 0, 1])
    known = FITTED.users(columns.by_name(tiny_shop.users()), np.full(3, T_US), SHOP.row)
    users = known.rows(torch.tensor([0, 1, 2, 0, 1, 2]))
    return histories, users._replace(items_BL=NOBODY, types_BL=NOBODY, gaps_BL=NOBODY), row_R, seen_R


def test_a_history_is_written_out_up_to_what_has_happened_and_the_newest_event_keeps_its_gap() -> None:
    histories, users, row_R, seen_R = windows()
    out = written_out(histories, users, row_R, seen_R)
    assert out.items_BL.tolist() == [[0, 0, 0], [0, 0, 2], [0, 2, 3], [2, 3, 4], [0, 0, 0], [0, 0, 5]]
    assert out.types_BL.tolist() == [[0, 0, 0], [0, 0, 1], [0, 1, 2], [1, 2, 1], [0, 0, 0], [0, 0, 1]]
    assert out.gaps_BL.tolist() == [[0, 0, 0], [0, 0, 4], [0, 4, 7], [4, 7, 2], [0, 0, 0], [0, 0, 9]]
    assert out.numbers_BF is users.numbers_BF


@pytest.mark.parametrize("length", [1, 3])
def test_rows_read_alone_are_what_the_causal_tower_gives_in_one_pass(length: int) -> None:
    torch.manual_seed(0)
    towers = TwoTowers(FITTED, MODEL).eval()
    histories, users, row_R, seen_R = windows()
    if length == 1:
        few = seen_R <= 1
        histories, row_R, seen_R = histories.rows(torch.tensor([1, 1])).trimmed(1), row_R[few], seen_R[few]
        users = UserInputs(users.categories_BC[few], users.numbers_BF[few], NOBODY, NOBODY, NOBODY)
    with torch.inference_mode():
        for parameter in towers.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
        together = towers.users_along(histories, SHOP.inputs, users, row_R, seen_R)
        alone = Towers.users_along(towers, histories, SHOP.inputs, users, row_R, seen_R)
    assert torch.allclose(together, alone, atol=1e-5)


def test_towers_that_give_only_users_learn_from_every_row_of_a_history() -> None:
    torch.manual_seed(0)
    towers = Mean(FITTED, MODEL)
    histories, users, row_R, seen_R = windows()
    vectors = towers.users_along(histories, SHOP.inputs, users, row_R, seen_R)
    assert vectors.shape == (6, 8)
    assert not torch.allclose(vectors[1], vectors[2])
    vectors.sum().backward()  # type: ignore[no-untyped-call]
    assert towers.out.weight.grad.isfinite().all()


def test_settled_logits_of_a_plain_ranker_are_the_scaled_ones_of_the_position_settled_for() -> None:
    torch.manual_seed(0)
    ranker = Line(FITTED, MODEL).eval()
    with torch.no_grad():
        ranker.position_bias.weight.normal_()
    users = FITTED.users(columns.by_name(tiny_shop.users()), np.full(3, T_US), SHOP.row).rows(torch.tensor([0]))
    items = FITTED.items(columns.by_name(tiny_shop.catalogue()), with_activity=True)
    one_user = ItemInputs(*(field[None] for field in items))

    def logits(position: int) -> torch.Tensor:
        found = ranker(users, one_user, tiny_shop.retrieved(1.5, -2.0, 0.0, 1.0), SHOP.inputs)
        return ranker.at_positions(found, torch.full((1, 4), position))

    for slopes, shifts in ((torch.tensor([2.0, 0.5]), torch.tensor([-1.0, 3.0])), (torch.ones(2), torch.ones(2))):
        expected = {position: slopes * logits(position) + shifts for position in (NOT_SHOWN, 1, 2)}
        ranker.settle(1, slopes, shifts)
        for position, wanted in expected.items():
            assert torch.allclose(logits(position), wanted, atol=1e-5)
        assert ranker.position_bias.weight[1].tolist() == [0.0, 0.0]
    assert {"slope_O", "shift_O"} < set(ranker.state_dict())


def test_an_encoder_that_the_towers_lack_keeps_its_start() -> None:
    torch.manual_seed(0)
    towers, ranker = Mean(FITTED, MODEL), Ranker(FITTED, MODEL)
    before = {name: value.clone() for name, value in ranker.state_dict().items()}
    ranker.take_encoders(towers)
    changed = {name for name, value in ranker.state_dict().items() if not torch.equal(value, before[name])}
    assert {name.split(".")[0] for name in changed} == {"item_encoder"}
    assert torch.equal(ranker.item_encoder.ids.table.weight, towers.item_encoder.ids.table.weight)


def test_towers_of_this_package_hand_all_three_encoders_on() -> None:
    towers, ranker = TwoTowers(FITTED, MODEL), Ranker(FITTED, MODEL)
    ranker.take_encoders(towers)
    for name, value in towers.state_dict().items():
        if name.split(".")[0] in ("item_encoder", "history_encoder", "user_encoder"):
            assert torch.equal(ranker.state_dict()[name], value)
    held = {name.split(".")[0] for name, weight in ranker.named_parameters() if not weight.requires_grad}
    assert held == {"item_encoder", "history_encoder", "user_encoder"}


def test_a_ranker_may_encode_nothing_of_an_item() -> None:
    items = FITTED.items(columns.by_name(tiny_shop.catalogue()), with_activity=True)
    one_user = ItemInputs(*(field[None] for field in items))
    users = FITTED.users({}, np.array([T_US]), SHOP.row)
    ranker = Line(FITTED, MODEL)
    history = EncodedItems(SHOP.inputs.rows(users.items_BL), ranker.encode(SHOP.inputs.rows(users.items_BL)))
    found = ranker.logits(
        users, EncodedItems(one_user, ranker.encode(one_user)), history, tiny_shop.retrieved(0, 0, 0, 0)
    )
    assert torch.equal(found, ranker(users, one_user, tiny_shop.retrieved(0, 0, 0, 0), SHOP.inputs))
