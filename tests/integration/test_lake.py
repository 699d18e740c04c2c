"""The event lake: positions and rows change together, and two writers cannot double a row."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from headrace.events import EVENT_SCHEMA
from headrace.stores.lake import EventLake, LakeConflictError

NOON_US = 1_760_011_200_000_000


def events(*places: tuple[int, int]) -> pa.Table:
    rows: list[dict[str, Any]] = [
        {
            "event_id": f"{partition}-{position}",
            "type": "view",
            "user_key": "u",
            "item_id": "i",
            "timestamp": NOON_US,
            "received_at": NOON_US,
            "ingested_at": NOON_US,
            "log_partition": partition,
            "log_position": position,
            "log_index": 0,
        }
        for partition, position in places
    ]
    return pa.Table.from_pylist(rows, schema=EVENT_SCHEMA)


def ids(lake: EventLake) -> list[str]:
    return sorted(lake.scan(["event_id"]).collect()["event_id"])


def test_a_batch_that_overlaps_what_is_covered_adds_only_what_is_new(tmp_path: Path) -> None:
    lake = EventLake(tmp_path)
    assert lake.append(events((0, 1), (0, 2), (1, 7)), {0: 2, 1: 7}) == 3
    assert lake.append(events((0, 1), (0, 2), (0, 3), (1, 7)), {0: 3, 1: 7}) == 1
    assert lake.append(events((0, 2)), {0: 2}) == 0
    assert ids(lake) == ["0-1", "0-2", "0-3", "1-7"]
    assert lake.positions([0, 1, 2]) == {0: 3, 1: 7, 2: 0}


def test_an_event_beyond_the_positions_given_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"1 events have no log position, or one beyond \{0: 2\}"):
        EventLake(tmp_path).append(events((0, 2), (0, 3)), {0: 2})


def test_a_writer_that_was_overtaken_is_refused_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lake, slow = EventLake(tmp_path), EventLake(tmp_path)
    lake.append(events((0, 1)), {0: 1})
    seen = slow.table()
    lake.append(events((0, 2)), {0: 2})
    monkeypatch.setattr(slow, "table", lambda: seen)  # it read the positions before the other's commit
    with pytest.raises(LakeConflictError, match="somebody else"):
        slow.append(events((0, 2)), {0: 2})
    assert ids(lake) == ["0-1", "0-2"]


def test_rows_are_read_up_to_a_position_in_each_partition(tmp_path: Path) -> None:
    lake = EventLake(tmp_path)
    lake.append(events((0, 1), (0, 2), (1, 5), (-1, 1)), {0: 2, 1: 5, -1: 1})
    found = lake.scan(["event_id"], upto={0: 1, 1: 9}).collect()["event_id"]
    assert sorted(found) == ["0-1", "1-5"]


def test_compaction_changes_files_and_not_rows(tmp_path: Path) -> None:
    lake = EventLake(tmp_path)
    for position in range(1, 6):
        lake.append(events((0, position)), {0: position})
    lake.compact()
    assert len(ids(lake)) == 5
    table = lake.table()
    assert table is not None
    assert len(table.file_uris()) == 1


@pytest.mark.parametrize("folder", ["a shop", "100%", "größe"])
def test_a_lake_may_lie_in_any_folder(tmp_path: Path, folder: str) -> None:
    lake = EventLake(tmp_path / folder)
    for position in range(1, 4):
        lake.append(events((0, position)), {0: position})
    lake.compact()
    assert ids(lake) == ["0-1", "0-2", "0-3"]
    assert lake.scan(["event_id"], upto={0: 1}).collect()["event_id"].to_list() == ["0-1"]
    assert EventLake(tmp_path / folder).positions([0]) == {0: 3}
