"""Retrieval: two towers whose dot product scores an item for a user.

Shape suffixes as in `headrace.models.inputs`; H heads, Q places that attend, S candidates of a sampled softmax, W windows of
which a batch's rows are.
"""

from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from headrace.models.base import Towers
from headrace.models.config import ModelConfig
from headrace.models.encoders import HistoryEncoder, ItemEncoder, UserEncoder, attend, encode_history
from headrace.models.inputs import ItemInputs, UserInputs
from headrace.models.preprocessing import Preprocessing

TEMPERATURE: Final = 0.07
_ROWS_AT_ONCE: Final = 64
_LEAST_CHANCE: Final = 1e-30


class Block(nn.Module):  # type: ignore[misc]
    """Pre-norm transformer layer over (B, L, D) in which a place sees itself and those before it, the nearer ones as much more as is
    learnt (a bias by distance and head: Raffel et al., 2020). With `last_only` it answers for the last place alone: (B, 1, D).
    """

    def __init__(self, config: ModelConfig, length: int) -> None:
        super().__init__()
        self.heads, self.dropout = config.heads, config.dropout
        self.norm, self.norm_mlp = nn.LayerNorm(config.width), nn.LayerNorm(config.width)
        self.query = nn.Linear(config.width, config.width)
        self.key_value = nn.Linear(config.width, 2 * config.width)
        self.out = nn.Linear(config.width, config.width)
        self.nearness = nn.Parameter(torch.zeros(config.heads, length))
        """Of events so many places back."""
        self.beginning = nn.Parameter(torch.zeros(config.heads))
        """Of what stands before all events, however many there are."""
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
        weight_HQL = self._nearness(x_BLD.shape[1])[:, -query.shape[1] :]
        weight_BHQL = weight_HQL.masked_fill(~present_BL[:, None, None, :], float("-inf"))
        left_out = self.dropout / 2 if self.training else 0.0
        mixed_BLD = self.out(attend(query, key, value, self.heads, weight_BHQL, left_out))
        x_BLD = asking_BLD + F.dropout(mixed_BLD, self.dropout, self.training)
        return x_BLD + self.mlp(self.norm_mlp(x_BLD))

    def _nearness(self, places: int) -> Tensor:
        """What is added to each place's weight for each that asks, minus infinity for later ones. The first place is the beginning.
        Shape (H, L, L).
        """
        place_L = torch.arange(places, device=self.nearness.device)
        back_LL = place_L[:, None] - place_L
        weight_HLL = self.nearness[:, back_LL.clamp(0, self.nearness.shape[1] - 1)].masked_fill(
            back_LL < 0, float("-inf")
        )
        beginning_HL1 = self.beginning[:, None, None].expand(-1, places, 1)
        return torch.cat([beginning_HL1, weight_HLL[:, :, 1:]], dim=2)


class TwoTowers(Towers):
    """The user tower reads history, counts and profile; the item tower ID and content.

    The same item encoder embeds the history, so a click moves the user's vector towards what was clicked. A place of the history
    sees nothing after it: what the tower makes of a user at an earlier time stands at an earlier place, and training learns from all
    of them in one pass (Kang and McAuley, 2018).
    """

    def __init__(self, preprocessing: Preprocessing, config: ModelConfig) -> None:
        super().__init__(preprocessing, config)
        self.item_encoder = ItemEncoder(preprocessing, config)
        self.history_encoder = HistoryEncoder(config)
        self.user_encoder = UserEncoder(preprocessing, config)
        self.start = nn.Parameter(config.width**-0.5 * torch.randn(config.width))
        self.blocks = nn.ModuleList(Block(config, preprocessing.length) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width)
        self.out = nn.Linear(config.width, config.width)
        self.dropout = config.dropout
        # A user begins as what was met last, so the first that is found is what is like it: random layers there would have to be unlearnt.
        nn.init.eye_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def items(self, items: ItemInputs) -> Tensor:
        return self.item_encoder(items)

    def users(self, users: UserInputs, table: ItemInputs) -> Tensor:
        item_BLD = encode_history(self.item_encoder, table, users.items_BL).vectors_ND
        return self._vectors(self._places(users, item_BLD, last_only=True)[:, -1], users)

    def users_along(
        self, histories: UserInputs, table: ItemInputs, users: UserInputs, row_R: Tensor, seen_R: Tensor
    ) -> Tensor:
        """All rows of a history in one pass: what a user was after so many events stands at that place. Shape (R, D)."""
        item_BLD = encode_history(self.item_encoder, table, histories.items_BL).vectors_ND
        place_BLD = self._places(histories, item_BLD, last_only=False)
        empty_B = (histories.items_BL == 0).sum(dim=1)  # all of them before the first event
        return self._vectors(place_BLD[row_R, empty_B[row_R] + seen_R], users)

    def _places(self, users: UserInputs, item_BLD: Tensor, last_only: bool) -> Tensor:
        """The blocks over the beginning and the events behind it. An empty place before the first event is as the beginning, and no other
        sees it. Shape (B, 1 + L, D), or of the last place alone (B, 1, D).
        """
        happened_BL1 = (users.items_BL > 0)[..., None]
        event_BLD = torch.where(happened_BL1, self.history_encoder(users, item_BLD), self.start)
        x_BLD = torch.cat([self.start.expand(len(event_BLD), 1, -1), event_BLD], dim=1)
        x_BLD = F.dropout(x_BLD, self.dropout, self.training)
        present_BL = F.pad(users.items_BL > 0, (1, 0), value=True)
        for number, block in enumerate(self.blocks, start=1):
            x_BLD = block(x_BLD, present_BL, last_only=last_only and number == len(self.blocks))
        return x_BLD

    def _vectors(self, last_RD: Tensor, users: UserInputs) -> Tensor:
        """A direction too: scores are cosines, over the temperature at which a softmax of them tells items apart."""
        known_RD = F.dropout(self.user_encoder(users), self.dropout, self.training)
        return F.normalize(self.out(self.norm(last_RD + known_RD)), dim=-1) / TEMPERATURE


