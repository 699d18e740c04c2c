"""Any architecture as a request runs it: by its modules, over items as `PackedItems` has them.

For those that have no compiled kernels (`headrace.models.fused`), with the same two questions. Items are encoded once and not in the
request; what a tensor library costs for one user stays. The gate measures it (`training/gate_measures.py::time_models`).

Shape suffixes as in `headrace.models.inputs`.
"""

from typing import NamedTuple

import numpy as np
import torch

from headrace.arrays import Floats32, Ints
from headrace.models.base import RankingModel, Towers
from headrace.models.inputs import EncodedItems, OneUser, Retrieved, UserInputs
from headrace.models.packed_items import PackedItems
from headrace.models.preprocessing import MISSING, UNKNOWN_ITEM


class ReadUser(NamedTuple):
    """A user (B = 1), whose history's items stand encoded beside."""

    vector_D: Floats32
    users: UserInputs
    history: EncodedItems


class Modules:
    """Both models as they are."""

    def __init__(self, towers: Towers, ranker: RankingModel, packing: PackedItems) -> None:
        self._towers, self._ranker, self._packing = towers, ranker, packing

    @torch.inference_mode()  # type: ignore[untyped-decorator]
    def user(self, user: OneUser, table_IW: Floats32) -> ReadUser:
        """`user.items_L` are rows of the table. The models see a small one of these alone; padding and the unknown item stay its first."""
        rows, places = np.unique(np.concatenate([[MISSING, UNKNOWN_ITEM], user.items_L]), return_inverse=True)
        rows_KW = torch.from_numpy(table_IW[rows])
        known = self._packing.ranked(rows_KW, rows_KW[:, :0])
        users = user.batch(1)._replace(items_BL=torch.from_numpy(places[2:])[None])
        vector_1D = self._towers.users(users, known.inputs)
        history = EncodedItems(known.inputs.rows(users.items_BL), known.vectors_ND[users.items_BL])
        return ReadUser(np.asarray(vector_1D[0].numpy(), np.float32), users, history)

    @torch.inference_mode()  # type: ignore[untyped-decorator]
    def scores(
        self, user: ReadUser, table_IW: Floats32, rows_N: Ints, activity_NA: Floats32, nearness_N: Floats32
    ) -> Floats32:
        """`RankingModel.scores` of the candidates at these rows. Shape (N,)."""
        rows_1NW = torch.from_numpy(table_IW[rows_N])[None]
        items = self._packing.ranked(rows_1NW, torch.from_numpy(activity_NA)[None])
        found_1N = self._packing.tower(rows_1NW) @ torch.from_numpy(user.vector_D)
        retrieved = Retrieved(found_1N, torch.from_numpy(nearness_N)[None])
        logits_1NO = self._ranker.logits(user.users, items, user.history, retrieved)
        return np.asarray(self._ranker.scores(logits_1NO)[0].numpy(), np.float32)
