"""The models' arithmetic without their Python: what a request runs, recorded once and replayed.

Half of what a request's few hundred rows cost in eager PyTorch is Python between operations. A trace replays the same operations, to the
same bits, whatever the number of candidates. `torch.jit` is in maintenance and said to be deprecated; torch.export's own module is slower
than eager code, and an ONNX export as fast as a trace brings three more packages (docs/adr/0012). This module is the one place to change.
"""

import warnings
from collections.abc import Callable
from typing import Any, Final

import torch
from torch import Tensor, nn

from headrace.models.inputs import EncodedItems, ItemInputs, UserInputs
from headrace.models.ranker import Ranker
from headrace.models.towers import TwoTowers

_USER: Final = len(UserInputs._fields)
_ITEM: Final = len(ItemInputs._fields)

UserTower = Callable[..., Tensor]
Scores = Callable[..., Tensor]


class _UserTower(nn.Module):  # type: ignore[misc]
    def __init__(self, towers: TwoTowers) -> None:
        super().__init__()
        self.towers = towers

    def forward(self, *tensors: Tensor) -> Tensor:
        return self.towers.user_vectors(UserInputs(*tensors[:_USER]), tensors[_USER])


class _Scores(nn.Module):  # type: ignore[misc]
    def __init__(self, ranker: Ranker) -> None:
        super().__init__()
        self.ranker = ranker

    def forward(self, vector_BD: Tensor, tower_ND: Tensor, *tensors: Tensor) -> Tensor:
        users = UserInputs(*tensors[:_USER])
        items, history = _encoded(tensors[_USER : _USER + _ITEM + 1]), _encoded(tensors[_USER + _ITEM + 1 :])
        return self.ranker.scores(self.ranker.logits(users, items, history, vector_BD @ tower_ND.T))


def _encoded(tensors: Any) -> EncodedItems:
    return EncodedItems(ItemInputs(*tensors[:_ITEM]), tensors[_ITEM])


class Traced:
    """Both models as they were when this was made. One user (B = 1), any number of candidates."""

    def __init__(
        self, towers: TwoTowers, ranker: Ranker, users: UserInputs, items: EncodedItems, history: EncodedItems
    ) -> None:
        """The inputs are examples: what they hold does not matter."""
        width = items.vectors_ND.shape[-1]
        rows = items.vectors_ND.shape[1]
        example = (torch.zeros(1, width), torch.zeros(rows, width), *users, *_flat(items), *_flat(history))
        self._tower = _trace(_UserTower(towers), (*users, history.vectors_ND))
        self._scores = _trace(_Scores(ranker), example)

    def user_vectors(self, users: UserInputs, item_BLD: Tensor) -> Tensor:
        """As TwoTowers has it."""
        return self._tower(*users, item_BLD)

    def scores(
        self, users: UserInputs, items: EncodedItems, history: EncodedItems, vector_BD: Tensor, tower_ND: Tensor
    ) -> Tensor:
        """`Ranker.scores` of `Ranker.logits`; `tower_ND` are the candidates' vectors by the item tower. Shape (1, N)."""
        return self._scores(vector_BD, tower_ND, *users, *_flat(items), *_flat(history))


def _flat(items: EncodedItems) -> tuple[Tensor, ...]:
    return (*items.inputs, items.vectors_ND)


def _trace(module: nn.Module, example: tuple[Tensor, ...]) -> Callable[..., Tensor]:
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        return torch.jit.freeze(torch.jit.trace(module.eval(), example, check_trace=False))  # type: ignore[no-any-return]
