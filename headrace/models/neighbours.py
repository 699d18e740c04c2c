"""What goes with what: of each item those that people turn to around it, and how close candidates are to a history by that.

Co-visitation (Davidson et al., RecSys 2010; Linden et al., 2003). It is counted, not learnt: it knows a pair that came up twice, which
vectors of some ten numbers blur, and it is as new as the events it was counted from.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from headrace.arrays import Floats32, Ints
from headrace.kernel import kernel
from headrace.models.preprocessing import Catalogue

DECAY: Final = 0.8
"""What an event of the history weighs, of the one after it."""
_NONE: Final = -1
_SPREAD = np.uint64(0x9E3779B97F4A7C15)
"""2^64 over the golden ratio: a product with it has well-mixed high bits."""


@dataclass(frozen=True)
class Neighbours:
    """By row of a catalogue's table: rows of its K nearest, -1 where there are fewer, and their scores. Shapes (I, K)."""

    rows_IK: npt.NDArray[np.int32]
    scores_IK: Floats32

    @classmethod
    def of_items(cls, places_IK: npt.NDArray[np.int32], scores_IK: Floats32) -> "Neighbours":
        """`places_IK` number the items from 0; the table's special rows have no neighbours."""
        first = ((Catalogue.FIRST, 0), (0, 0))
        rows_IK = np.where(places_IK < 0, _NONE, places_IK + Catalogue.FIRST).astype(np.int32)
        return cls(np.pad(rows_IK, first, constant_values=_NONE), np.pad(scores_IK, first))

    def of(self, row_N: Ints, k: int) -> tuple[Ints, Floats32]:
        """The k nearest of each of these rows, side by side; -1 and 0 where there are fewer, and for a row behind the end: (N, k)."""
        inside_N1 = (row_N < len(self.rows_IK))[:, None]
        held_N = np.where(inside_N1[:, 0], row_N, 0)
        near_NK = np.where(inside_N1, self.rows_IK[held_N, :k], _NONE).astype(np.int64)
        return near_NK, np.where(inside_N1, self.scores_IK[held_N, :k], 0)

    def nearness(self, history_BL: Ints, candidates_BN: Ints) -> Floats32:
        """Of each candidate the scores that it has as a neighbour of the history's items, summed, newer ones more: shape (B, N).

        Rows of the table; 0 in a history is no event. An item from behind the table's end is nobody's neighbour.
        """
        nearness_BN: Floats32 = _nearness(self.rows_IK, self.scores_IK, history_BL, candidates_BN)
        return nearness_BN


@kernel
def _nearness(rows_IK: npt.NDArray[np.int32], scores_IK: Floats32, history_BL: Ints, candidates_BN: Ints) -> Floats32:
    batch, count = candidates_BN.shape
    shift = np.uint64(63)
    while (np.int64(1) << (np.int64(64) - np.int64(shift))) < 2 * count:
        shift -= np.uint64(1)
    size = np.int64(1) << (np.int64(64) - np.int64(shift))
    found_BN = np.zeros((batch, count), np.float32)
    slot_N = np.empty(count, np.int64)
    for b in range(batch):
        # Candidates by a hash, so that the work is of their number and of the neighbours', not of the catalogue's size.
        row_S = np.full(size, _NONE, np.int64)
        near_S = np.zeros(size, np.float32)
        for n in range(count):
            slot_N[n] = _slot(row_S, candidates_BN[b, n], shift)
            row_S[slot_N[n]] = candidates_BN[b, n]
        weight = np.float32(1)
        for place in range(history_BL.shape[1] - 1, -1, -1):
            row = history_BL[b, place]
            if 0 < row < len(rows_IK):
                for k in range(rows_IK.shape[1]):
                    if rows_IK[row, k] < 0:
                        break
                    slot = _slot(row_S, np.int64(rows_IK[row, k]), shift)
                    near_S[slot] += weight * scores_IK[row, k]
            weight *= np.float32(DECAY)
        for n in range(count):
            found_BN[b, n] = near_S[slot_N[n]]
    return found_BN


@kernel
def _slot(row_S: Ints, row: np.int64, shift: np.uint64) -> np.int64:
    """Where the row stands, or the free place where it would."""
    slot = np.int64((np.uint64(row) * _SPREAD) >> shift)
    while row_S[slot] not in (_NONE, row):
        slot = (slot + 1) & (len(row_S) - 1)
    return slot
