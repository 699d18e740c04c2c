"""What an architecture has to be: the rest of Headrace asks no more of towers and of a ranker than stands here.

A new one subclasses `Towers`, and gives `items` and `users`; or `PlainRanker`, and gives `encode` and `raw_logits`. Its class is named by
`ModelConfig.towers` or `.ranker` (headrace/models/architectures.py). docs/models.md walks through it.

Every architecture is made as `Class(preprocessing, config)`, is an `nn.Module`, and keeps what it has learnt in its `state_dict`: that is
what a bundle holds. Shape suffixes as in `headrace.models.inputs`; R rows of training, E width of what a ranker keeps of an item.
"""

from abc import ABC, abstractmethod
from typing import Final

import torch
from torch import Tensor, nn

from headrace.models.config import OUTCOME_VALUES, ModelConfig
from headrace.models.encoders import HistoryEncoder, ItemEncoder, UserEncoder, encode_history
from headrace.models.inputs import EncodedItems, ItemInputs, Retrieved, UserInputs
from headrace.models.preprocessing import Preprocessing

# Positions of impressions: 0 is an item that was not shown, those beyond the last count as it.
NOT_SHOWN: Final = 0
MOST_POSITIONS: Final = 64


class Towers(nn.Module, ABC):  # type: ignore[misc]
    """Retrieval: vectors of users and of items whose inner product is an item's score. That is what the index searches by and what
    training compares, so it is not for an architecture to change.
    """

    def __init__(self, preprocessing: Preprocessing, config: ModelConfig) -> None:
        super().__init__()
        self.width = config.width
        """D of both vectors."""

    @abstractmethod
    def items(self, items: ItemInputs) -> Tensor:
        """(..., D) of items of any leading shape. Of ID and content alone: an item's vector is the same for all users and times."""

    @abstractmethod
    def users(self, users: UserInputs, table: ItemInputs) -> Tensor:
        """(B, D). `users.items_BL` are rows of `table`, 0 where there is no event, the newest in the last place: a row's vector must not
        depend on how many empty places stand before its events, nor on other rows.
        """

    def users_along(
        self, histories: UserInputs, table: ItemInputs, users: UserInputs, row_R: Tensor, seen_R: Tensor
    ) -> Tensor:
        """Users at several times of a history each: `row_R` of `histories`, of which the first `seen_R` events have happened; their
        counts and profile are those of `users`. What `users` gives of each. Shape (R, D).

        Here each row's history is written out and read alone. An architecture whose places do not see what comes after them can answer
        for all rows of a history in one pass (`TwoTowers`).
        """
        return self.users(written_out(histories, users, row_R, seen_R), table)

    def scores(self, users: UserInputs, items: ItemInputs, table: ItemInputs) -> Tensor:
        """How well each user's own candidates, leading shape (B, N), match. Shape (B, N)."""
        return torch.einsum("bd,bnd->bn", self.users(users, table), self.items(items))


