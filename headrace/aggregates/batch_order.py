"""Rows grouped by entity and ordered by time, and the sweeps over them that place many questions at once.

Entities are numbers from 0. Events and the pairs asked about them are brought into the same order, so that one walk over
each entity answers all of its questions: no search per row.
"""

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from headrace.arrays import Ints
from headrace.kernel import kernel

Bools = npt.NDArray[np.bool_]
T = TypeVar("T", bound=np.generic)


@dataclass(frozen=True)
class Ordered:
    """N rows of some entities: entity c holds the places starts[c] to starts[c + 1], earliest first."""

    rows: Ints
    """(N,) the row that stands at each place."""
    times: Ints
    """(N,) its time in microseconds."""
    starts: Ints
    """(entities + 1,)"""

    def select(self, keep: Bools) -> "Ordered":
        """The places where `keep` is true."""
        kept = np.flatnonzero(keep)
        return Ordered(self.rows[kept], self.times[kept], np.searchsorted(kept, self.starts))

    def reordered(self, places: Ints, order: Ints) -> "Ordered":
        """What stood at `order` now stands at `places`, a permutation among rows of equal entity and time."""
        rows = self.rows.copy()
        rows[places] = self.rows[order]
        return Ordered(rows, self.times, self.starts)

    def tied(self) -> Ints:
        """Places that share entity and time with a neighbour."""
        same = np.zeros(len(self.times) + 1, dtype=np.bool_)
        same[1:-1] = self.times[1:] == self.times[:-1]
        same[self.starts] = False
        return np.flatnonzero(same[:-1] | same[1:])


def by_entity_and_time(codes: npt.NDArray[np.uint32], times: Ints, entities: int) -> Ordered:
    """Order rows by entity, then by time; rows that are equal in both keep their order."""
    rows, ordered_times, starts = _group(read_only(codes), read_only(times), entities)
    _merge_runs(rows, ordered_times, starts)
    return Ordered(rows, ordered_times, starts)


def read_only(values: npt.NDArray[T]) -> npt.NDArray[T]:
    """A view that cannot be written to. What Polars lends cannot be, and a kernel is compiled anew for arrays that can."""
    view = values.view()
    view.flags.writeable = False
    return view


def places_before(timeline: Ordered, asked: Ordered, times: Ints) -> Ints:
    """(Q,) for each pair asked, the first place of its entity that is not before the time (its end if all are).

    `times` (Q,) belong to the places of `asked`, ascending within each entity.
    """
    return np.asarray(_sweep(timeline.times, timeline.starts, times, asked.starts))


def first_places(timeline: Ordered, asked: Ordered) -> Ints:
    """(Q,) for each pair asked, the first place of its entity."""
    return np.repeat(timeline.starts[:-1], np.diff(asked.starts))


@kernel
def _group(codes: npt.NDArray[np.uint32], times: Ints, entities: int) -> tuple[Ints, Ints, Ints]:
    """A counting sort by entity."""
    starts = np.zeros(entities + 1, np.int64)
    for code in codes:
        starts[code + 1] += 1
    for entity in range(entities):
        starts[entity + 1] += starts[entity]
    ends = starts[:-1].copy()
    rows, ordered = np.empty(len(codes), np.int64), np.empty(len(codes), np.int64)
    for row in range(len(codes)):
        place = ends[codes[row]]
        rows[place], ordered[place] = row, times[row]
        ends[codes[row]] = place + 1
    return rows, ordered, starts


@kernel
def _merge_runs(rows: Ints, times: Ints, starts: Ints) -> None:
    """A natural merge sort of each entity by time, in place: event logs come in few ascending runs."""
    longest = 0
    for entity in range(len(starts) - 1):
        longest = max(longest, starts[entity + 1] - starts[entity])
    left_times, left_rows = np.empty(longest, np.int64), np.empty(longest, np.int64)
    cuts = np.empty(longest + 1, np.int64)
    for entity in range(len(starts) - 1):
        begin, end = starts[entity], starts[entity + 1]
        runs = 0
        cuts[0] = begin
        for place in range(begin + 1, end):
            if times[place] < times[place - 1]:
                runs += 1
                cuts[runs] = place
        if begin < end:
            runs += 1
            cuts[runs] = end
        while runs > 1:
            merged = 0
            for run in range(0, runs - 1, 2):
                low, middle, high = cuts[run], cuts[run + 1], cuts[run + 2]
                size = middle - low
                left_times[:size], left_rows[:size] = times[low:middle], rows[low:middle]
                left, right = 0, middle
                for place in range(low, high):
                    if left == size:
                        break
                    if right < high and times[right] < left_times[left]:
                        times[place], rows[place] = times[right], rows[right]
                        right += 1
                    else:
                        times[place], rows[place] = left_times[left], left_rows[left]
                        left += 1
                merged += 1
                cuts[merged] = high
            if runs % 2:
                merged += 1
                cuts[merged] = cuts[runs]
            runs = merged


@kernel
def _sweep(times: Ints, starts: Ints, asked: Ints, asked_starts: Ints) -> Ints:
    found = np.empty(len(asked), np.int64)
    for entity in range(len(starts) - 1):
        place, end = starts[entity], starts[entity + 1]
        for pair in range(asked_starts[entity], asked_starts[entity + 1]):
            while place < end and times[place] < asked[pair]:
                place += 1
            found[pair] = place
    return found
