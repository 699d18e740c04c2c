"""An item as one row of numbers: all that a request reads of it lies side by side, so 200 random items are 200 reads and not 1,000.

    row = item tower's vector (D) | ranker's vector (E) | content (F) | code of the ID | codes of categories (C) | of lists (A)

Lists are there for models that are run by their modules; the compiled ones do not read them once an item is encoded.

Codes are kept as float32, which holds whole numbers to 16 million exactly.

Shape suffixes as in `headrace.models.inputs`; W is the row's width.
"""

from dataclasses import dataclass
from typing import Final, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from headrace.models.inputs import EncodedItems, ItemInputs

MOST_CODES: Final = 2**24

Rows = TypeVar("Rows", Tensor, npt.NDArray[np.float32])


@dataclass(frozen=True)
class PackedItems:
    """Where what stands: `width` is D, `ranker_width` E, `content` F, `categories` C, `lists` A or 0."""

    width: int
    ranker_width: int
    content: int
    categories: int
    lists: int = 0

    def pack(self, items: ItemInputs, tower_ND: Tensor, ranker_ND: Tensor) -> Tensor:
        """Shape (N, W)."""
        codes = (items.id_N[:, None].float(), items.categories_NC.float(), items.lists_NA[:, : self.lists].float())
        return torch.cat([tower_ND, ranker_ND, items.content_NF, *codes], dim=1)

    def tower(self, rows_NW: Rows) -> Rows:
        """The item tower's vectors. Leading shape any."""
        return rows_NW[..., : self.width]

    @property
    def content_at(self) -> int:
        """Where the content begins; before it stand the two vectors."""
        return self.width + self.ranker_width

    @property
    def codes_at(self) -> int:
        return self.content_at + self.content

    def ranked(self, rows_NW: Tensor, activity_NF: Tensor) -> EncodedItems:
        """As the ranker reads items, and with lists as the towers do."""
        content_at, codes_at = self.content_at, self.codes_at
        lists_at = codes_at + 1 + self.categories
        inputs = ItemInputs(
            rows_NW[..., codes_at].long(),
            rows_NW[..., codes_at + 1 : lists_at].long(),
            rows_NW[..., content_at:codes_at],
            activity_NF,
            rows_NW[..., lists_at:].long(),
        )
        return EncodedItems(inputs, rows_NW[..., self.width : content_at])
