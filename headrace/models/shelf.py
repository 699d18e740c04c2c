"""All items of a catalogue as a bundle's models read them: encoded once, looked up by every request.

It gives the scores of `headrace.models.scorer`, which encodes what it needs anew each time, at a fraction of the work: the architectures
of this package by compiled kernels, any other by its modules. Shape suffixes as in `headrace.models.inputs`; R rows asked for.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from headrace import names
from headrace.arrays import Floats, Floats32, Ints
from headrace.models.base import RankingModel, Towers
from headrace.models.columns import Columns
from headrace.models.explain import named, weigh
from headrace.models.fused import Fused
from headrace.models.fused_kernels import UserState
from headrace.models.inputs import ItemInputs, OneUser, Retrieved
from headrace.models.modules import Modules, ReadUser
from headrace.models.neighbours import Neighbours
from headrace.models.packed_items import MOST_CODES, PackedItems
from headrace.models.preprocessing import UNKNOWN_ITEM, Catalogue, Preprocessing
from headrace.models.ranker import Ranker
from headrace.models.towers import TwoTowers

FIRST: Final = Catalogue.FIRST
"""Tables begin with a row of padding and one of any item that is not known, as training's do."""
MOST_EXPLAINED: Final = 5
_BATCH: Final = 16_384
_SPARE: Final = 1_024


@dataclass(frozen=True)
class EncodedRows:
    """Some items, ready to be put on the shelf: `headrace.models.packed_items`."""

    rows_NW: Floats32
    vectors: Floats32
    """What retrieval looks for. Shape (N, D)."""


@dataclass(frozen=True)
class UserView:
    """A user at a time, as both models read one, and what they make of it."""

    inputs: OneUser
    state: UserState | ReadUser

    @property
    def vector(self) -> Floats32:
        """Shape (1, D)."""
        return self.state.vector_D[None]


