from pathlib import Path

import polars as pl

from headrace import names
from headrace.ingest.plain_rows import add_rows, copy_tables, item_table, stored_rows
from headrace.ingest.source import ItemRow
from headrace.item_operations import status
from headrace.stores.item_rows import as_table, row_of
from headrace.stores.lake import append_rows
from headrace.stores.plain_rows import PlainLayout

CHEAP = ItemRow("a", 10, category="x", price=1.0)
DEAR = ItemRow("a", 20, category="x", price=2.0)


def add(lake: Path, *rows: ItemRow, shift_us: int = 0) -> int:
    return add_rows(lake, names.ITEMS_TABLE, item_table(rows, shift_us))


def held(lake: Path) -> list[tuple[str, int, float | None]]:
    rows = pl.DataFrame(stored_rows(lake, names.ITEMS_TABLE)).sort("item_id", "event_timestamp")
    return rows.select("item_id", pl.col("event_timestamp").dt.epoch("us"), "price").rows()


def test_a_row_that_changes_nothing_is_left_out(tmp_path: Path) -> None:
    assert add(tmp_path, CHEAP, CHEAP._replace(event_timestamp_us=15), DEAR) == 2
    assert held(tmp_path) == [("a", 10, 1.0), ("a", 20, 2.0)]


def test_rows_are_ordered_by_time_before_they_are_compared(tmp_path: Path) -> None:
    assert add(tmp_path, DEAR, CHEAP, CHEAP._replace(event_timestamp_us=30)) == 3
    assert held(tmp_path) == [("a", 10, 1.0), ("a", 20, 2.0), ("a", 30, 1.0)]


def test_of_rows_with_one_key_and_time_the_last_counts(tmp_path: Path) -> None:
    assert add(tmp_path, CHEAP, CHEAP._replace(price=9.0)) == 1
    assert held(tmp_path) == [("a", 10, 9.0)]


def test_adding_the_same_rows_again_adds_nothing_also_when_they_are_shifted_a_little(tmp_path: Path) -> None:
    assert add(tmp_path, CHEAP, DEAR) == 2
    assert add(tmp_path, CHEAP, DEAR) == 0
    assert add(tmp_path, CHEAP, DEAR, shift_us=5) == 0


def test_a_row_between_two_that_are_held_is_added_with_what_it_makes_new_after_it(tmp_path: Path) -> None:
    add(tmp_path, CHEAP)
    back = CHEAP._replace(event_timestamp_us=30)
    assert add(tmp_path, CHEAP, DEAR, back) == 2
    assert held(tmp_path) == [("a", 10, 1.0), ("a", 20, 2.0), ("a", 30, 1.0)]


def test_nulls_are_values_like_others(tmp_path: Path) -> None:
    assert add(tmp_path, ItemRow("a", 10), ItemRow("a", 20), ItemRow("b", 10)) == 2
    assert add(tmp_path, ItemRow("a", 10), ItemRow("b", 10)) == 0


def test_the_table_is_made_even_without_rows_and_created_is_the_time_of_the_row(tmp_path: Path) -> None:
    assert add(tmp_path) == 0
    assert held(tmp_path) == []
    add(tmp_path, CHEAP, shift_us=7)
    table = stored_rows(tmp_path, names.ITEMS_TABLE)
    assert table["created"].to_pylist() == table["event_timestamp"].to_pylist()
    assert held(tmp_path) == [("a", 17, 1.0)]


def test_tables_are_copied_as_they_are_once_with_what_was_said_again_and_columns_of_their_own(tmp_path: Path) -> None:
    """An item that is said to be there, then not, then there again, is there: what repeats an earlier row says something."""
    origin, target = tmp_path / "origin", tmp_path / "target"
    back = CHEAP._replace(event_timestamp_us=30)
    append_rows(origin, names.ITEMS_TABLE, item_table([CHEAP, back]).append_column("size", [[38, 40]]))
    views = {names.ITEM_STATUS: PlainLayout(names.ITEM_STATUS, (("available", "BOOL"), ("deleted", "BOOL")))}
    gone = [row_of(status("a", at, available=False), at, views) for at in (20, 40)]
    append_rows(origin, names.ITEM_TABLES[names.ITEM_STATUS], as_table(gone))
    add(target, CHEAP)
    for _ in range(2):
        copy_tables(origin, target)
        assert held(target) == [("a", 10, 1.0), ("a", 30, 1.0)]
        copied = pl.read_delta(str(target / names.ITEMS_TABLE)).sort("event_timestamp")
        assert copied["size"].to_list() == [None, 40]
        assert pl.read_delta(str(target / names.ITEM_STATUS))["available"].to_list() == [False, False]


def test_lists_are_kept_and_a_row_that_says_the_same_list_adds_nothing(tmp_path: Path) -> None:
    row = ItemRow("a", 1_000_000, attributes=("red", "round"))
    assert add(tmp_path, row, row._replace(event_timestamp_us=2_000_000)) == 1
    turned = row._replace(event_timestamp_us=3_000_000, attributes=("round", "red"))
    assert add(tmp_path, row, turned, turned._replace(event_timestamp_us=4_000_000)) == 1
    stored = stored_rows(tmp_path, names.ITEMS_TABLE)
    assert stored is not None
    assert sorted(stored["attributes"].to_pylist()) == [["red", "round"], ["round", "red"]]
