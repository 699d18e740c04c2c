"""What the ranker is given of candidates: the shop as it stood, and what their users did by then."""

import numpy as np
import pyarrow as pa
import torch

from headrace.models import columns
from headrace.models.preprocessing import Catalogue
from tests.unit.models import tiny_shop
from training.scoring import items_of


def test_candidates_are_the_shops_items_with_the_activity_of_their_time() -> None:
    fitted = tiny_shop.preprocessing()
    shop = Catalogue(fitted, columns.by_name(tiny_shop.catalogue()))
    views = pa.table({"item_id": ["c", "a"], "item_activity__views_1h": pa.array([7, None], pa.int64())})
    found = items_of(fitted, shop, np.array([2, 0]), views)
    given = {**columns.by_name(tiny_shop.catalogue().take([2, 0])), "item_activity__views_1h": views[1]}
    for ours, expected in zip(found, fitted.items(given, with_activity=True), strict=True):
        assert torch.equal(ours, expected)


def test_without_a_view_of_activity_there_is_none() -> None:
    fitted = tiny_shop.preprocessing()
    shop = Catalogue(fitted, columns.by_name(tiny_shop.catalogue()))
    nothing = items_of(fitted, shop, np.array([1]), pa.table({"t_us": [0]})).activity_NF
    assert torch.equal(nothing, fitted.items({"item_id": ["b"]}, with_activity=True).activity_NF)
