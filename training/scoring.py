"""Scores of many rows by trained models, a batch at a time. T requests, K candidates, I items of the catalogue, R rows."""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from headrace.arrays import Ints
from headrace.models.inputs import ItemInputs, UserInputs
from headrace.models.preprocessing import Catalogue
from headrace.models.ranker import Ranker
from headrace.models.towers import TwoTowers
from training.rows import UserRows

Floats = npt.NDArray[np.float32]
_BATCH = 512


@torch.inference_mode()  # type: ignore[untyped-decorator]
def user_vectors(towers: TwoTowers, shop: Catalogue, users: UserInputs, device: str) -> Floats:
    """Shape (T, D)."""
    table = shop.inputs.to(device)
    return _joined(towers.users(users.rows(batch).to(device), table) for batch in _batches(len(users.items_BL)))


@torch.inference_mode()  # type: ignore[untyped-decorator]
def vectors_of(towers: TwoTowers, shop: Catalogue, rows: UserRows, device: str) -> Floats:
    """Of users whose rows lie on disk. Shape (R, D)."""
    table = shop.inputs.to(device)
    batches = (rows.take(batch.numpy()).to(device) for batch in _batches(len(rows)))
    none = torch.zeros(0, towers.out.out_features)
    return np.asarray(torch.cat([none, *(towers.users(batch, table).cpu() for batch in batches)]).numpy())


@torch.inference_mode()  # type: ignore[untyped-decorator]
def item_vectors(towers: TwoTowers, items: ItemInputs, device: str) -> Floats:
    """Shape (N, D)."""
    return _joined(towers.items(items.rows(batch).to(device)) for batch in _batches(len(items.id_N)))


def shop_vectors(towers: TwoTowers, shop: Catalogue, device: str) -> Floats:
    """Vectors of the catalogue's items, its special rows left out. Shape (I, D)."""
    every_ID: Floats = item_vectors(towers, shop.inputs, device)
    return every_ID[Catalogue.FIRST :]


def pair_scores(
    towers: TwoTowers, shop: Catalogue, users: UserInputs, items: ItemInputs, user_of_R: Ints, device: str
) -> Floats:
    """The towers' score of rows of one user and one item. Shape (R,).

    `user_of_R` numbers the rows' users at their times: rows of one number are encoded once.
    """
    _, first, place_R = np.unique(user_of_R, return_index=True, return_inverse=True)
    user_TD = user_vectors(towers, shop, users.rows(torch.from_numpy(first)), device)
    return np.asarray((user_TD[place_R] * item_vectors(towers, items, device)).sum(axis=1))


@torch.inference_mode()  # type: ignore[untyped-decorator]
def rank_logits(
    towers: TwoTowers, ranker: Ranker, shop: Catalogue, users: UserInputs, items: ItemInputs, device: str
) -> Tensor:
    """The ranker's logits for T users, each with candidates of leading shape (T, K). Shape (T, K, O), on the CPU."""
    table = shop.inputs.to(device)
    users_count, candidates = items.id_N.shape
    parts = []
    for batch in torch.arange(users_count).split(max(1, _BATCH // candidates)):
        user, item = users.rows(batch).to(device), items.rows(batch).to(device)
        parts.append(ranker(user, item, towers.scores(user, item, table), table).cpu())
    return torch.cat(parts)


def _batches(rows: int) -> Iterator[Tensor]:
    yield from torch.arange(rows).split(_BATCH)


def _joined(parts: Iterator[Tensor]) -> Floats:
    return np.asarray(torch.cat(list(parts)).cpu().numpy())
