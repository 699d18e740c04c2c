"""Sequences get a clock that a split by time cuts into the usual leave-one-out."""

import json
from pathlib import Path

import pytest

from headrace.clock import to_micros
from headrace.events import EventIn
from headrace.ingest.formats import open_source
from headrace.ingest.sequences import END_US, Sequences
from headrace.ingest.source import BadRow, ItemRow, RawEvent, SourceError

DAY_US = 86_400_000_000


def write(folder: Path, text: str, attributes: object = None) -> Path:
    (folder / "Shop.txt").write_text(text)
    if attributes is not None:
        (folder / "Shop_item2attributes.json").write_text(json.dumps(attributes))
    return folder


def events(folder: Path) -> list[tuple[str, str, int]]:
    rows = [EventIn.model_validate(row.raw) for row in Sequences(folder).read() if isinstance(row, RawEvent)]
    return [(row.user_id or "", row.item_id or "", to_micros(row.timestamp)) for row in rows]


def test_everybodys_last_interaction_is_in_the_last_day_and_the_one_before_in_the_day_before(tmp_path: Path) -> None:
    found = events(write(tmp_path, "1 a b c\n2 c\n"))
    assert [(user, item, (END_US - 1 - at_us) // DAY_US) for user, item, at_us in found] == [
        ("1", "a", 2),
        ("1", "b", 1),
        ("1", "c", 0),
        ("2", "c", 0),
    ]


def test_items_with_their_attributes_are_there_before_anything_happens(tmp_path: Path) -> None:
    rows = list(Sequences(write(tmp_path, "1 a b\n", {"a": [3, 1], "x": [1], "b": []})).read())
    first_us = END_US - 2 * DAY_US
    assert [row for row in rows if isinstance(row, ItemRow)] == [
        ItemRow("a", first_us, attributes=("3", "1")),
        ItemRow("b", first_us),
        ItemRow("x", first_us, attributes=("1",)),
    ]
    assert all(at_us >= first_us for _, _, at_us in events(tmp_path))


def test_the_same_file_gives_the_same_ids_also_where_a_user_meets_an_item_twice(tmp_path: Path) -> None:
    folder = write(tmp_path, "1 a a\n")
    ids = [[row.raw["event_id"] for row in Sequences(folder).read() if isinstance(row, RawEvent)] for _ in range(2)]  # type: ignore[index]
    assert ids[0] == ids[1]
    assert len(set(ids[0])) == 2


def test_a_line_without_items_is_a_bad_row_and_an_empty_one_is_none(tmp_path: Path) -> None:
    bad = [row for row in Sequences(write(tmp_path, "1\n\n2 a\n")).read() if isinstance(row, BadRow)]
    assert [(row.line, row.field) for row in bad] == [(1, "item_id")]


def test_attributes_that_are_no_lists_are_refused_by_the_name_of_the_file(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"Shop_item2attributes\.json is no JSON object of lists"):
        list(Sequences(write(tmp_path, "1 a\n", [1, 2])).read())


def test_it_is_a_format_that_ingest_knows(tmp_path: Path) -> None:
    assert isinstance(open_source("sequences", tmp_path), Sequences)
