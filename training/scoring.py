"""Scores of many rows by trained models, a batch at a time. T requests, I items of the catalogue, R rows."""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from headrace.models.inputs import ItemInputs, UserInputs
from headrace.models.preprocessing import Catalogue
from headrace.models.ranker import Ranker
from headrace.models.towers import TwoTowers

Floats = npt.NDArray[np.float32]
_BATCH = 4_096


@torch.inference_mode()  # type: ignore[untyped-decorator]
def tower_scores(towers: TwoTowers, shop: Catalogue, users: UserInputs, device: str) -> Floats:
    """Every item for every user. Shape (T, I)."""
    table = shop.inputs.to(device)
    item_ID = towers.items(table)[Catalogue.FIRST :]
    return _joined(towers.users(users.rows(batch).to(device), table) @ item_ID.T for batch in _batches(users))


@torch.inference_mode()  # type: ignore[untyped-decorator]
def pair_scores(towers: TwoTowers, shop: Catalogue, users: UserInputs, items: ItemInputs, device: str) -> Floats:
    """The towers' score of rows of one user and one item. Shape (R,)."""
    table = shop.inputs.to(device)
    return _joined(
        towers.scores(users.rows(batch).to(device), items.rows(batch[:, None]).to(device), table)[:, 0]
        for batch in _batches(users)
    )


@torch.inference_mode()  # type: ignore[untyped-decorator]
def rank_logits(
    towers: TwoTowers, ranker: Ranker, shop: Catalogue, users: UserInputs, items: ItemInputs, device: str
) -> Tensor:
    """The ranker's logits of rows of one user and one item. Shape (R, O), on the CPU."""
    table = shop.inputs.to(device)
    parts = []
    for batch in _batches(users):
        user, item = users.rows(batch).to(device), items.rows(batch[:, None]).to(device)
        parts.append(ranker(user, item, towers.scores(user, item, table), table)[:, 0].cpu())
    return torch.cat(parts)


def _batches(users: UserInputs) -> Iterator[Tensor]:
    yield from torch.arange(len(users.items_BL)).split(_BATCH)


def _joined(parts: Iterator[Tensor]) -> Floats:
    return np.asarray(torch.cat(list(parts)).cpu().numpy())
