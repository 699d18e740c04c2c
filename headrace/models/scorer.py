"""Scores by the modules of a bundle, one request at a time: what serving's scores are held against (`headrace.models.shelf`).

Features come as dicts of Feast's full names (`user_activity__views_10m`); an item feature is N values.
What a dict lacks reads as null, so a request whose store is down is still scored.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from headrace import names
from headrace.arrays import Floats32
from headrace.models import columns
from headrace.models.inputs import ItemInputs, Retrieved, UserInputs
from headrace.models.preprocessing import Catalogue

if TYPE_CHECKING:
    from headrace.models.bundle import Bundle


class Scorer:
    """The models of a bundle, ready to score."""

    def __init__(self, bundle: "Bundle") -> None:
        torch.set_num_threads(1)
        self.preprocessing = bundle.preprocessing
        self.towers = bundle.towers.eval()
        self.ranker = bundle.ranker.eval()
        self.catalogue = Catalogue(bundle.preprocessing, bundle.snapshot.features)
        self.neighbours = bundle.neighbours

    @torch.inference_mode()  # type: ignore[untyped-decorator]
    def user_vector(self, user_features: Mapping[str, Any], t_us: int) -> Floats32:
        """Shape (D,), of the user at t."""
        vector_BD = self.towers.users(self._user(user_features, t_us), self.catalogue.inputs)
        return np.asarray(vector_BD[0].numpy(), dtype=np.float32)

    @torch.inference_mode()  # type: ignore[untyped-decorator]
    def item_vectors(self, rows: columns.Columns) -> Floats32:
        """Shape (N, D), of `item_id` and `item_catalogue__*` columns. Unseen items are embedded by content."""
        inputs = self.preprocessing.items(rows, with_activity=False)
        return np.asarray(self.towers.items(inputs).numpy(), dtype=np.float32)

    @torch.inference_mode()  # type: ignore[untyped-decorator]
    def rank(self, user_features: Mapping[str, Any], item_features: columns.Columns, t_us: int) -> Floats32:
        """Scores, shape (N,), of the items in `item_features["item_id"]` for the user at t. Higher is better."""
        items = self.preprocessing.items(item_features, with_activity=True)
        one_user = ItemInputs(*(field[None] for field in items))
        user, table = self._user(user_features, t_us), self.catalogue.inputs
        rows_1N = self.catalogue.rows(item_features[names.ITEM_ID])[None]
        nearness_1N = torch.from_numpy(self.neighbours.nearness(user.items_BL.numpy(), rows_1N))
        retrieved = Retrieved(self.towers.scores(user, one_user, table), nearness_1N)
        logits_BNO = self.ranker(user, one_user, retrieved, table)
        return np.asarray(self.ranker.scores(logits_BNO)[0].numpy(), dtype=np.float32)

    def _user(self, features: Mapping[str, Any], t_us: int) -> UserInputs:
        one_row = {name: [value] for name, value in features.items()}
        return self.preprocessing.users(one_row, np.array([t_us], dtype=np.int64), self.catalogue.row)