class Shelf:
    """Row r of the catalogue is row r here. Reading is safe in threads, `put` is not while others read."""

    def __init__(
        self,
        preprocessing: Preprocessing,
        towers: Towers,
        ranker: RankingModel,
        content: Columns,
        neighbours: Neighbours,
    ) -> None:
        """`content`: `item_id` and the content features of all items, in the order of the rows; `neighbours` are of a table of these."""
        torch.set_num_threads(1)
        self.preprocessing = preprocessing
        self._towers, self._ranker = towers.eval(), ranker.eval()
        self._neighbours = neighbours
        if len(preprocessing.ids) >= MOST_CODES:
            raise ValueError(f"{len(preprocessing.ids)} codes of items, at most {MOST_CODES}: train with fewer ids")
        special = preprocessing.no_items()
        has_kernels = type(towers) is TwoTowers and type(ranker) is Ranker
        self._packing = PackedItems(
            towers.width,
            self._ranker.encode(special).shape[-1],
            preprocessing.content_width,
            len(preprocessing.content_categories),
            0 if has_kernels else special.lists_NA.shape[1],
        )
        self._table_IW = np.concatenate([self._encode(special), self.encode(content).rows_NW])
        self._count = len(self._table_IW)
        vectors_ID = self._packing.tower(self._table_IW[FIRST:])
        # Of the items of now: some that come later move it little.
        self._usual_D = (vectors_ID.sum(axis=0, dtype=np.float64) / max(len(vectors_ID), 1)).astype(np.float32)
        self._models: Any = (Fused if has_kernels else Modules)(towers, ranker, self._packing)

    def __len__(self) -> int:
        return self._count - FIRST

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def encode(self, content: Columns) -> EncodedRows:
        """N items by ID and content. An item that training did not see is embedded by its content."""
        ids = content[names.ITEM_ID]
        parts = [
            self._encode(
                self.preprocessing.items(
                    {name: column[start : start + _BATCH] for name, column in content.items()}, with_activity=False
                )
            )
            for start in range(0, max(len(ids), 1), _BATCH)
        ]
        rows_NW = np.concatenate(parts)
        return EncodedRows(rows_NW, np.ascontiguousarray(self._packing.tower(rows_NW)))

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def _encode(self, items: ItemInputs) -> Floats32:
        packed: Tensor = self._packing.pack(items, self._towers.items(items), self._ranker.encode(items))
        return np.asarray(packed.numpy())

    def put(self, rows: Ints, encoded: EncodedRows) -> None:
        """Replace items, or add some behind the last. Raises ValueError where that would leave a gap."""
        added = np.sort(rows[rows >= len(self)])
        if not np.array_equal(added, np.arange(len(self), len(self) + len(added))):
            raise ValueError(
                f"rows {added.tolist()[:10]} are not on the shelf of {len(self)} and would not be the next"
            )
        needed = int(rows.max(initial=-1)) + 1 + FIRST
        if needed > len(self._table_IW):
            spare = needed + max(_SPARE, needed // 8) - len(self._table_IW)
            self._table_IW = np.concatenate([self._table_IW, np.zeros((spare, self._table_IW.shape[1]), np.float32)])
        self._table_IW[rows + FIRST] = encoded.rows_NW
        self._count = max(self._count, needed)

    def vectors(self, rows: Ints) -> Floats32:
        """The item tower's. Shape (R, D)."""
        return np.ascontiguousarray(self._packing.tower(self._table_IW[rows + FIRST]))

    def user(self, features: Mapping[str, Any], t_us: int, row_of: Mapping[str, int]) -> UserView:
        """Columns of one user (B = 1) at t; `row_of` has the items' rows. Raises ValueError where the vector is not finite."""
        row = row_of.get

        def code_of(item_id: Any) -> int:
            return row(item_id, UNKNOWN_ITEM - FIRST) + FIRST if item_id else 0

        inputs = self.preprocessing.user(features, t_us, code_of)
        state = self._models.user(inputs, self._table_IW)
        if not np.isfinite(state.vector_D).all():
            raise ValueError("the user's vector is not finite")
        return UserView(inputs, state)

    def rank(self, user: UserView, rows: Ints, activity_NA: Floats) -> Floats32:
        """Scores, shape (R,), higher is better. `activity_NA`: values in the order of `preprocessing.activity`, NaN for null."""
        activity_NF = self.preprocessing.activity.apply(activity_NA)
        nearness_R = self._nearness(user, rows)
        scores_R: Floats32 = self._models.scores(user.state, self._table_IW, rows + FIRST, activity_NF, nearness_R)
        return scores_R

    def _nearness(self, user: UserView, rows: Ints) -> Floats32:
        """Of the candidates to the user's history. Shape (R,)."""
        nearness_R: Floats32 = self._neighbours.nearness(user.inputs.items_L[None], (rows + FIRST)[None])[0]
        return nearness_R

    def _rows(self, rows_N: Ints) -> Tensor:
        """Of the table. Shape (N, W)."""
        return torch.from_numpy(self._table_IW[rows_N])

    def explain(
        self, user: UserView, rows: Ints, activity_NA: Floats, history: Sequence[str]
    ) -> list[list[dict[str, Any]]]:
        """For each row up to MOST_EXPLAINED features that weighed most in its score. `history`: item ids of the user's, oldest first."""
        count = len(rows)
        users = user.inputs.batch(count)
        rows_R1W = self._rows(rows + FIRST)[:, None]
        activity_R1F = torch.from_numpy(self.preprocessing.activity.apply(activity_NA))[:, None]
        past_RLW = self._rows(user.inputs.items_L).expand(count, -1, -1).clone()
        found_R1 = self._packing.tower(rows_R1W) @ torch.from_numpy(user.state.vector_D)
        retrieved = Retrieved(found_R1, torch.from_numpy(self._nearness(user, rows))[:, None])
        items = self._packing.ranked(rows_R1W, activity_R1F)
        past = self._packing.ranked(past_RLW, past_RLW[..., :0])
        weights = weigh(
            self._ranker, users, items, past, retrieved, usual_score=float(self._usual_D @ user.state.vector_D)
        )
        return named(weights, self.preprocessing, history[-self.preprocessing.length :], MOST_EXPLAINED)
