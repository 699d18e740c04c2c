"""What the ranker is given of candidates: the shop as it stood, and what their users did by then."""

from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
import torch

from headrace.models import columns
from headrace.models.neighbours import Neighbours
from headrace.models.preprocessing import Catalogue
from tests.unit.models import tiny_shop
from training import scoring
from training.config import small
from training.fit import TrainError
from training.requests import Histories, Requests
from training.scoring import Models, answer, items_of


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


@pytest.mark.parametrize("model", ["towers", "ranker"])
def test_a_model_that_gives_no_numbers_gives_no_slate(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = tiny_shop.bundle()
    shop = Catalogue(whole.preprocessing, columns.by_name(tiny_shop.catalogue()))
    nobodys = Neighbours.of_items(np.full((4, 1), -1, np.int32), np.zeros((4, 1), np.float32))
    models = Models(whole.preprocessing, shop, whole.towers, whole.ranker, nobodys)
    rows = pl.DataFrame({"user_id": ["u"], "t_us": [tiny_shop.T_US]})
    nothing = Histories(np.zeros(2, np.int64), np.zeros(0, np.int64))
    requests = Requests(rows, np.zeros(1, np.int64), np.zeros(1, np.int64), nothing)

    def activity(_: Any, asked: pl.DataFrame) -> pa.Table:
        return pa.table({"item_activity__views_1h": pa.nulls(asked.height, pa.int64())})

    monkeypatch.setattr(scoring, "features", lambda *_: tiny_shop.users().slice(0, 1))
    monkeypatch.setattr(scoring, "item_activity", activity)
    store: Any = None
    assert sorted(answer(models, requests, 1, store, small()).ranked_RK[0][:4]) == [0, 1, 2, 3]
    with torch.no_grad():
        for weight in getattr(models, model).parameters():
            weight.fill_(float("nan"))
    with pytest.raises(TrainError, match=f"scores of the {model} are not finite"):
        answer(models, requests, 1, store, small())
