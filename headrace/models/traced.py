"""The models' arithmetic without their Python: what a request runs, recorded once and replayed.

Half of what a request's few hundred rows cost in eager PyTorch is Python between operations. A trace replays the same operations,
whatever the number of candidates. `torch.jit` is in maintenance and said to be deprecated; torch.export's own module is slower
than eager code, and an ONNX export as fast as a trace brings three more packages (docs/adr/0012). This module is the one place to change.
"""

import warnings
from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor, nn

from headrace.models.inputs import UserInputs
from headrace.models.packed_items import PackedItems
from headrace.models.ranker import Ranker
from headrace.models.towers import TwoTowers

_USER: Final = len(UserInputs._fields)


class _UserTower(nn.Module):  # type: ignore[misc]
    def __init__(self, towers: TwoTowers, packing: PackedItems) -> None:
        super().__init__()
        self.towers, self.packing = towers, packing

    def forward(self, history_BLW: Tensor, *users: Tensor) -> Tensor:
        return self.towers.user_vectors(UserInputs(*users), self.packing.tower(history_BLW))


class _Scores(nn.Module):  # type: ignore[misc]
    def __init__(self, ranker: Ranker, packing: PackedItems) -> None:
        super().__init__()
        self.ranker, self.packing = ranker, packing

    def forward(
        self, vector_BD: Tensor, items_BNW: Tensor, activity_BNF: Tensor, history_BLW: Tensor, *users: Tensor
    ) -> Tensor:
        retrieved_BN = vector_BD @ self.packing.tower(items_BNW[0]).T
        items = self.packing.ranked(items_BNW, activity_BNF)
        history = self.packing.ranked(history_BLW, history_BLW[..., :0])
        return self.ranker.scores(self.ranker.logits(UserInputs(*users), items, history, retrieved_BN))


class Traced:
    """Both models as they were when this was made. One user (B = 1), any number of candidates; items as `PackedItems` has them."""

    def __init__(
        self,
        towers: TwoTowers,
        ranker: Ranker,
        packing: PackedItems,
        users: UserInputs,
        items_BNW: Tensor,
        activity: int,
    ) -> None:
        """`users` and `items_BNW` are examples: what they hold does not matter. `activity`: numbers of the stream view."""
        history_BLW = items_BNW[:, :1].expand(-1, users.items_BL.shape[1], -1)
        activity_BNF = torch.zeros(*items_BNW.shape[:2], activity)
        vector_BD = torch.zeros(1, packing.width)
        self._tower = _trace(_UserTower(towers, packing), (history_BLW, *users))
        self._scores = _trace(_Scores(ranker, packing), (vector_BD, items_BNW, activity_BNF, history_BLW, *users))

    def user_vectors(self, users: UserInputs, history_BLW: Tensor) -> Tensor:
        """As TwoTowers has it."""
        return self._tower(history_BLW, *users)

    def scores(
        self, users: UserInputs, vector_BD: Tensor, items_BNW: Tensor, activity_BNF: Tensor, history_BLW: Tensor
    ) -> Tensor:
        """`Ranker.scores` of `Ranker.logits`. Shape (1, N)."""
        return self._scores(vector_BD, items_BNW, activity_BNF, history_BLW, *users)


def _trace(module: nn.Module, example: tuple[Tensor, ...]) -> Callable[..., Tensor]:
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        return torch.jit.freeze(torch.jit.trace(module.eval(), example, check_trace=False))  # type: ignore[no-any-return]
