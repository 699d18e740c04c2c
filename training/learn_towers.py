"""How the towers learn: each row's item is to have the highest score for its user.

Shapes: B rows, I items of the catalogue, S items that are drawn, the rest as in `headrace.models.inputs`.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from headrace.arrays import Floats, Ints
from headrace.models.base import Towers
from headrace.models.inputs import ItemInputs
from headrace.models.preprocessing import Catalogue
from headrace.models.towers import full_softmax_loss, sampled_softmax_loss
from training.fit import Units
from training.windows import WindowBatch, Windows


class Candidates(NamedTuple):
    """Places of the items that a batch tells from each other, ascending, and the log of each one's chance to be there."""

    places_S: Tensor
    log_q_S: Tensor


class TowerBatch(NamedTuple):
    """Users and the places of what they turned to; `candidates` is None for all of the catalogue."""

    windows: WindowBatch
    targets_B: Tensor
    candidates: Candidates | None


class TowerObjective(nn.Module):  # type: ignore[misc]
    """Cross entropy of each user's item against the catalogue, or against a sample with logQ correction."""

    def __init__(self, towers: Towers, table: ItemInputs) -> None:
        """`table` are the catalogue's inputs, its special rows first."""
        super().__init__()
        self.towers = towers
        self._table = table
        self._every = torch.arange(Catalogue.FIRST, len(table.id_N), device=table.id_N.device)

    def forward(self, batch: TowerBatch) -> Tensor:
        histories, users, window_B, seen_B = batch.windows
        user_BD = self.towers.users_along(histories, self._table, users, window_B, seen_B)
        if batch.candidates is None:
            return full_softmax_loss(user_BD, self.towers.items(self._table.rows(self._every)), batch.targets_B)
        places_S, log_q_S = batch.candidates
        item_SD = self.towers.items(self._table.rows(places_S + Catalogue.FIRST))
        place_B = torch.searchsorted(places_S, batch.targets_B)
        return sampled_softmax_loss(user_BD, item_SD, place_B, log_q_S, window_B)


def inclusion_chances(share_S: Floats, items: int, rows: int, drawn: int) -> Floats:
    """Chance that an item is among a batch's candidates, as what one of `rows` is of or as one of `drawn` of all items: 1 - exp(-expected
    count), as a candidate stands once however often it came. Of rows that come each for itself. `share_S`: of all rows, those of the item.
    """
    return -np.expm1(-(rows * share_S + drawn / items))


def units(windows: Windows, target_R: Ints, items: int, drawn: int | None, device: str) -> Units:
    """Batches for `fit`, of windows. `drawn` items of the catalogue join the batch's targets as candidates; all of it where None.

    What is drawn depends on the batch alone, so processes that share it, and a run that is resumed, draw the same. So do the chances:
    windows of a batch are alike in length, and one of long windows has many times the rows of one of short ones.
    """
    share_I = np.bincount(target_R, minlength=items) / max(len(target_R), 1)

    def draw(batch: Ints, count: int) -> Candidates:
        of_rows_B = target_R[windows.rows_of(batch)]
        others = np.random.default_rng(batch[:8]).integers(items, size=count)
        places_S = np.unique(np.concatenate([of_rows_B, others]))
        chance_S = inclusion_chances(share_I[places_S], items, len(of_rows_B), count)
        return Candidates(torch.from_numpy(places_S).to(device), torch.from_numpy(np.log(chance_S)).float().to(device))

    def read(batch: Ints, share: Ints) -> TowerBatch:
        targets_B = torch.from_numpy(target_R[windows.rows_of(share)]).to(device)
        candidates = None if drawn is None else draw(batch, drawn)
        return TowerBatch(windows.take(share).to(device), targets_B, candidates)

    return Units(windows.lengths_W, windows.sizes_W, windows.sizes_W[:, None], read)
