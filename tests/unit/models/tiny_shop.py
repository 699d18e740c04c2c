"""Four items in two categories, three users, and models of width 8 over them."""

from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import torch

from headrace.clock import from_micros
from headrace.models.bundle import Bundle, Items, Manifest
from headrace.models.config import CART, CLICK, ModelConfig
from headrace.models.index import ItemIndex
from headrace.models.inputs import Retrieved
from headrace.models.preprocessing import Preprocessing
from headrace.models.ranker import Ranker
from headrace.models.snapshot import Snapshot
from headrace.models.towers import TwoTowers
from headrace.settings import MICROS

T_US = 1_700_000_000 * MICROS
MODEL = ModelConfig(width=8, heads=2, layers=2, cross_width=16, hidden=16, outcomes=(CLICK, CART))


def users() -> pa.Table:
    moments = [[from_micros(T_US - ago * MICROS) for ago in agos] for agos in ([7, 1], [3], [])]
    return pa.table(
        {
            "user_id": ["u", "v", "w"],
            "user_activity__views_10m": pa.array([2, 0, None], pa.int64()),
            "user_activity__recent_items": pa.array([["a", "b"], ["c"], None], pa.list_(pa.string())),
            "user_activity__recent_types": pa.array([["view", "click"], ["view"], None], pa.list_(pa.string())),
            "user_activity__recent_times": pa.array([*moments[:2], None], pa.list_(pa.timestamp("us", "UTC"))),
            "user_profile__age": pa.array([20, None, 40], pa.int64()),
            "user_profile__country": ["DE", "FR", None],
        }
    )


def catalogue() -> pa.Table:
    return pa.table(
        {
            "item_id": ["a", "b", "c", "d"],
            "item_catalogue__title": ["A", "B", "C", "D"],
            "item_catalogue__category": ["shoes", "shoes", "books", "books"],
            "item_catalogue__brand": ["x", "y", None, "x"],
            "item_catalogue__price": pa.array([10.0, 20.0, None, float("nan")], pa.float64()),
            "item_catalogue__available": [True, True, False, None],
        }
    )


def activity() -> pa.Table:
    return pa.table({"item_id": ["a", "b", "c"], "item_activity__views_1h": pa.array([0, 7, None], pa.int64())})


def preprocessing(length: int = 3, max_values: int = 100) -> Preprocessing:
    seen = {"a": 3, "b": 2, "c": 1}
    return Preprocessing.fit(users(), catalogue(), activity(), seen, now_us=0, length=length, max_values=max_values)


Model = TypeVar("Model", bound=torch.nn.Module)


def stirred(model: Model) -> Model:
    """As if it had learnt something: fresh towers read no content, and a fresh ranker gives the order of retrieval."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return model.eval()


def bundle(version: str = "first") -> Bundle:
    fitted = preprocessing()
    vectors = np.eye(4, 8, dtype=np.float32)
    torch.manual_seed(0)
    return Bundle(
        manifest=Manifest(
            version=version, created_us=T_US, model=MODEL, config={"size": 1},
            fingerprints={"user_activity": 2**64 - 1}, window_us=(1, 4), validation_us=2, cut_us=3, metrics={"ndcg_at_10": 0.5},
            code_version="0.1.0",
        ),
        preprocessing=fitted,
        towers=stirred(TwoTowers(fitted, MODEL)),
        ranker=stirred(Ranker(fitted, MODEL)),
        items=Items(
            ["a", "b", "c", "d"],
            vectors,
            np.array([[1, 2], [0, -1], [-1, -1], [-1, -1]], dtype=np.int32),
            np.array([[0.5, 0.25], [0.5, 0], [0, 0], [0, 0]], dtype=np.float32),
        ),
        index=ItemIndex.build(vectors, vectors),
        snapshot=Snapshot(
            T_US,
            {
                "item_id": ["a", "b", "c", "d"],
                "item_catalogue__category": ["shoes", "shoes", "books", "books"],
                "item_catalogue__brand": ["x", "y", None, "x"],
                "item_catalogue__price": [10.0, 20.0, None, None],
                "item_catalogue__available": [True, True, False, None],
            },
        ),
    )  # fmt: skip


def retrieved(*scores: float) -> Retrieved:
    """Of one user: what the towers give each candidate, none of which is near the history."""
    scores_1N = torch.tensor([scores])
    return Retrieved(scores_1N, torch.zeros_like(scores_1N))


def request_of(row: int) -> dict[str, Any]:
    """One user's features as a request has them: plain Python, times in microseconds."""
    values = {name: column[row].as_py() for name, column in zip(users().column_names, users().columns, strict=True)}
    times = values["user_activity__recent_times"]
    values["user_activity__recent_times"] = times and [round(moment.timestamp() * MICROS) for moment in times]
    return values
