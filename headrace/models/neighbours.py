"""What goes with what: of each item those that people turn to around it, and how near candidates are to a history by that.

Co-visitation (Davidson et al., RecSys 2010; Linden et al., 2003). It is counted, not learnt: it knows a pair that came up twice, which
vectors of some ten numbers blur, and it is as new as the events it was counted from.
"""

from typing import Final

import numpy as np

from headrace.arrays import Floats32, Ints, Ints32
from headrace.hash_table import FREE, first_slot, free_table, shift_for
from headrace.kernel import kernel
from headrace.models.preprocessing import Catalogue

DECAY: Final = 0.8
"""What an event of the history weighs, of the one after it."""
SCALE: Final = np.float32(100)
"""Sums of scores become logarithms of one more than this many times them: that two items came up together once is much, that they did ten
times is not ten times as much.
"""
NONE: Final = -1


class Neighbours:
    """The K nearest of each of N items, -1 where there are fewer, and their scores; the items stand in rows of a catalogue's table."""

    def __init__(self, near_NK: Ints32, scores_NK: Floats32, row_N: Ints) -> None:
        """`near_NK` are places of items among these N, `row_N` their rows, each once. No array is copied."""
        self.near_NK, self.scores_NK, self.row_N = near_NK, scores_NK, row_N
        self._place_I = np.full(int(row_N.max(initial=NONE)) + 1, NONE, np.int64)
        self._place_I[row_N] = np.arange(len(row_N))

    @classmethod
    def of_items(cls, near_NK: Ints32, scores_NK: Floats32) -> "Neighbours":
        """Of a table that has these items alone, in this order, behind its special rows."""
        return cls(near_NK, scores_NK, Catalogue.FIRST + np.arange(len(near_NK)))

    def places(self, rows: Ints) -> Ints:
        """Where these rows stand among the N items, -1 for a row that is none of them."""
        places: Ints = _places(self._place_I, rows)
        return places

    def nearness(self, history_BL: Ints, candidates_BN: Ints) -> Floats32:
        """How near each candidate is to a history: log(1 + SCALE * the scores that it has as a neighbour of the history's items, summed,
        each event weighing DECAY of the one after it). Shape (B, N).

        Rows of the table, the newest event in the last place; 0 in a history is no event. An item that is not among the N is far from all.
        """
        nearness_BN: Floats32 = _nearness(self.near_NK, self.scores_NK, self._place_I, history_BL, candidates_BN)
        return nearness_BN


@kernel
def _nearness(near_NK: Ints32, scores_NK: Floats32, place_I: Ints, history_BL: Ints, candidates_BN: Ints) -> Floats32:
    batch, count = candidates_BN.shape
    shift = shift_for(count)
    found_BN = np.zeros((batch, count), np.float32)
    slot_N = np.empty(count, np.int64)
    for b in range(batch):
        # Candidates by a hash, so that the work is of their number and of the neighbours', not of the catalogue's size.
        place_S = free_table(shift)
        sum_S = np.zeros(len(place_S), np.float32)
        for n in range(count):
            place = _place(place_I, candidates_BN[b, n])
            slot_N[n] = NONE if place < 0 else _slot(place_S, place, shift)
            if place >= 0:
                place_S[slot_N[n]] = place
        weight = np.float32(1)
        for back in range(1, history_BL.shape[1] + 1):
            place = _place(place_I, history_BL[b, history_BL.shape[1] - back])
            if place >= 0:
                for k in range(near_NK.shape[1]):
                    if near_NK[place, k] < 0:
                        break
                    sum_S[_slot(place_S, np.int64(near_NK[place, k]), shift)] += weight * scores_NK[place, k]
            weight *= np.float32(DECAY)
        for n in range(count):
            if slot_N[n] >= 0:
                found_BN[b, n] = np.log1p(SCALE * sum_S[slot_N[n]])
    return found_BN


@kernel
def _places(place_I: Ints, rows: Ints) -> Ints:
    places = np.empty(len(rows), np.int64)
    for i in range(len(rows)):
        places[i] = _place(place_I, rows[i])
    return places


@kernel
def _place(place_I: Ints, row: np.int64) -> np.int64:
    if 0 <= row < len(place_I):
        return np.int64(place_I[row])
    return np.int64(NONE)


@kernel
def _slot(place_S: Ints, place: np.int64, shift: np.uint64) -> np.int64:
    """Where it stands, or the free slot where it would."""
    slot = first_slot(place, shift)
    while place_S[slot] != FREE and place_S[slot] != place:
        slot = (slot + 1) & (len(place_S) - 1)
    return slot
