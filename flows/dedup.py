"""Dropping duplicates by the log's own order: the same answer for every reader, after a restart, and when a reader goes back.

An event is a duplicate if an earlier position of its partition, within the horizon of append time, holds its event_id.
"""

from collections.abc import Callable
from typing import Final

import numpy as np
import polars as pl

from flows.batches import Batch, Places, place
from flows.fingerprints import Fingerprints
from headrace import names
from headrace.arrays import Ints, Mask
from headrace.kernel import kernel
from headrace.stores.log import EventLog

_RECALLED_AT_ONCE: Final = 256
_TIDIED_AFTER: Final = 1_000


class Deduplicator:
    """Knows each partition's ids up to a position, and reads again what it lacks: the horizon before the first batch, or a gap.

    `meanwhile` is called now and then while it reads, which may take long.
    """

    def __init__(self, log: EventLog, horizon_us: int, meanwhile: Callable[[], object] = lambda: None) -> None:
        self._log = log
        self._horizon_us = horizon_us
        self._meanwhile = meanwhile
        self._known: dict[int, Known] = {}

    def __call__(self, batch: Batch) -> Batch:
        """The batch without its duplicates."""
        duplicate = np.zeros(batch.events.height, np.bool_)
        for partition in np.unique(batch.places.partition).tolist():
            rows = np.flatnonzero(batch.places.partition == partition)
            places, ids = batch.places[rows], batch.events[names.EVENT_ID][rows]
            known = self._reach(partition, batch.slice.after[partition], int(places.appended_us.min()))
            duplicate[rows] = known.duplicates(ids, places)
            self._known[partition] = known  # only now: what failed half-way is begun anew
        return batch.without(duplicate)

    @property
    def size_bytes(self) -> int:
        return sum(known.size_bytes for known in self._known.values())

    def __len__(self) -> int:
        """Ids held."""
        return sum(len(known.ids) for known in self._known.values())

    def _reach(self, partition: int, after: int, first_us: int) -> "Known":
        """What can matter of a partition up to position `after`, where the next event is of `first_us`."""
        known = self._known.pop(partition, None)
        if known is not None and known.start <= after <= known.end:
            return known
        horizon = min(after, self._log.position_at(partition, first_us - self._horizon_us))
        if known is None or after < known.start or known.end < horizon:
            known = Known(self._horizon_us, horizon)
            self._recall(partition, known, after)
            known.forget(after)  # what came before has no horizon before it
        else:
            self._recall(partition, known, after)
        return known

    def _recall(self, partition: int, known: "Known", upto: int) -> None:
        while known.end < upto:
            entries = self._log.read({partition: known.end}, _RECALLED_AT_ONCE)
            entries = [entry for entry in entries if entry.position <= upto]
            events, places, _ = place(entries, [names.EVENT_ID])
            known.duplicates(events[names.EVENT_ID], places)
            known.end = entries[-1].position if entries else upto
            self._meanwhile()


class Known:
    """The ids of a partition up to a position, and which events since another one were duplicates."""

    def __init__(self, horizon_us: int, position: int) -> None:
        self.start = self.end = position
        self.ids = Fingerprints(horizon_us)
        self._horizon_us = horizon_us
        self._found: list[Places] = []

    @property
    def size_bytes(self) -> int:
        return self.ids.size_bytes + sum(32 * len(found) for found in self._found)

    def duplicates(self, event_ids: pl.Series, places: Places) -> Mask:
        """For events in order that follow `start` or a later position: whether each is a duplicate. Shape (len(places),)."""
        old = int(np.searchsorted(places.position, self.end, side="right"))
        fresh = places[old:]
        found = np.empty(len(places), np.bool_)
        found[:old] = self._answer_again(places[:old])
        found[old:] = self.ids.seen(event_ids[old:], fresh.appended_us)
        if len(fresh):
            self._found.append(fresh[found[old:]])
            self.end = int(fresh.position[-1])
        if len(self._found) > _TIDIED_AFTER:
            self._tidy()
        return found

    def forget(self, position: int) -> None:
        """Answer no more for events up to a position."""
        self.start = max(self.start, position)
        found = Places.join(self._found)
        self._found = [found[found.position > self.start]]

    def _answer_again(self, places: Places) -> Mask:
        found = np.zeros(len(places), np.bool_)
        if len(places):
            self._found = [Places.join(self._found)]
            _mark(found, places.position, places.index, self._found[0].position, self._found[0].index)
        return found

    def _tidy(self) -> None:
        """Forget what lies a horizon back: a reader that goes back there costs a rebuild, and keeps no memory until then."""
        found = Places.join(self._found)
        expired = found.appended_us < found.appended_us.max(initial=0) - self._horizon_us
        if expired.any():
            self.start = max(self.start, int(found.position[expired].max()))
        self._found = [found[found.position > self.start]]


@kernel
def _mark(marked: Mask, positions: Ints, indexes: Ints, found_positions: Ints, found_indexes: Ints) -> None:
    """Mark those of the events that are among the found ones; both in the log's order."""
    at = np.searchsorted(found_positions, positions[0])
    for i in range(len(positions)):
        while at < len(found_positions) and (
            found_positions[at] < positions[i]
            or (found_positions[at] == positions[i] and found_indexes[at] < indexes[i])
        ):
            at += 1
        marked[i] = (
            at < len(found_positions) and found_positions[at] == positions[i] and found_indexes[at] == indexes[i]
        )
