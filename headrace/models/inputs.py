"""What the models read: tensors of users and of items.

Shape suffixes, here and in the models: B users (rows of a batch), N items, L places in the history, C categorical
features, A places for values of list features, F numeric features, D width, I rows of the catalogue table, O outcomes.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from headrace.arrays import Ints


class ItemInputs(NamedTuple):
    """Items; the leading shape is any: (N,), (B, N), or (B, L) for histories."""

    id_N: Tensor  # int64, row of the ID embedding
    categories_NC: Tensor  # int64, codes of the catalogue's strings
    content_NF: Tensor  # float32, numbers of the catalogue
    activity_NF: Tensor  # float32, numbers of the stream view; no columns where only content is read
    lists_NA: (
        Tensor  # int64, codes of the catalogue's lists of strings, each list padded with zeros; none where encoded
    )

    def rows(self, index: Tensor) -> "ItemInputs":
        return ItemInputs(*(field[index] for field in self))

    def to(self, device: str) -> "ItemInputs":
        return ItemInputs(*(field.to(device) for field in self))


class EncodedItems(NamedTuple):
    """Items with their vectors by a model's own item encoder. Serving keeps the vectors, so they are computed once an item."""

    inputs: ItemInputs
    vectors_ND: Tensor


class Retrieved(NamedTuple):
    """What retrieval makes of the users' own candidates, before they are ranked."""

    scores_BN: Tensor  # float32, `Towers.scores`
    nearness_BN: Tensor  # float32, `Neighbours.nearness` to the history

    def to(self, device: str) -> "Retrieved":
        return Retrieved(*(field.to(device) for field in self))


class UserInputs(NamedTuple):
    """Users at a time. Histories are padded on the left with zeros, so the newest event is in the last place."""

    categories_BC: Tensor  # int64
    numbers_BF: Tensor  # float32
    items_BL: Tensor  # int64, rows of the catalogue table
    types_BL: Tensor  # int64
    gaps_BL: Tensor  # int64, bucket of the time to the next event; of the newest to t

    def rows(self, index: Tensor) -> "UserInputs":
        return UserInputs(*(field[index] for field in self))

    def to(self, device: str) -> "UserInputs":
        return UserInputs(*(field.to(device) for field in self))

    def trimmed(self, length: int) -> "UserInputs":
        """The newest places alone, at least one: what lies before is padding in a batch of short histories."""
        newest = slice(-max(length, 1), None)
        return self._replace(
            items_BL=self.items_BL[:, newest], types_BL=self.types_BL[:, newest], gaps_BL=self.gaps_BL[:, newest]
        )


class OneUser(NamedTuple):
    """A user at a time, as `UserInputs` has B of them, in arrays: what a request needs."""

    categories_C: Ints
    numbers_F: npt.NDArray[np.float32]
    items_L: Ints
    types_L: Ints
    gaps_L: Ints

    def batch(self, count: int) -> UserInputs:
        """So many times."""
        return UserInputs(*(torch.from_numpy(field).expand(count, -1).clone() for field in self))
