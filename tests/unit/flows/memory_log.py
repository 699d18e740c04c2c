"""A log in memory, for readers of logs: entries of ids, one append time each."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from headrace.events import encode_records
from headrace.stores.log import LogEntry


def entry(partition: int, position: int, *ids: str) -> LogEntry:
    """Appended at the time that is its position."""
    return LogEntry(partition, position, position, encode_records([record(each) for each in ids]), len(ids))


def record(event_id: str, user: str = "u", item: str = "i", at: int = 1) -> dict[str, object]:
    return {
        "event_id": event_id,
        "type": "view",
        "user_key": user,
        "item_id": item,
        "timestamp": at,
        "received_at": at,
    }


@dataclass
class MemoryLog:
    """Only what reading takes."""

    entries: list[LogEntry] = field(default_factory=list)
    partitions: int = 2
    reads: int = 0

    def read(self, after: Mapping[int, int], max_entries: int, wait_s: float = 0.0) -> list[LogEntry]:
        self.reads += 1
        found: list[LogEntry] = []
        for partition, position in after.items():
            found += [e for e in self.entries if e.partition == partition and e.position > position][:max_entries]
        return found

    def end(self) -> dict[int, int]:
        return {
            p: max((e.position for e in self.entries if e.partition == p), default=0) for p in range(self.partitions)
        }

    def position_at(self, partition: int, ingested_at_us: int) -> int:
        return max(0, ingested_at_us - 1)
