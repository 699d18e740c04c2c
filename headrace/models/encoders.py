"""Parts that towers and ranker share: embeddings of codes, of items, and of a user's history.

Shape suffixes as in `headrace.models.inputs`.
"""

from collections.abc import Callable
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from headrace.models.config import ModelConfig
from headrace.models.inputs import EncodedItems, ItemInputs, UserInputs
from headrace.models.preprocessing import GAP_BUCKETS, MISSING, TYPES, Preprocessing, Vocabulary


def attend(query: Tensor, key: Tensor, value: Tensor, heads: int, mask: Tensor, dropout: float = 0.0) -> Tensor:
    """Multi-head attention (Vaswani et al., 2017). `query` (B, Q, D), `key` and `value` (B, L, D). `mask`, of a shape that fits (B, H, Q,
    L): places where it is False are not attended to; or numbers that are added to what a place weighs. `dropout`: the share of weights
    that are left out. Shape (B, Q, D).
    """

    def split(x: Tensor) -> Tensor:
        return x.unflatten(-1, (heads, -1)).transpose(1, 2)

    mixed = F.scaled_dot_product_attention(split(query), split(key), split(value), attn_mask=mask, dropout_p=dropout)
    return mixed.transpose(1, 2).flatten(2)


UNKNOWN: Final = 1
"""Code of all unknown values of a vocabulary with one bucket."""
BEGINNING: Final = 0.02
"""How far embeddings lie apart before they learn. Only the direction of an item's sum counts, and a step turns a short one further."""


class CodeEmbedding(nn.Module):  # type: ignore[misc]
    """Embedding of a vocabulary's codes. What is missing is nothing, and so is an unknown value, unless more values were met than have a
    code of their own: then the rest of them teach the buckets. Else all that would be learnt of unknown items is that nobody took them.
    """

    def __init__(self, vocabulary: Vocabulary, width: int) -> None:
        super().__init__()
        self.table = nn.Embedding(len(vocabulary), width, padding_idx=MISSING)
        nn.init.normal_(self.table.weight, std=BEGINNING)
        nn.init.zeros_(self.table.weight[: vocabulary.first_known])
        self._is_taught_unknown = vocabulary.buckets > 1

    def forward(self, codes: Tensor) -> Tensor:
        return self.table(self.known(codes))

    def known(self, codes: Tensor) -> Tensor:
        return codes if self._is_taught_unknown else codes.masked_fill(codes == UNKNOWN, MISSING)


class ListEmbedding(CodeEmbedding):
    """Mean of the embeddings of a list's values; zero for an empty one. (..., A) -> (..., D)."""

    def forward(self, codes: Tensor) -> Tensor:
        means_ND = F.embedding_bag(
            self.known(codes).flatten(0, -2), self.table.weight, mode="mean", padding_idx=MISSING
        )
        return means_ND.unflatten(0, codes.shape[:-1])


class ItemEncoder(nn.Module):  # type: ignore[misc]
    """An item as the sum of its ID's embedding and its content's, as a direction: of length 1. Lengths would have to grow for scores to
    tell items apart, which takes four times as many epochs. (...) -> (..., D).
    """

    def __init__(self, preprocessing: Preprocessing, config: ModelConfig) -> None:
        super().__init__()
        self.ids = CodeEmbedding(preprocessing.ids, config.width)
        self.categories = nn.ModuleList(
            CodeEmbedding(vocabulary, config.width) for vocabulary in preprocessing.content_categories.values()
        )
        self.lists = nn.ModuleList(
            ListEmbedding(strings.vocabulary, config.width) for strings in preprocessing.content_lists.values()
        )
        self.list_widths = [strings.width for strings in preprocessing.content_lists.values()]
        # Without a bias: what all items have in common leaves their directions less to differ by. And without ages: a new item has had
        # little time to be taken, and all that would be learnt of being new is that (docs/adr/0023).
        self.content_FD = nn.Parameter(torch.zeros(preprocessing.lasting_width, config.width))

    def forward(self, items: ItemInputs) -> Tensor:
        summed_ND = self.ids(items.id_N) + items.content_NF[..., : len(self.content_FD)] @ self.content_FD
        for column, embedding in enumerate(self.categories):
            summed_ND = summed_ND + embedding(items.categories_NC[..., column])
        for embedding, codes_NA in zip(self.lists, items.lists_NA.split(self.list_widths, dim=-1), strict=True):
            summed_ND = summed_ND + embedding(codes_NA)
        return F.normalize(summed_ND, dim=-1)


class HistoryEncoder(nn.Module):  # type: ignore[misc]
    """The events of a history: item, what was done, how long until the next one. -> (B, L, D)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.types = nn.Embedding(len(TYPES), config.width)
        self.gaps = nn.Embedding(GAP_BUCKETS, config.width)
        for table in (self.types, self.gaps):
            nn.init.normal_(table.weight, std=BEGINNING)

    def forward(self, users: UserInputs, item_BLD: Tensor) -> Tensor:
        return item_BLD + self.types(users.types_BL) + self.gaps(users.gaps_BL)


def encode_history(encoder: Callable[[ItemInputs], Tensor], table: ItemInputs, items_BL: Tensor) -> EncodedItems:
    """The items of histories, rows of `table`, each distinct item encoded once. Leading shape (B, L)."""
    distinct, place_BL = torch.unique(items_BL, return_inverse=True)
    vectors_BLD = F.embedding(
        place_BL, encoder(table.rows(distinct))
    )  # its backward is many times faster than of indexing
    return EncodedItems(table.rows(items_BL), vectors_BLD)


class UserEncoder(nn.Module):  # type: ignore[misc]
    """A user's counts and profile. -> (B, D)."""

    def __init__(self, preprocessing: Preprocessing, config: ModelConfig) -> None:
        super().__init__()
        self.categories = nn.ModuleList(
            CodeEmbedding(vocabulary, config.width) for vocabulary in preprocessing.user_categories.values()
        )
        self.numbers = nn.Linear(preprocessing.user_width, config.width)
        for parameter in self.numbers.parameters():
            nn.init.zeros_(parameter)

    def forward(self, users: UserInputs) -> Tensor:
        summed_BD = self.numbers(users.numbers_BF)
        for column, embedding in enumerate(self.categories):
            summed_BD = summed_BD + embedding(users.categories_BC[:, column])
        return summed_BD
