import math

import numpy as np
import pytest
import torch

from headrace.models import columns
from headrace.models.base import NOT_SHOWN
from headrace.models.inputs import ItemInputs
from headrace.models.preprocessing import Catalogue, Preprocessing
from headrace.models.ranker import Ranker, choice_loss, match_shares, outcome_loss
from tests.unit.models import tiny_shop
from tests.unit.models.tiny_shop import T_US


def candidates(*item_ids: str, fitted: Preprocessing | None = None) -> ItemInputs:
    table = tiny_shop.catalogue().to_pylist()
    rows = [next(row for row in table if row["item_id"] == item_id) for item_id in item_ids]
    features = {name: [row[name] for row in rows] for name in rows[0]}
    items = (fitted or tiny_shop.preprocessing()).items(features, with_activity=True)
    return ItemInputs(*(field[None] for field in items))


def test_matches_are_shares_of_the_history_and_of_its_newest_part() -> None:
    fitted = tiny_shop.preprocessing()
    shop = Catalogue(fitted, columns.by_name(tiny_shop.catalogue()))
    users = fitted.users(columns.by_name(tiny_shop.users()), np.full(3, T_US), shop.row).rows(torch.tensor([0]))
    shares = match_shares(users, candidates("a", "c"), shop.inputs.rows(users.items_BL), torch.tensor([2, 2, 2]))
    # the history is a and b, both shoes, of brands x and y: shares by id, category and brand, of all and of the last 5
    assert shares[0, 0].tolist() == [0.5, 1.0, 0.5, 0.5, 1.0, 0.5]
    assert shares[0, 1].tolist() == [0.0] * 6


def test_a_missing_brand_matches_nothing() -> None:
    fitted = tiny_shop.preprocessing()
    shop = Catalogue(fitted, columns.by_name(tiny_shop.catalogue()))
    users = fitted.users(columns.by_name(tiny_shop.users()), np.full(3, T_US), shop.row).rows(torch.tensor([1]))
    shares = match_shares(users, candidates("c"), shop.inputs.rows(users.items_BL), torch.tensor([2, 2, 2]))
    assert shares[0, 0].tolist() == [1.0, 1.0, 0.0, 1.0, 1.0, 0.0]


def test_values_that_share_buckets_match_nothing_not_even_themselves() -> None:
    fitted = tiny_shop.preprocessing(max_values=1)  # item a, category books, brand x
    shop = Catalogue(fitted, columns.by_name(tiny_shop.catalogue()))
    users = fitted.users(columns.by_name(tiny_shop.users()), np.full(3, T_US), shop.row).rows(torch.tensor([0]))
    known = Ranker(fitted, tiny_shop.MODEL).first_known_C
    assert known.tolist() == [17, 17, 17]
    shares = match_shares(users, candidates("a", "b", fitted=fitted), shop.inputs.rows(users.items_BL), known)
    assert shares[0].tolist() == [[0.5, 0.0, 0.5, 0.5, 0.0, 0.5], [0.0] * 6]


def test_a_score_is_the_value_of_the_expected_outcomes() -> None:
    ranker = Ranker(tiny_shop.preprocessing(), tiny_shop.MODEL)
    logits = torch.tensor([[[0.0, math.log(1 / 3)]]])
    assert ranker.scores(logits).item() == pytest.approx(1.0 * 0.5 + 2.0 * 0.25)


def test_an_outcome_that_was_not_observed_is_left_out_of_the_loss() -> None:
    logits = torch.tensor([[0.0, 5.0]])
    assert outcome_loss(logits, torch.tensor([[1.0, float("nan")]])).item() == pytest.approx(math.log(2))


def test_a_batch_of_which_no_outcome_was_observed_teaches_nothing() -> None:
    assert outcome_loss(torch.ones(2, 1), torch.full((2, 1), float("nan"))).item() == 0.0


def test_an_empty_history_gives_finite_logits_for_each_outcome() -> None:
    fitted = tiny_shop.preprocessing()
    shop = Catalogue(fitted, columns.by_name(tiny_shop.catalogue()))
    users = fitted.users({}, np.array([T_US]), shop.row)
    logits = Ranker(fitted, tiny_shop.MODEL).eval()(
        users, candidates("a", "b", "c"), tiny_shop.retrieved(0, 0, 0), shop.inputs
    )
    assert logits.shape == (1, 3, 2)
    assert torch.isfinite(logits).all()


