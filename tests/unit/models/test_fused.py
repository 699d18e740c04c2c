"""The compiled models give what the modules give, whatever their sizes and weights."""

from dataclasses import replace
from itertools import cycle, islice

import numpy as np
import pytest
import torch
from torch import nn

from headrace.models.bundle import Bundle
from headrace.models.config import CART, CLICK, PURCHASE, ModelConfig
from headrace.models.ranker import Ranker
from headrace.models.shelf import Shelf
from headrace.models.towers import TwoTowers
from tests.unit.models import tiny_shop
from tests.unit.models.tiny_shop import T_US

ITEMS = ["a", "b", "c", "d"]
LENGTH = 9
SIZES = [
    ModelConfig(width=8, heads=1, layers=1, crosses=1, cross_width=5, hidden=3),
    ModelConfig(width=8, heads=2, layers=2, crosses=2, cross_width=40, hidden=16, outcomes=(CLICK, CART, PURCHASE)),
    ModelConfig(width=24, heads=4, layers=3, crosses=3, cross_width=64, hidden=48, outcomes=(CLICK, PURCHASE)),
]
HISTORIES = {
    "empty": [],
    "one": ["c"],
    "shorter than what the model reads": ["a", "b", "a", "d"],
    "longer than what the model reads": list(islice(cycle(ITEMS), 2 * LENGTH)),
    "of unknown items": ["never seen", "a", "nor this"],
    "with places that hold nothing": ["a", None, "b", "", "d"],
}


def bundle_of(config: ModelConfig, max_values: int) -> Bundle:
    """With weights that are nowhere zero or one, those of norms included."""
    fitted = tiny_shop.preprocessing(LENGTH, max_values)
    torch.manual_seed(1)
    towers, ranker = TwoTowers(fitted, config).eval(), Ranker(fitted, config).eval()
    for parameter in (*towers.parameters(), *ranker.parameters()):
        nn.init.normal_(parameter, std=0.5 * config.width**-0.5)
    return replace(tiny_shop.bundle(), preprocessing=fitted, towers=towers, ranker=ranker)


def user_with(history: list[str | None]) -> dict[str, object]:
    kinds = islice(cycle(["view", "click", "add_to_cart", "purchase"]), len(history))
    return {
        **tiny_shop.request_of(0),
        "user_activity__recent_items": history,
        "user_activity__recent_types": list(kinds),
        "user_activity__recent_times": [T_US - 10 ** (8 - place % 4) for place in range(len(history))],
    }


@pytest.mark.parametrize("config", SIZES, ids=lambda config: f"width {config.width}")
@pytest.mark.parametrize("history", HISTORIES.values(), ids=HISTORIES.keys())
@pytest.mark.parametrize("max_values", [100, 1], ids=["all values known", "values that share buckets"])
def test_vectors_and_scores_are_those_of_the_modules(
    config: ModelConfig, history: list[str | None], max_values: int
) -> None:
    bundle = bundle_of(config, max_values)
    content = {name: list(bundle.snapshot.features[name]) for name in bundle.preprocessing.content_features}
    named = {"item_id": ITEMS, **content}
    shelf = Shelf(bundle.preprocessing, bundle.towers, bundle.ranker, named, bundle.neighbours)
    asked, scorer = user_with(history), bundle.scorer()
    seen = shelf.user(
        {name: [value] for name, value in asked.items()}, T_US, {item: row for row, item in enumerate(ITEMS)}
    )
    vector = scorer.user_vector(asked, T_US)
    assert np.allclose(seen.vector[0], vector, rtol=1e-4, atol=1e-4 * np.abs(vector).max())
    rows, views = np.array([3, 0, 2, 1, 0]), np.array([[5.0], [np.nan], [2.0], [0.0], [7.0]])
    items = {name: [column[row] for row in rows] for name, column in named.items()}
    scores = scorer.rank(asked, {**items, "item_activity__views_1h": views[:, 0].tolist()}, T_US)
    assert np.ptp(scores) > 1e-3
    assert np.allclose(shelf.rank(seen, rows, views), scores, rtol=1e-4, atol=1e-5)
