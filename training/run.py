"""What the steps of a training run share."""

from dataclasses import dataclass

import numpy as np
import polars as pl
import pyarrow as pa

from headrace import names
from headrace.arrays import Ints
from headrace.models.bundle import Bundle
from headrace.models.config import ModelConfig
from headrace.models.preprocessing import Catalogue, Preprocessing
from training.config import TrainConfig
from training.dataset import Split
from training.fit import Noted
from training.processes import Processes
from training.run_folder import RunFolder


@dataclass(frozen=True)
class Shop:
    """The catalogue as it stood when the test begins, and how features become tensors."""

    preprocessing: Preprocessing
    catalogue: Catalogue
    content: pa.Table

    @property
    def items(self) -> int:
        return len(self.catalogue.item_ids)

    def places(self, rows: pl.DataFrame) -> Ints:
        """Of the rows' items; -1 for one that the catalogue lacks."""
        return np.maximum(self.catalogue.rows(rows[names.ITEM_ID].to_arrow()) - Catalogue.FIRST, -1)


@dataclass(frozen=True)
class Run:
    """One run in one of its processes. `warm_start` is what both models begin as, where their weights mean the same."""

    folder: RunFolder
    config: TrainConfig
    model: ModelConfig
    split: Split
    shop: Shop
    us: Processes
    device: str
    noted: Noted
    progress: bool
    warm_start: Bundle | None
