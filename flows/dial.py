"""How much a slice takes: as much as is allowed while slices are quick, less where one holds up the next for long."""

import math
from collections.abc import Sequence
from typing import Final

from headrace.stores.log import LogEntry

# A slice should be done long before a lease of the shards ends, and before anybody wonders where his event is.
_TOO_LONG_S: Final = 1.0
_FEWEST: Final = 500
_FIRST_ENTRIES, _MOST_ENTRIES = 4, 256


class Dial:
    """`was_full`: the last slice ended with its bound, not with the log's end."""

    def __init__(self, max_events: int) -> None:
        self._most = max_events
        self._limit = max_events
        self._events = 0
        self._per_entry = 1.0
        self._wanted = _FIRST_ENTRIES
        self.was_full = False

    def begin(self) -> None:
        """A slice begins."""
        self._events = 0
        self.was_full = False

    def entries_wanted(self, partitions: int) -> int:
        """How many entries of each partition would fill the slice, going by the last ones; carefully, as the next may hold more."""
        missing = math.ceil((self._limit - self._events) / self._per_entry / partitions)
        self._wanted = max(1, min(missing, _MOST_ENTRIES, 2 * self._wanted))
        return self._wanted

    def add(self, entries: Sequence[LogEntry]) -> None:
        """Entries that were read for the slice."""
        if entries:
            events = sum(entry.count for entry in entries)
            self._events += events
            self._per_entry = max(1.0, events / len(entries))
            self.was_full = self._events >= self._limit

    def took(self, seconds: float) -> None:
        """How long the slice was under way, to the end of its commit."""
        if seconds > _TOO_LONG_S:
            self._limit = max(min(_FEWEST, self._most), min(self._limit, self._events) // 2)
        elif self.was_full and seconds < _TOO_LONG_S / 3:
            self._limit = min(self._most, 2 * self._limit)
