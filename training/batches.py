"""In what order rows are learnt from: shuffled anew each epoch, rows of like length side by side."""

from typing import Final

import numpy as np

from headrace.arrays import Ints

_SORTED_TOGETHER: Final = 32
"""Batches whose rows are sorted by length: more would pad less, and mix less."""


def epoch_of(lengths_R: Ints, batch: int, seed: int, epoch: int) -> list[Ints]:
    """All rows once, as batches of row numbers in random order.

    Histories of a batch are padded to its longest one, and most are short: rows are shuffled, sorted by length within groups of some
    batches, and the batches shuffled again.
    """
    rng = np.random.default_rng([seed, epoch])
    order = rng.permutation(len(lengths_R))
    group = batch * _SORTED_TOGETHER
    for start in range(0, len(order), group):
        rows = order[start : start + group]
        order[start : start + group] = rows[np.argsort(lengths_R[rows], kind="stable")]
    batches = [order[start : start + batch] for start in range(0, len(order), batch)]
    return [batches[place] for place in rng.permutation(len(batches))]
