"""All items of a catalogue as a bundle's models read them: encoded once, looked up by every request.

It gives the scores of `headrace.models.scorer`, which encodes what it needs anew each time, at a fraction of the work. Shape suffixes as in
`headrace.models.inputs`; R rows asked for.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from headrace import names
from headrace.arrays import Floats, Ints
from headrace.models.columns import Columns
from headrace.models.explain import named, weigh
from headrace.models.inputs import EncodedItems, ItemInputs, UserInputs
from headrace.models.preprocessing import Catalogue, Preprocessing
from headrace.models.ranker import Ranker
from headrace.models.towers import TwoTowers
from headrace.models.traced import Traced

FIRST: Final = Catalogue.FIRST
"""Tables begin with a row of padding and one of any item that is not known, as training's do."""
MOST_EXPLAINED: Final = 5
_BATCH: Final = 16_384
_SPARE: Final = 1_024

Floats32 = npt.NDArray[np.float32]


class EncodedRows(NamedTuple):
    """Some items, ready to be put on the shelf. N items."""

    id_N: Tensor
    categories_NC: Tensor
    content_NF: Tensor
    tower_ND: Tensor
    ranker_ND: Tensor

    @property
    def vectors(self) -> Floats32:
        """What retrieval looks for. Shape (N, D)."""
        return np.asarray(self.tower_ND.numpy())


@dataclass(frozen=True)
class UserView:
    """A user at a time, as both models read one: inputs of one row, and the user tower's vector (1, D)."""

    inputs: UserInputs
    vector_BD: Tensor

    @property
    def vector(self) -> Floats32:
        """Shape (1, D)."""
        return np.asarray(self.vector_BD.numpy())


class Shelf:
    """Row r of the catalogue is row r here. Reading is safe in threads, `put` is not while others read."""

    def __init__(self, preprocessing: Preprocessing, towers: TwoTowers, ranker: Ranker, content: Columns) -> None:
        """`content`: `item_id` and the content features of all items, in the order of the rows."""
        torch.set_num_threads(1)
        self.preprocessing = preprocessing
        self._towers, self._ranker = towers.eval(), ranker.eval()
        special = preprocessing.items({names.ITEM_ID: [None, ""]}, with_activity=False)
        special.id_N[1] = 1
        parts = [self._encode(special), self.encode(content)]
        self._table = EncodedRows(*(torch.cat(each) for each in zip(*parts, strict=True)))
        self._count = len(self._table.id_N)
        self._traced = self._trace()

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
        return EncodedRows(*(torch.cat(each) for each in zip(*parts, strict=True)))

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def _encode(self, items: ItemInputs) -> EncodedRows:
        return EncodedRows(
            items.id_N, items.categories_NC, items.content_NF,
            self._towers.item_encoder(items), self._ranker.item_encoder(items),
        )  # fmt: skip

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def put(self, rows: Ints, encoded: EncodedRows) -> None:
        """Replace items, or add some behind the last. Raises ValueError where that would leave a gap."""
        needed = int(rows.max(initial=-1)) + 1 + FIRST
        if needed > self._count + len(rows):
            raise ValueError(f"row {needed - 1 - FIRST} is not on the shelf of {len(self)} and would not be the next")
        if needed > len(self._table.id_N):
            spare = needed + max(_SPARE, needed // 8) - len(self._table.id_N)
            self._table = EncodedRows(
                *(torch.cat([each, each.new_zeros(spare, *each.shape[1:])]) for each in self._table)
            )
        index = torch.from_numpy(rows + FIRST)
        for column, new in zip(self._table, encoded, strict=True):
            column[index] = new
        self._count = max(self._count, needed)

    def vectors(self, rows: Ints) -> Floats32:
        """The item tower's. Shape (R, D)."""
        return np.asarray(self._table.tower_ND[torch.from_numpy(rows + FIRST)].numpy())

    @torch.inference_mode()  # type: ignore[untyped-decorator]
    def user(self, features: Mapping[str, Any], t_us: int, row_of: Callable[[str], int | None]) -> UserView:
        """Columns of one user (B = 1) at t; `row_of` gives an item's row. Raises ValueError where the vector is not finite."""

        def code_of(item_id: Any) -> int:
            row = row_of(item_id)
            if row is not None:
                return row + FIRST
            return 1 if item_id else 0

        inputs = self.preprocessing.users(features, np.array([t_us], dtype=np.int64), code_of)
        item_BLD = self._table.tower_ND.index_select(0, inputs.items_BL[0])[None]
        vector_BD = self._traced.user_vectors(inputs, item_BLD)
        if not bool(torch.isfinite(vector_BD).all()):
            raise ValueError("the user's vector is not finite")
        return UserView(inputs, vector_BD)

    @torch.inference_mode()  # type: ignore[untyped-decorator]
    def rank(self, user: UserView, rows: Ints, activity_NA: Floats) -> Floats32:
        """Scores, shape (R,), higher is better. `activity_NA`: values in the order of `preprocessing.activity`, NaN for null."""
        index_N = torch.from_numpy(rows + FIRST)
        items = self._rows(index_N[None], self._table.ranker_ND, self.preprocessing.activity.apply(activity_NA))
        history = self._rows(user.inputs.items_BL, self._table.ranker_ND)
        tower_ND = self._table.tower_ND.index_select(0, index_N)
        return np.asarray(self._traced.scores(user.inputs, items, history, user.vector_BD, tower_ND)[0].numpy())

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def _trace(self) -> Traced:
        users = self.preprocessing.users({}, np.zeros(1, np.int64), lambda _: 0)
        activity = self.preprocessing.activity.apply(np.zeros((FIRST, len(self.preprocessing.activity_numbers))))
        items = self._rows(torch.arange(FIRST)[None], self._table.ranker_ND, activity)
        return Traced(self._towers, self._ranker, users, items, self._rows(users.items_BL, self._table.ranker_ND))

    def explain(
        self, user: UserView, rows: Ints, activity_NA: Floats, history: Sequence[str]
    ) -> list[list[dict[str, Any]]]:
        """For each row the features that weighed most in its score. `history`: item ids of the user's, oldest first."""
        count = len(rows)
        index_R1 = torch.from_numpy(rows + FIRST)[:, None]
        users = UserInputs(*(field.expand(count, *field.shape[1:]).clone() for field in user.inputs))
        items = self._rows(index_R1, self._table.ranker_ND, self.preprocessing.activity.apply(activity_NA))
        past = self._rows(users.items_BL, self._table.ranker_ND)
        retrieved_RN = (self._table.tower_ND[index_R1[:, 0]] @ user.vector_BD[0].clone())[:, None]
        weights = weigh(self._ranker, users, items, past, retrieved_RN)
        return named(weights, self.preprocessing, history[-self.preprocessing.length :], MOST_EXPLAINED)

    def _rows(self, index: Tensor, vectors: Tensor, activity: Floats32 | None = None) -> EncodedItems:
        table, flat = self._table, index.flatten()
        shape = index.shape

        def of(column: Tensor) -> Tensor:
            return column.index_select(0, flat).view(*shape, *column.shape[1:])

        activity_NF = torch.zeros(*shape, 0) if activity is None else torch.from_numpy(activity).view(*shape, -1)
        inputs = ItemInputs(of(table.id_N), of(table.categories_NC), of(table.content_NF), activity_NF)
        return EncodedItems(inputs, of(vectors))
