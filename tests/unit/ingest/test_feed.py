from collections.abc import Mapping

import polars as pl
import pytest

from headrace.decoding import decode_payload
from headrace.events import RECORD_SCHEMA
from headrace.identity import shard_of
from headrace.ingest.feed import ENTRY_EVENTS, Feeder, records_of
from headrace.stores.log import LogEntry, LogFullError


class ListLog:
    """A log in a list that counts its bytes."""

    partitions = 2

    def __init__(self) -> None:
        self.entries: list[tuple[int, bytes, int]] = []

    def append(self, payloads: Mapping[int, bytes], counts: Mapping[int, int]) -> dict[int, int]:
        self.entries += [(p, payload, counts[p]) for p, payload in payloads.items()]
        return dict.fromkeys(payloads, len(self.entries))

    def size_bytes(self) -> int:
        return sum(len(payload) for _, payload, _ in self.entries)

    def read(self, after: Mapping[int, int], max_entries: int) -> list[LogEntry]:
        return []

    def end(self) -> dict[int, int]:
        return {}

    def trimmed_below(self) -> dict[int, int]:
        return {}

    def position_at(self, ingested_at_us: int) -> int:
        return 0

    def trim(self, below: Mapping[int, int]) -> int:
        return 0


def events(count: int, users: int = 7) -> pl.DataFrame:
    rows = [
        {
            "event_id": f"e{n:06d}",
            "type": "view",
            "user_key": f"u{n % users}",
            "item_id": "i",
            "timestamp": n,
            "received_at": n,
        }
        for n in range(count)
    ]
    columns = {field.name: [row.get(field.name) for row in rows] for field in RECORD_SCHEMA}
    frame = pl.DataFrame(columns, schema_overrides={"timestamp": pl.Int64, "received_at": pl.Int64})
    times = [field.name for field in RECORD_SCHEMA if str(field.type).startswith("timestamp")]
    return frame.with_columns(pl.col(times).cast(pl.Int64).cast(pl.Datetime("us", "UTC")))


def test_each_partition_gets_its_users_events_in_order_in_entries_of_bounded_size() -> None:
    log = ListLog()
    Feeder(log, max_bytes=10**9).append(events(2_500))
    assert max(count for _, _, count in log.entries) <= ENTRY_EVENTS
    seen = 0
    for partition in range(2):
        tables = [decode_payload(payload)[0] for p, payload, _ in log.entries if p == partition]
        ids = [event_id for table in tables for event_id in table["event_id"].to_pylist()]
        users = {user for table in tables for user in table["user_key"].to_pylist()}
        assert ids == sorted(ids)
        assert all(shard_of(user, 2) == partition for user in users)
        seen += len(ids)
    assert seen == 2_500


def test_records_hold_microseconds_and_no_nulls() -> None:
    [record] = records_of(events(1))
    assert record == {
        "event_id": "e000000",
        "type": "view",
        "user_key": "u0",
        "item_id": "i",
        "timestamp": 0,
        "received_at": 0,
    }


def test_the_feeder_waits_for_room_and_then_says_what_to_do() -> None:
    log, naps = ListLog(), []
    feeder = Feeder(log, max_bytes=1_000, patience_s=1.0, sleep=naps.append)
    with pytest.raises(LogFullError, match="HEADRACE_LOG_MAX_BYTES"):
        feeder.append(events(100))
    assert sum(naps) == pytest.approx(1.0)
    assert log.entries == []


def test_the_feeder_goes_on_when_room_is_made() -> None:
    log = ListLog()
    log.entries.append((0, b"x" * 30_000, 1))
    feeder = Feeder(log, max_bytes=35_000, sleep=lambda _: log.entries.clear())
    feeder.append(events(100))
    assert sum(count for _, _, count in log.entries) == 100