def full_softmax_loss(user_BD: Tensor, item_ID: Tensor, target_B: Tensor) -> Tensor:
    """Cross entropy of each user's item against all items of the catalogue."""
    loss: Tensor = _CatalogueCrossEntropy.apply(user_BD, item_ID, target_B)
    return loss


class _CatalogueCrossEntropy(torch.autograd.Function):  # type: ignore[misc]
    """Mean loss of a batch against the catalogue, a few rows at a time: probabilities become gradients while they are still in the cache,
    and the (B, I) logits are never held (Wijmans et al., 2024). Products are of half width where the processor has them, sums and the
    softmax of full width. 33 ms where `F.cross_entropy` of all logits takes 95 (docs/experiments.md).
    """

    @staticmethod
    def forward(ctx: Any, user_BD: Tensor, item_ID: Tensor, target_B: Tensor) -> Tensor:
        kind = _product_type(user_BD.device)
        users, items = user_BD.to(kind), item_ID.to(kind)
        grad_user_BD, grad_item_ID = (
            torch.empty_like(users, dtype=torch.float32),
            torch.zeros_like(items, dtype=torch.float32),
        )
        losses_B = torch.empty(len(users), device=users.device)
        rows = _ROWS_AT_ONCE if users.device.type == "cpu" else len(users)
        for start in range(0, len(users), rows):
            some = slice(start, start + rows)
            wanted_B1 = target_B[some, None]
            chance_BI = torch.softmax(users[some] @ items.T, dim=1, dtype=torch.float32)
            losses_B[some] = -chance_BI.gather(1, wanted_B1).clamp_min(_LEAST_CHANCE).log().squeeze(1)
            grad_logit_BI = chance_BI.scatter_add_(1, wanted_B1, -torch.ones_like(wanted_B1, dtype=torch.float32)).to(
                kind
            )
            grad_user_BD[some] = grad_logit_BI @ items
            grad_item_ID += grad_logit_BI.T @ users[some]
        ctx.save_for_backward(grad_user_BD / len(users), grad_item_ID / len(users))
        return losses_B.mean()

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor, Tensor, None]:
        grad_user_BD, grad_item_ID = ctx.saved_tensors
        return grad_user_BD * grad_loss, grad_item_ID * grad_loss, None


def _product_type(device: torch.device) -> torch.dtype:
    """In what products of the softmax are taken."""
    halved = device.type != "cpu" or torch.cpu._is_avx512_bf16_supported()
    return torch.bfloat16 if halved else torch.float32


def sampled_softmax_loss(
    user_BD: Tensor, item_SD: Tensor, place_B: Tensor, log_q_S: Tensor, window_B: Tensor
) -> Tensor:
    """Cross entropy of each user's item, `place_B` in the S candidates, against these.

    `log_q_S` is the log of each one's chance to be a candidate: it is subtracted, so that an item is not pushed down for being
    drawn often (Bengio and Senecal, 2008; Yi et al., RecSys 2019). A candidate stands once, so none of the others is a hit. Rows of one
    window come together, by `window_B`, so that what one of them is of is a candidate of the others for sure, with a log of 0: else a
    user's own items would be pushed down as if so many others stood behind each.
    """
    of_window_WS = torch.zeros(int(window_B.max()) + 1, len(item_SD), dtype=torch.int32, device=item_SD.device)
    of_window_WS.index_put_((window_B, place_B), of_window_WS.new_ones(len(place_B)), accumulate=True)
    sure_BS = (of_window_WS > 0)[window_B]
    sure_BS[torch.arange(len(place_B), device=place_B.device), place_B] = of_window_WS[window_B, place_B] > 1
    less_BS = (-log_q_S).expand(sure_BS.shape).masked_fill(sure_BS, 0.0)
    return F.cross_entropy(torch.addmm(less_BS, user_BD, item_SD.T), place_B)