class RankingModel(nn.Module, ABC):  # type: ignore[misc]
    """Ranking: (B users, each with N candidates) -> a logit for each outcome. `PlainRanker` fills in all but two methods."""

    values_O: Tensor
    """What an outcome is worth, `OUTCOME_VALUES`."""

    def __init__(self, preprocessing: Preprocessing, config: ModelConfig) -> None:
        super().__init__()
        self.outcomes = config.outcomes
        """What the O logits are of."""
        nothing_PO = torch.zeros(1 + MOST_POSITIONS, len(config.outcomes))
        self.position_bias = nn.Embedding.from_pretrained(nothing_PO, freeze=False)
        values = [OUTCOME_VALUES[name] for name in config.outcomes]
        self.register_buffer("values_O", torch.tensor(values), persistent=False)

    @abstractmethod
    def encode(self, items: ItemInputs) -> Tensor:
        """(..., E): what it needs of an item's ID and content that costs more than a look. Serving keeps it for all items. There is no
        activity in `items`. E may be 0: `items.content_NF[..., :0]`.
        """

    @abstractmethod
    def logits(self, users: UserInputs, items: EncodedItems, history: EncodedItems, retrieved: Retrieved) -> Tensor:
        """Shape (B, N, O). Vectors are `encode`'s, leading shapes (B, N) and (B, L). Of `users.items_BL` only what is 0 counts; what the
        items are, `history` says. A candidate's logits must not depend on the others.
        """

    @abstractmethod
    def settle(self, position: int, slope_O: Tensor, shift_O: Tensor) -> None:
        """Make `slope * logit at this position + shift` (Platt, 1999) the logits, and the state dict hold it."""

    def forward(self, users: UserInputs, items: ItemInputs, retrieved: Retrieved, table: ItemInputs) -> Tensor:
        """`logits` of items that are not encoded: `items` has a leading shape (B, N), histories hold rows of `table`."""
        history = encode_history(self.encode, table, users.items_BL)
        return self.logits(users, EncodedItems(items, self.encode(items)), history, retrieved)

    def at_positions(self, logits_BNO: Tensor, positions_BN: Tensor) -> Tensor:
        """Logits of items that stand there: what a place adds does not depend on the item (Zhao et al., RecSys 2019). Training alone
        asks for it; a request is ranked as if every item stood where `settle` says.
        """
        return logits_BNO + self.position_bias(positions_BN.clamp(max=MOST_POSITIONS))

    def scores(self, logits_BNO: Tensor) -> Tensor:
        """Expected value of showing the item: each outcome's probability times what it is worth. Shape (B, N)."""
        return (torch.sigmoid(logits_BNO) * self.values_O).sum(dim=-1)

    def take_encoders(self, towers: Towers) -> None:
        """Items, histories and users as the towers, which have seen many more rows, know them: each encoder is the one of the same name and
        class of the towers, and stays so. Of some thousand lists it would learn their items by heart. An encoder that the towers lack
        learns from its fresh start.
        """
        for name, own in self.named_children():
            theirs = getattr(towers, name, None)
            is_encoder = isinstance(own, ItemEncoder | HistoryEncoder | UserEncoder)
            if is_encoder and theirs is not None and type(theirs) is type(own):
                own.load_state_dict(theirs.state_dict())
                own.requires_grad_(False)


class PlainRanker(RankingModel):
    """A ranker whose positions and scale are kept beside its logits. An architecture gives `encode` and `raw_logits`."""

    slope_O: Tensor
    shift_O: Tensor

    def __init__(self, preprocessing: Preprocessing, config: ModelConfig) -> None:
        super().__init__(preprocessing, config)
        self.register_buffer("slope_O", torch.ones(len(self.outcomes)))
        self.register_buffer("shift_O", torch.zeros(len(self.outcomes)))

    @abstractmethod
    def raw_logits(self, users: UserInputs, items: EncodedItems, history: EncodedItems, retrieved: Retrieved) -> Tensor:
        """What `logits` are before they are scaled. Shape (B, N, O)."""

    def logits(self, users: UserInputs, items: EncodedItems, history: EncodedItems, retrieved: Retrieved) -> Tensor:
        return self.raw_logits(users, items, history, retrieved) * self.slope_O + self.shift_O

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def settle(self, position: int, slope_O: Tensor, shift_O: Tensor) -> None:
        own_O = self.position_bias.weight[position].clone()
        self.position_bias.weight.sub_(own_O).mul_(slope_O)
        self.shift_O.add_(own_O).mul_(slope_O).add_(shift_O)
        self.slope_O.mul_(slope_O)


def written_out(histories: UserInputs, users: UserInputs, row_R: Tensor, seen_R: Tensor) -> UserInputs:
    """Each row with a history of its own: the first `seen_R` events of its row of `histories`, moved to the last places. Gaps stay, the
    newest event's too: in a window it is the time to the next event, which is when the row's request came. Leading shape (R,).
    """
    first_R = (histories.items_BL == 0).sum(dim=1)[row_R]  # all empty places stand before the first event
    length = histories.items_BL.shape[1]
    source_RL = torch.arange(length, device=row_R.device) - (length - first_R - seen_R)[:, None]
    happened_RL = source_RL >= first_R[:, None]

    def moved(column_BL: Tensor) -> Tensor:
        return column_BL[row_R].gather(1, source_RL.clamp(min=0)) * happened_RL

    items_BL, types_BL, gaps_BL = (
        moved(column) for column in (histories.items_BL, histories.types_BL, histories.gaps_BL)
    )
    return users._replace(items_BL=items_BL, types_BL=types_BL, gaps_BL=gaps_BL)
