import math

import numpy as np
import pytest
import torch

from headrace.models import columns
from headrace.models.preprocessing import Catalogue
from headrace.models.towers import TwoTowers, full_softmax_loss, in_batch_softmax_loss
from tests.unit.models import tiny_shop
from tests.unit.models.tiny_shop import T_US


def test_full_softmax_is_the_mean_negative_log_probability() -> None:
    loss = full_softmax_loss(torch.tensor([[1.0]]), torch.tensor([[math.log(3.0)], [0.0]]), torch.tensor([0]))
    assert loss.item() == pytest.approx(-math.log(3 / 4))


def test_log_q_takes_back_how_often_an_item_is_drawn() -> None:
    users, items = torch.tensor([[1.0], [1.0]]), torch.tensor([[math.log(2.0)], [0.0]])
    loss = in_batch_softmax_loss(users, items, torch.tensor([7, 8]), torch.log(torch.tensor([0.5, 0.25])))
    # logits: log 2 - log 0.5 = log 4, and 0 - log 0.25 = log 4
    assert loss.item() == pytest.approx(-math.log(1 / 2))


def test_another_row_with_the_same_item_is_no_negative() -> None:
    users, items = torch.ones(3, 1), torch.tensor([[0.0], [0.0], [0.0]])
    loss = in_batch_softmax_loss(users, items, torch.tensor([5, 5, 6]), torch.zeros(3))
    assert loss.item() == pytest.approx((2 * math.log(2) + math.log(3)) / 3)


@pytest.fixture
def towers() -> TwoTowers:
    torch.manual_seed(0)
    return TwoTowers(tiny_shop.preprocessing(), tiny_shop.MODEL).eval()


def test_a_user_without_history_has_a_finite_vector(towers: TwoTowers) -> None:
    fitted = tiny_shop.preprocessing()
    shop = Catalogue(fitted, columns.by_name(tiny_shop.catalogue()))
    users = fitted.users({}, np.array([T_US]), shop.row)
    assert torch.isfinite(towers.users(users, shop.inputs)).all()


def test_padding_does_not_change_a_user(towers: TwoTowers) -> None:
    """What lies in padded places must not be read: the padding row's content is changed, the user stays."""
    fitted = tiny_shop.preprocessing()
    shop = Catalogue(fitted, columns.by_name(tiny_shop.catalogue()))
    users = fitted.users(columns.by_name(tiny_shop.users()), np.full(3, T_US), shop.row)
    before = towers.users(users, shop.inputs)
    shop.inputs.content_NF[0] = 99.0
    assert torch.equal(towers.users(users, shop.inputs), before)


def test_unseen_items_of_two_categories_differ_by_content_alone(towers: TwoTowers) -> None:
    fitted = tiny_shop.preprocessing()
    features = {"item_id": ["new 1", "new 2", "new 3"], "item_catalogue__category": ["shoes", "books", "shoes"]}
    vectors = towers.items(fitted.items(features, with_activity=False))
    assert torch.equal(vectors[0], vectors[2])
    assert not torch.allclose(vectors[0], vectors[1])


def test_in_training_the_id_is_dropped_at_random() -> None:
    torch.manual_seed(0)
    towers = TwoTowers(tiny_shop.preprocessing(), tiny_shop.MODEL).train()
    item = tiny_shop.preprocessing().items({"item_id": ["a"] * 400}, with_activity=False)
    own = torch.isclose(towers.item_encoder.ids(item.id_N), towers.item_encoder.ids.table.weight[2]).all(dim=1)
    assert 0.05 < 1 - own.float().mean().item() < 0.3
