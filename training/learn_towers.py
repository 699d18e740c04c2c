"""How the towers learn: each row's item is to have the highest score for its user.

Shapes: B rows, I items of the catalogue, S items that are drawn, the rest as in `headrace.models.inputs`.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from headrace.arrays import Ints
from headrace.models.base import Towers
from headrace.models.inputs import ItemInputs
from headrace.models.preprocessing import Catalogue
from headrace.models.towers import full_softmax_loss, sampled_softmax_loss
from training.fit import Units
from training.windows import WindowBatch, Windows


class TowerBatch(NamedTuple):
    """Users and the places of what they turned to; `candidates_S` are the items told from each other, None for all of the catalogue."""

    windows: WindowBatch
    targets_B: Tensor
    candidates_S: Tensor | None


class TowerObjective(nn.Module):  # type: ignore[misc]
    """Cross entropy of each user's item against the catalogue, or against a sample with logQ correction."""

    def __init__(self, towers: Towers, table: ItemInputs, chance_I: Tensor) -> None:
        """`table` are the catalogue's inputs, its special rows first; `chance_I`: each item's to be among a batch's candidates."""
        super().__init__()
        self.towers = towers
        self._table = table
        self._every = torch.arange(Catalogue.FIRST, len(table.id_N), device=table.id_N.device)
        self._log_chance_I = chance_I.log()

    def forward(self, batch: TowerBatch) -> Tensor:
        histories, users, window_B, seen_B = batch.windows
        user_BD = self.towers.users_along(histories, self._table, users, window_B, seen_B)
        if batch.candidates_S is None:
            return full_softmax_loss(user_BD, self.towers.items(self._table.rows(self._every)), batch.targets_B)
        item_SD = self.towers.items(self._table.rows(batch.candidates_S + Catalogue.FIRST))
        log_q_S = self._log_chance_I[batch.candidates_S]
        place_B = torch.searchsorted(batch.candidates_S, batch.targets_B)
        return sampled_softmax_loss(user_BD, item_SD, place_B, log_q_S, window_B)


def inclusion_chances(target_R: Ints, items: int, batch: int, drawn: int) -> Tensor:
    """Chance that an item is among a batch's candidates, as a target or drawn uniformly: 1 - exp(-expected count), as a candidate stands
    once however often it was drawn. Of a batch of `batch` rows that come each for itself. Shape (I,).
    """
    rate_I = np.bincount(target_R, minlength=items) / max(len(target_R), 1)
    return torch.from_numpy(-np.expm1(-(batch * rate_I + drawn / items))).float()


def units(windows: Windows, target_R: Ints, items: int, drawn: int | None, device: str) -> Units:
    """Batches for `fit`, of windows. `drawn` items of the catalogue join the batch's targets as candidates; all of it where None.

    What is drawn depends on the batch alone, so processes that share it, and a run that is resumed, draw the same.
    """

    def read(batch: Ints, share: Ints) -> TowerBatch:
        candidates_S = None
        if drawn is not None:
            others = np.random.default_rng(batch[:8]).integers(items, size=drawn)
            candidates_S = np.unique(np.concatenate([target_R[windows.rows_of(batch)], others]))
        targets_B = torch.from_numpy(target_R[windows.rows_of(share)]).to(device)
        candidates = None if candidates_S is None else torch.from_numpy(candidates_S).to(device)
        return TowerBatch(windows.take(share).to(device), targets_B, candidates)

    return Units(windows.lengths_W, windows.sizes_W, windows.sizes_W[:, None], read)
