"""Untrained bundles of a few items, made in no time."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from headrace.models.bundle import Bundle, Items, Manifest
from headrace.models.config import ModelConfig
from headrace.models.index import ItemIndex
from headrace.models.preprocessing import Preprocessing
from headrace.models.ranker import Ranker
from headrace.models.snapshot import Snapshot
from headrace.models.towers import TwoTowers
from headrace.settings import Settings
from tests.unit.models.tiny_shop import stirred


def save_bundle(
    settings: Settings,
    version: str,
    item_ids: Sequence[str] = ("i0", "i1", "i2"),
    fingerprints: Mapping[str, int] | None = None,
    **catalogue: list[Any],
) -> Path:
    """A bundle of three items of two categories, in the settings' folder of bundles. Neighbours of the first are the
    others. `catalogue` adds features.
    """
    torch.manual_seed(1)
    features = {"category": ["a", "b", "a"], "price": [1.0, 2.0, 3.0], **catalogue}
    content = {"item_id": list(item_ids), **{f"item_catalogue__{name}": column for name, column in features.items()}}
    users = pa.table({"user_activity__views_1h": [1], "user_profile__country": ["de"]})
    activity = pa.table({"item_activity__views_1h": [0, 1, 2]})
    fitted = Preprocessing.fit(users, pa.table(content), activity, dict.fromkeys(item_ids, 1), now_us=0, length=4)
    model = ModelConfig(width=8, hidden=8)
    towers, ranker = stirred(TwoTowers(fitted, model)), stirred(Ranker(fitted, model))
    with torch.inference_mode():
        vectors = towers.items(fitted.items(content, with_activity=False)).numpy()
    near = np.array([[1, 2], [0, -1], [0, -1]], dtype=np.int32)
    items = Items(list(item_ids), vectors, near, np.ones((3, 2), dtype=np.float32))
    manifest = Manifest(version, 1, model, {}, dict(fingerprints or {}), (0, 1), 1, 1, {}, "0")
    folder = settings.bundles_dir / version
    index = ItemIndex.build(vectors, vectors)
    Bundle(manifest, fitted, towers, ranker, items, index, Snapshot(1, content)).save(folder)
    return folder
