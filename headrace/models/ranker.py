"""Ranking: feature crosses and attention of each candidate over the user's history; one logit for each outcome.

What the towers make of a candidate is one more input, so the ranker refines retrieval and need not learn it again.
Crosses after DCN-v2 (Wang et al., WWW 2021, eq. 1: x' = x0 * (W x + b) + x), attention after DIN (Zhou et al., 2018).
Shape suffixes as in `headrace.models.inputs`; K a candidate's inputs of the crosses, U the user's, X the crosses' width, M the
number of matches.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from headrace.models.base import RankingModel
from headrace.models.config import ModelConfig
from headrace.models.encoders import HistoryEncoder, ItemEncoder, UserEncoder, attend
from headrace.models.inputs import EncodedItems, ItemInputs, Retrieved, UserInputs
from headrace.models.preprocessing import Preprocessing

RECENT_PLACES = 5
# The towers' score is the last of an item's inputs, and so the first that crosses begin with.
_PLACE_OF_MATCH = 0


class Ranker(RankingModel):
    """Crosses of all that is known, and attention of the candidate over the history."""

    first_known_C: Tensor

    def __init__(self, preprocessing: Preprocessing, config: ModelConfig) -> None:
        super().__init__(preprocessing, config)
        self.item_encoder = ItemEncoder(preprocessing, config)
        self.history_encoder = HistoryEncoder(config)
        self.places = nn.Embedding(preprocessing.length, config.width)
        nn.init.normal_(self.places.weight, std=0.5 * config.width**-0.5)
        self.user_encoder = UserEncoder(preprocessing, config)
        self.query, self.key = nn.Linear(config.width, config.width), nn.Linear(config.width, config.width)
        self.heads, self.width = config.heads, config.width
        compared = (preprocessing.ids, *preprocessing.content_categories.values())
        first_known = torch.tensor([vocabulary.first_known for vocabulary in compared])
        self.register_buffer("first_known_C", first_known, persistent=False)
        matches = 2 * len(compared)
        dense = preprocessing.content_width + preprocessing.activity_width + matches + 2
        wide = config.cross_width
        # One projection of everything, in two parts: what is said of the user is the same for all candidates.
        self.project_user = nn.Linear(config.width + preprocessing.user_width, wide)
        self.project_item = nn.Linear(2 * config.width + dense, wide, bias=False)
        _begin_as_identity(self.project_item, self.project_user)
        self.crosses = nn.ModuleList(nn.Linear(wide, wide) for _ in range(config.crosses))
        self.deep = nn.Sequential(
            nn.LayerNorm(wide), nn.Linear(wide, config.hidden), nn.ReLU(), nn.Dropout(config.dropout),
            nn.Linear(config.hidden, config.hidden), nn.ReLU(),
        )  # fmt: skip
        self.out_crossed = nn.Linear(wide, len(config.outcomes))
        self.out_deep = nn.Linear(config.hidden, len(config.outcomes), bias=False)
        self._begin_with_retrieval()

    def encode(self, items: ItemInputs) -> Tensor:
        return self.item_encoder(items)

    def logits(self, users: UserInputs, items: EncodedItems, history: EncodedItems, retrieved: Retrieved) -> Tensor:
        inputs, item_BND = items
        history_BLD = self.history_encoder(users, history.vectors_ND) + self.places.weight[-users.items_BL.shape[1] :]
        interest_BND = self._attend(item_BND, history_BLD, users.items_BL > 0)
        shares_BNM = match_shares(users, inputs, history.inputs, self.first_known_C)
        match_BN2 = torch.stack([retrieved.nearness_BN, retrieved.scores_BN * self.width**-0.5], dim=-1)
        of_user_BU = torch.cat([self.user_encoder(users), users.numbers_BF], dim=1)
        of_item_BNK = torch.cat(
            [item_BND, interest_BND, inputs.content_NF, inputs.activity_NF, shares_BNM, match_BN2], dim=-1
        )
        x0_BNX = self.project_item(of_item_BNK) + self.project_user(of_user_BU)[:, None]
        crossed_BNX = x0_BNX
        for cross in self.crosses:
            crossed_BNX = torch.addcmul(crossed_BNX, x0_BNX, cross(crossed_BNX))
        return self.out_crossed(crossed_BNX) + self.out_deep(self.deep(x0_BNX))

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def settle(self, position: int, slope_O: Tensor, shift_O: Tensor) -> None:
        """Weights take it in: it costs a request nothing."""
        bias_PO = self.position_bias.weight
        self.out_crossed.bias.add_(bias_PO[position]).mul_(slope_O).add_(shift_O)
        bias_PO.sub_(bias_PO[position].clone()).mul_(slope_O)
        for layer in (self.out_crossed, self.out_deep):
            layer.weight.mul_(slope_O[:, None])

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def _begin_with_retrieval(self) -> None:
        """Every outcome's logit begins as the towers' score, so that what is learnt is what they do not know."""
        for layer in (*self.crosses, self.out_crossed):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        nn.init.zeros_(self.out_deep.weight)
        self.out_crossed.weight[:, _PLACE_OF_MATCH] = self.width**0.5

    def _attend(self, item_BND: Tensor, history_BLD: Tensor, present_BL: Tensor) -> Tensor:
        """What of the history speaks for each candidate; zero for an empty history. Shape (B, N, D)."""
        mask_BL = present_BL | ~present_BL.any(dim=1, keepdim=True)
        mask_B11L = mask_BL[:, None, None, :]
        mixed_BND = attend(self.query(item_BND), self.key(history_BLD), history_BLD, self.heads, mask_B11L)
        return mixed_BND * present_BL.any(dim=1)[:, None, None]


def match_shares(users: UserInputs, items: ItemInputs, history: ItemInputs, first_known_C: Tensor) -> Tensor:
    """Of the history, and of its last RECENT_PLACES, the share with the candidate's ID, category, ...: (B, N, M).

    A missing or unseen value, a code below the column's `first_known`, matches nothing. Crosses that matter from the first day, when
    attention has seen little.
    """
    item_BCN = torch.cat([items.id_N[..., None], items.categories_NC], dim=-1).transpose(1, 2)
    past_BCL = torch.cat([history.id_N[..., None], history.categories_NC], dim=-1).transpose(1, 2)
    past_BCL = past_BCL.masked_fill(past_BCL < first_known_C[:, None], -1)  # which no candidate has
    same_BCNL = item_BCN[..., None] == past_BCL[:, :, None]
    present_BL = (users.items_BL > 0).float()
    lately_BL = present_BL.clone()
    lately_BL[:, :-RECENT_PLACES] = 0
    places_BL2 = torch.stack([present_BL, lately_BL], dim=-1)
    weights_BL2 = places_BL2 / places_BL2.sum(dim=1, keepdim=True).clamp(min=1)
    shares_BCN2 = (same_BCNL.float().flatten(1, 2) @ weights_BL2).unflatten(1, same_BCNL.shape[1:3])
    return shares_BCN2.permute(0, 2, 3, 1).flatten(2)


@torch.no_grad()  # type: ignore[untyped-decorator]
def _begin_as_identity(*parts: nn.Linear) -> None:
    """Side by side, so that the crosses begin with the inputs as they are, of each part its last one first; what does not fit begins
    at zero. Random mixtures of inputs cost the ranker more than crossing them gives it back.
    """
    at = 0
    for part in parts:
        nn.init.zeros_(part.weight)
        count = max(0, min(part.in_features, part.out_features - at))
        part.weight[at : at + count, part.in_features - count :] = torch.eye(count).flip(1)
        at += count
        if part.bias is not None:
            nn.init.zeros_(part.bias)


def outcome_loss(logits_BO: Tensor, labels_BO: Tensor) -> Tensor:
    """Mean binary cross entropy over rows and outcomes; NaN labels (not observed) are left out. Without any other it is 0."""
    known_BO = ~torch.isnan(labels_BO)
    if not known_BO.any():
        return logits_BO[known_BO].sum()
    return F.binary_cross_entropy_with_logits(logits_BO[known_BO], labels_BO[known_BO])


def choice_loss(logits_BN: Tensor, wanted_B: Tensor) -> Tensor:
    """Cross entropy of the candidate that was turned to among all of its list; lists where that is -1 are left out."""
    chosen_B = wanted_B >= 0
    if not chosen_B.any():
        return logits_BN.new_zeros(())
    return F.cross_entropy(logits_BN[chosen_B], wanted_B[chosen_B])
