import math

import numpy as np
import pytest
import torch

from headrace.models import columns
from headrace.models.preprocessing import Catalogue
from headrace.models.towers import TwoTowers, full_softmax_loss, sampled_softmax_loss
from tests.unit.models import tiny_shop
from tests.unit.models.tiny_shop import T_US


def test_full_softmax_is_the_mean_negative_log_probability() -> None:
    loss = full_softmax_loss(torch.tensor([[1.0]]), torch.tensor([[math.log(3.0)], [0.0]]), torch.tensor([0]))
    assert loss.item() == pytest.approx(
        -math.log(3 / 4), rel=5e-3
    )  # logits have the three digits of half-wide products


def test_the_catalogues_cross_entropy_and_its_gradients_are_those_of_all_logits() -> None:
    torch.manual_seed(0)
    users, items = torch.randn(150, 8, requires_grad=True), torch.randn(90, 8, requires_grad=True)
    targets = torch.randint(90, (150,))
    expected = torch.nn.functional.cross_entropy(users @ items.T, targets)
    of_users, of_items = torch.autograd.grad(2 * expected, [users, items])
    loss = full_softmax_loss(users, items, targets)
    found = torch.autograd.grad(2 * loss, [users, items])
    # Half-wide products have three digits.
    assert loss.item() == pytest.approx(expected.item(), rel=5e-3)
    for own, exact in zip(found, (of_users, of_items), strict=True):
        assert (own - exact).norm() < 0.02 * exact.norm()


def test_log_q_takes_back_how_often_an_item_is_drawn() -> None:
    users, items = torch.tensor([[1.0], [1.0]]), torch.tensor([[math.log(2.0)], [0.0]])
    log_q = torch.log(torch.tensor([0.5, 0.25]))
    loss = sampled_softmax_loss(users, items, torch.tensor([0, 1]), log_q, torch.tensor([0, 1]))
    # logits: log 2 - log 0.5 = log 4, and 0 - log 0.25 = log 4
    assert loss.item() == pytest.approx(-math.log(1 / 2))


def test_what_another_row_of_the_window_is_of_was_sure_to_be_a_candidate() -> None:
    users, items = torch.zeros(3, 1), torch.zeros(2, 1)
    log_q, place = torch.log(torch.tensor([0.5, 0.25])), torch.tensor([0, 1, 1])

    def loss(*windows: int) -> float:
        return sampled_softmax_loss(users, items, place, log_q, torch.tensor(windows)).item()

    apart = [math.log(6 / 2), math.log(6 / 4), math.log(6 / 4)]  # 1 / 0.5 against 1 / 0.25
    assert loss(0, 1, 2) == pytest.approx(sum(apart) / 3)
    first_two = [math.log(3 / 2), math.log(5 / 4)]  # the other one's item weighs 1
    assert loss(0, 0, 1) == pytest.approx((sum(first_two) + apart[2]) / 3)
    last_two = math.log(3 / 1)  # of one item: it was sure to be there, whichever row is asked
    assert loss(0, 1, 1) == pytest.approx((apart[0] + 2 * last_two) / 3)


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


def test_a_batch_of_short_histories_may_leave_out_its_empty_places(towers: TwoTowers) -> None:
    fitted = tiny_shop.preprocessing()
    shop = Catalogue(fitted, columns.by_name(tiny_shop.catalogue()))
    users = fitted.users(columns.by_name(tiny_shop.users()), np.full(3, T_US), shop.row).rows(torch.tensor([1, 2]))
    assert users.trimmed(1).items_BL.shape == (2, 1)
    assert torch.allclose(towers.users(users.trimmed(1), shop.inputs), towers.users(users, shop.inputs), atol=1e-6)


def test_unseen_items_of_two_categories_differ_by_content_alone(towers: TwoTowers) -> None:
    fitted = tiny_shop.preprocessing()
    features = {"item_id": ["new 1", "new 2", "new 3"], "item_catalogue__category": ["shoes", "books", "shoes"]}
    vectors = towers.items(fitted.items(features, with_activity=False))
    assert torch.equal(vectors[0], vectors[2])
    assert not torch.allclose(vectors[0], vectors[1])
