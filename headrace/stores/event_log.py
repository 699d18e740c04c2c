"""The event log as everybody sees it: append-only, partitioned by user key, ordered inside a partition.

A *position* is an integer that grows inside a partition; 0 is before its first entry. One entry holds a micro-batch of records
(headrace.events).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class LogEntry:
    """One micro-batch as it stands in the log. `ingested_at_us` is when it was appended; `count` how many records, as its writer said."""

    partition: int
    position: int
    ingested_at_us: int
    payload: bytes
    count: int = 1


class LogUnavailableError(RuntimeError):
    """The log does not answer. What was to be appended may be in or not: send it again with the same event_id."""


class LogFullError(LogUnavailableError):
    """The log takes no more: its byte bound, its server's memory, or its disk."""


class EventLog(Protocol):
    """What every log offers. All of it raises LogUnavailableError when the log does not answer."""

    @property
    def partitions(self) -> int: ...

    def append(self, payloads: Mapping[int, bytes], counts: Mapping[int, int]) -> dict[int, int]:
        """Append one entry to each named partition; returns their positions once they are on disk."""
        ...

    def read(self, after: Mapping[int, int], max_entries: int, wait_s: float = 0.0) -> list[LogEntry]:
        """Up to `max_entries` entries of each named partition with a position above the given one, in order.

        Waits up to `wait_s` for the first one where there is none.
        """
        ...

    def end(self) -> dict[int, int]:
        """Position of the last entry of each partition, 0 for an empty one."""
        ...

    def trimmed_below(self) -> dict[int, int]:
        """Highest position that has been trimmed away from each partition, 0 if none."""
        ...

    def appended_at(self, partition: int, position: int) -> int:
        """When the entry at a position was appended, Unix microseconds; 0 for position 0.

        For an entry that is no longer there a time not after its own.
        """
        ...

    def position_at(self, partition: int, ingested_at_us: int) -> int:
        """A position such that every entry appended at or after that time lies above it."""
        ...

    def trim(self, below: Mapping[int, int]) -> int:
        """Drop entries with a position <= the given one; returns how many, as far as the log tells."""
        ...

    def size_bytes(self) -> int:
        """What the log holds; 0 for one that keeps its own bounds."""
        ...

    def check_room(self) -> None:
        """Raises LogFullError at the byte bound."""
        ...