def test_a_candidate_scores_the_same_alone_and_among_others() -> None:
    fitted = tiny_shop.preprocessing()
    shop = Catalogue(fitted, columns.by_name(tiny_shop.catalogue()))
    users = fitted.users(columns.by_name(tiny_shop.users()), np.full(3, T_US), shop.row).rows(torch.tensor([0]))
    ranker = Ranker(fitted, tiny_shop.MODEL).eval()
    together = ranker(users, candidates("a", "b"), tiny_shop.retrieved(0.5, -0.5), shop.inputs)
    alone = ranker(users, candidates("b"), tiny_shop.retrieved(-0.5), shop.inputs)
    assert torch.allclose(together[:, 1], alone[:, 0], atol=1e-6)


def test_a_ranker_begins_with_the_order_of_retrieval() -> None:
    """Every outcome's logit is the towers' score, whatever else is known."""
    fitted = tiny_shop.preprocessing()
    shop = Catalogue(fitted, columns.by_name(tiny_shop.catalogue()))
    users = fitted.users(columns.by_name(tiny_shop.users()), np.full(3, T_US), shop.row).rows(torch.tensor([0]))
    ranker = Ranker(fitted, tiny_shop.MODEL).eval()
    logits = ranker(users, candidates("a", "c"), tiny_shop.retrieved(1.5, -2.0), shop.inputs)
    assert logits[0].tolist() == [pytest.approx([1.5, 1.5]), pytest.approx([-2.0, -2.0])]


def test_what_people_turn_to_around_the_history_moves_the_logits() -> None:
    fitted = tiny_shop.preprocessing()
    shop = Catalogue(fitted, columns.by_name(tiny_shop.catalogue()))
    users = fitted.users(columns.by_name(tiny_shop.users()), np.full(3, T_US), shop.row).rows(torch.tensor([0]))
    torch.manual_seed(0)
    ranker = tiny_shop.stirred(Ranker(fitted, tiny_shop.MODEL))
    far = tiny_shop.retrieved(1.5, -2.0)
    near = far._replace(nearness_BN=torch.tensor([[0.0, 0.5]]))
    apart = ranker(users, candidates("a", "c"), near, shop.inputs) - ranker(
        users, candidates("a", "c"), far, shop.inputs
    )
    assert (apart[0, 0] == 0).all()
    assert (apart[0, 1].abs() > 1e-3).all()


def test_a_position_adds_to_the_logits_and_the_last_one_stands_for_those_beyond() -> None:
    ranker = Ranker(tiny_shop.preprocessing(), tiny_shop.MODEL)
    with torch.no_grad():
        ranker.position_bias.weight[3] = torch.tensor([0.5, -0.5])
        ranker.position_bias.weight[-1] = torch.tensor([-1.0, -2.0])
    placed = ranker.at_positions(torch.zeros(1, 3, 2), torch.tensor([[NOT_SHOWN, 3, 1_000]]))
    assert placed[0].tolist() == [[0.0, 0.0], [0.5, -0.5], [-1.0, -2.0]]


def test_settled_logits_are_the_scaled_ones_of_the_position_settled_for() -> None:
    fitted = tiny_shop.preprocessing()
    shop = Catalogue(fitted, columns.by_name(tiny_shop.catalogue()))
    users = fitted.users(columns.by_name(tiny_shop.users()), np.full(3, T_US), shop.row).rows(torch.tensor([0]))
    torch.manual_seed(0)
    ranker = Ranker(fitted, tiny_shop.MODEL).eval()
    with torch.no_grad():
        for parameter in ranker.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    slopes, shifts = torch.tensor([2.0, 0.5]), torch.tensor([-1.0, 3.0])

    def logits(position: int) -> torch.Tensor:
        found = ranker(users, candidates("a", "c"), tiny_shop.retrieved(1.5, -2.0), shop.inputs)
        return ranker.at_positions(found, torch.tensor([[position, position]]))

    expected = {position: slopes * logits(position) + shifts for position in (NOT_SHOWN, 1, 2)}
    ranker.settle(1, slopes, shifts)
    for position, wanted in expected.items():
        assert torch.allclose(logits(position), wanted, atol=1e-5)
    plain = ranker(users, candidates("a", "c"), tiny_shop.retrieved(1.5, -2.0), shop.inputs)
    assert torch.allclose(plain, expected[1], atol=1e-5)


def test_the_choice_loss_is_of_the_lists_with_a_choice() -> None:
    logits = torch.tensor([[0.0, math.log(3.0)], [5.0, 7.0]])
    assert choice_loss(logits, torch.tensor([1, -1])).item() == pytest.approx(-math.log(3 / 4))
    assert choice_loss(logits, torch.tensor([-1, -1])).item() == 0.0
