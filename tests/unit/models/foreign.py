"""Architectures of somebody else's: what is asked of them stands in headrace/models/base.py, and nothing more is here."""

import torch
from torch import Tensor, nn

from headrace.models.base import PlainRanker, Towers
from headrace.models.config import ModelConfig
from headrace.models.encoders import ItemEncoder, encode_history
from headrace.models.inputs import EncodedItems, ItemInputs, Retrieved, UserInputs
from headrace.models.preprocessing import Preprocessing


class Mean(Towers):
    """A user is the mean of the history, each event's type and gap added as numbers."""

    def __init__(self, preprocessing: Preprocessing, config: ModelConfig) -> None:
        super().__init__(preprocessing, config)
        self.item_encoder = ItemEncoder(preprocessing, config)
        self.out = nn.Linear(config.width, config.width)

    def items(self, items: ItemInputs) -> Tensor:
        return self.item_encoder(items)

    def users(self, users: UserInputs, table: ItemInputs) -> Tensor:
        event_BLD = encode_history(self.items, table, users.items_BL).vectors_ND
        event_BLD = event_BLD + 0.1 * (users.types_BL + users.gaps_BL)[..., None]
        happened_BL1 = (users.items_BL > 0).float()[..., None]
        return self.out((event_BLD * happened_BL1).sum(dim=1) / happened_BL1.sum(dim=1).clamp(min=1))


class Line(PlainRanker):
    """A line of the candidate's numbers, of its kinds and lists as codes, and of retrieval; nothing of the history is encoded."""

    def __init__(self, preprocessing: Preprocessing, config: ModelConfig) -> None:
        super().__init__(preprocessing, config)
        lists = sum(strings.width for strings in preprocessing.content_lists.values())
        width = preprocessing.content_width + preprocessing.activity_width + preprocessing.user_width + lists + 3
        self.line = nn.Linear(width, len(config.outcomes))
        self.kinds = nn.Embedding(1_000, len(config.outcomes))

    def encode(self, items: ItemInputs) -> Tensor:
        return items.content_NF[..., :0]

    def raw_logits(self, users: UserInputs, items: EncodedItems, history: EncodedItems, retrieved: Retrieved) -> Tensor:
        inputs = items.inputs
        known_BN = (inputs.id_N[:, :, None] == history.inputs.id_N[:, None]).any(dim=-1).float()
        of_user_BNU = users.numbers_BF[:, None].expand(-1, retrieved.scores_BN.shape[1], -1)
        facts = (inputs.content_NF, inputs.activity_NF, of_user_BNU, inputs.lists_NA.float())
        kinds_BNO = self.kinds(inputs.categories_NC).sum(dim=-2)
        return self.line(torch.cat([*facts, torch.stack([*retrieved, known_BN], dim=-1)], dim=-1)) + kinds_BNO
