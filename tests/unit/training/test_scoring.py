"""Answers of the tiny shop's models to two requests, their features given by a store that says the same at every time."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import torch

from headrace.models import columns
from headrace.models.preprocessing import Catalogue
from headrace.models.ranker import Ranker
from headrace.models.towers import TwoTowers
from headrace.names import RANKER_SERVICE, RETRIEVAL_SERVICE
from tests.unit.models import tiny_shop
from tests.unit.models.tiny_shop import T_US
from training.config import small
from training.requests import Histories, Requests
from training.scoring import Models, answer

HOUR_US = 3_600_000_000
# u knows a and b, v knows c.
REQUESTS = Requests(
    pl.DataFrame({"user_id": ["u", "v"], "item_id": ["c", "d"], "t_us": [T_US, T_US + 5]}),
    np.array([0, 1]),
    np.array([2, 3]),
    Histories(np.array([0, 2, 3]), np.array([0, 1, 2])),
)


@dataclass
class Answer:
    table: pa.Table

    def to_arrow(self) -> pa.Table:
        return self.table


@dataclass
class SteadyStore:
    asked: list[tuple[str, list[int]]] = field(default_factory=list)

    def get_feature_service(self, name: str) -> str:
        return name

    def get_historical_features(self, keys: Any, features: str, full_feature_names: bool) -> Answer:
        self.asked.append((features, sorted({moment.value // 1_000 for moment in keys["event_timestamp"]})))
        table = tiny_shop.users().take(pa.array(["uvw".index(user) for user in keys["user_id"]]))
        if features == RANKER_SERVICE:
            items = tiny_shop.catalogue().take(pa.array(["abcd".index(item) for item in keys["item_id"]]))
            for name in items.column_names:
                table = table.append_column(name, items[name])
        return Answer(table)


def models() -> Models:
    fitted = tiny_shop.preprocessing()
    torch.manual_seed(1)
    towers, ranker = TwoTowers(fitted, tiny_shop.MODEL).eval(), tiny_shop.stirred(Ranker(fitted, tiny_shop.MODEL))
    return Models(fitted, Catalogue(fitted, columns.by_name(tiny_shop.catalogue())), towers, ranker)


def test_slates_hold_all_but_the_history_and_the_ranker_only_reorders_them() -> None:
    slates = answer(models(), REQUESTS, 2, SteadyStore(), small())
    assert [set(slate) for slate in slates.retrieved_TK.tolist()] == [{2, 3, -1}, {0, 1, 3, -1}]
    assert [set(slate) for slate in slates.ranked_RK.tolist()] == [{2, 3, -1}, {0, 1, 3, -1}]
    assert slates.item_ID.shape == (4, 8)


def test_the_ranker_sees_no_more_than_its_candidates_and_its_requests() -> None:
    slates = answer(models(), REQUESTS, 1, SteadyStore(), small().changed(candidates=1))
    assert slates.ranked_RK.tolist() == slates.retrieved_TK[:1, :1].tolist()


def test_a_lag_moves_the_time_of_the_features_and_nothing_that_is_computed_at_the_request() -> None:
    fresh, stale = SteadyStore(), SteadyStore()
    now = answer(models(), REQUESTS, 2, fresh, small())
    late = answer(models(), REQUESTS, 2, stale, small(), lag_us=HOUR_US)
    assert fresh.asked == [(service, [T_US, T_US + 5]) for service in (RETRIEVAL_SERVICE, RANKER_SERVICE)]
    assert stale.asked == [(service, [t - HOUR_US for t in times]) for service, times in fresh.asked]
    assert np.array_equal(now.retrieved_TK, late.retrieved_TK)
    assert np.array_equal(now.ranked_RK, late.ranked_RK)
