"""The loops on the tiny shop: they learn, and the same seed learns the same."""

import numpy as np
import pytest
import torch

from headrace.models import columns
from headrace.models.preprocessing import Catalogue
from headrace.models.towers import TwoTowers
from tests.unit.models import tiny_shop
from tests.unit.models.tiny_shop import T_US
from training.config import TrainConfig, small
from training.fit import fit_ranker, fit_towers

CONFIG = small().changed(tower_epochs=60, ranker_epochs=60, batch=2, learning_rate=1e-2, seed=3)
TARGETS = np.array([4, 2, 5])  # c, a and d


def trained(config: TrainConfig) -> tuple[TwoTowers, torch.Tensor]:
    """Towers of three rows, and their scores (3 users, 4 items)."""
    fitted = tiny_shop.preprocessing()
    shop = Catalogue(fitted, columns.by_name(tiny_shop.catalogue()))
    users = fitted.users(columns.by_name(tiny_shop.users()), np.full(3, T_US), shop.row)
    towers = fit_towers(fitted, tiny_shop.MODEL, users, TARGETS, shop, config, progress=False)
    with torch.inference_mode():
        return towers, towers.users(users, shop.inputs) @ towers.items(shop.inputs)[Catalogue.FIRST :].T


@pytest.mark.parametrize("full_softmax_items", [100, 1], ids=["full softmax", "in-batch softmax"])
def test_towers_learn_which_item_belongs_to_which_user(full_softmax_items: int) -> None:
    config = CONFIG.changed(full_softmax_items=full_softmax_items, batch=3)
    _, scores = trained(config)
    drawn = TARGETS - Catalogue.FIRST
    assert scores[:, drawn].argmax(dim=1).tolist() == [0, 1, 2]


def test_one_seed_gives_one_model() -> None:
    short = CONFIG.changed(tower_epochs=3)
    first, again, other = (trained(short.changed(seed=seed))[0].state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_a_ranker_learns_its_outcomes_and_bears_labels_that_are_all_positive() -> None:
    fitted = tiny_shop.preprocessing()
    shop = Catalogue(fitted, columns.by_name(tiny_shop.catalogue()))
    users = fitted.users(columns.by_name(tiny_shop.users()), np.full(3, T_US), shop.row)
    items = fitted.items(columns.by_name(tiny_shop.catalogue().slice(0, 3)), with_activity=True)
    labels = np.array([[1, 0], [1, 1], [1, 0]], dtype=np.float32)
    retrieved = np.zeros(3, dtype=np.float32)
    ranker = fit_ranker(fitted, tiny_shop.MODEL, users, items, retrieved, labels, shop, CONFIG, progress=False)
    rows = torch.arange(3)
    with torch.inference_mode():
        logits = ranker(users, items.rows(rows[:, None]), torch.zeros(3, 1), shop.inputs)[:, 0]
    assert (logits > 0).float().tolist() == labels.tolist()
