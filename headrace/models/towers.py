"""Retrieval: two towers whose dot product scores an item for a user.

Shape suffixes as in `headrace.models.inputs`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from headrace.models.config import ModelConfig
from headrace.models.encoders import HistoryEncoder, ItemEncoder, UserEncoder, attend, encode_history
from headrace.models.inputs import ItemInputs, UserInputs
from headrace.models.preprocessing import Preprocessing


class Block(nn.Module):  # type: ignore[misc]
    """Pre-norm transformer layer over (B, L, D). With `last_only` it answers for the last place alone: (B, 1, D)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.heads, self.dropout = config.heads, config.dropout
        self.norm, self.norm_mlp = nn.LayerNorm(config.width), nn.LayerNorm(config.width)
        self.query = nn.Linear(config.width, config.width)
        self.key_value = nn.Linear(config.width, 2 * config.width)
        self.out = nn.Linear(config.width, config.width)
        self.mlp = nn.Sequential(
            nn.Linear(config.width, 4 * config.width),
            nn.ReLU(),
            nn.Linear(4 * config.width, config.width),
            nn.Dropout(config.dropout),
        )

    def forward(self, x_BLD: Tensor, present_BL: Tensor, last_only: bool) -> Tensor:
        normed_BLD = self.norm(x_BLD)
        asking_BLD = x_BLD[:, -1:] if last_only else x_BLD
        query = self.query(normed_BLD[:, -1:] if last_only else normed_BLD)
        key, value = self.key_value(normed_BLD).chunk(2, dim=-1)
        mixed_BLD = self.out(attend(query, key, value, self.heads, present_BL))
        x_BLD = asking_BLD + F.dropout(mixed_BLD, self.dropout, self.training)
        return x_BLD + self.mlp(self.norm_mlp(x_BLD))


class TwoTowers(nn.Module):  # type: ignore[misc]
    """The user tower reads history, counts and profile; the item tower ID and content.

    The same item encoder embeds the history, so a click moves the user's vector towards what was clicked.
    """

    def __init__(self, preprocessing: Preprocessing, config: ModelConfig) -> None:
        super().__init__()
        self.item_encoder = ItemEncoder(preprocessing, config)
        self.history_encoder = HistoryEncoder(config, preprocessing.length)
        self.user_encoder = UserEncoder(preprocessing, config)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width)
        self.out = nn.Linear(config.width, config.width)

    def items(self, items: ItemInputs) -> Tensor:
        """Shape (N, D)."""
        return self.item_encoder(items)

    def users(self, users: UserInputs, table: ItemInputs) -> Tensor:
        """Shape (B, D). Histories hold rows of `table`."""
        return self.user_vectors(users, encode_history(self.item_encoder, table, users.items_BL).vectors_ND)

    def user_vectors(self, users: UserInputs, item_BLD: Tensor) -> Tensor:
        """Shape (B, D), from the history's vectors by `item_encoder`. The profile stands behind the history as one more place, and its
        output is the user.
        """
        history_BLD = self.history_encoder(users, item_BLD)
        x_BLD = torch.cat([history_BLD, self.user_encoder(users)[:, None]], dim=1)
        present_BL = F.pad(users.items_BL > 0, (0, 1), value=True)
        for number, block in enumerate(self.blocks, start=1):
            x_BLD = block(x_BLD, present_BL, last_only=number == len(self.blocks))
        return self.out(self.norm(x_BLD[:, -1]))

    def scores(self, users: UserInputs, items: ItemInputs, table: ItemInputs) -> Tensor:
        """How well each user's own candidates, leading shape (B, N), match. Shape (B, N)."""
        return torch.einsum("bd,bnd->bn", self.users(users, table), self.items(items))


def full_softmax_loss(user_BD: Tensor, item_ID: Tensor, target_B: Tensor) -> Tensor:
    """Cross entropy of each user's item against all items of the catalogue."""
    return F.cross_entropy(user_BD @ item_ID.T, target_B)


def in_batch_softmax_loss(user_BD: Tensor, item_BD: Tensor, target_B: Tensor, log_q_B: Tensor) -> Tensor:
    """Cross entropy of each user's item against the items of the batch (Yi et al., RecSys 2019).

    `log_q_B` is the log of the rate at which each row's item comes into a batch: it is subtracted, so that popular
    items are not pushed down for being drawn often. Another row with the same item is an accidental hit, left out.
    """
    logits_BB = user_BD @ item_BD.T - log_q_B
    own_B = torch.arange(len(target_B), device=target_B.device)
    accidental_BB = (target_B[:, None] == target_B) & (own_B[:, None] != own_B)
    return F.cross_entropy(logits_BB.masked_fill(accidental_BB, float("-inf")), own_B)
