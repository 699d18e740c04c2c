import gzip
from pathlib import Path

import pytest

from headrace.ingest.rees46 import Rees46
from headrace.ingest.source import BadRow, ItemRow, RawEvent, SourceError

HEADER = "event_time,event_type,product_id,category_id,category_code,brand,price,user_id,user_session\n"
CART = "2019-10-01 00:00:05 UTC,cart,11,2053,appliances.kettle,aqua,33.20,7,s-1\n"
VIEW = "2019-10-01 00:00:06 UTC,view,12,2054,,,,8,s-2\n"


def rows_of(path: Path) -> list[object]:
    return list(Rees46(path).read())


def test_a_row_becomes_an_event_and_says_what_the_item_is(tmp_path: Path) -> None:
    (tmp_path / "oct.csv").write_text(HEADER + CART)
    [row] = rows_of(tmp_path / "oct.csv")
    assert isinstance(row, RawEvent)
    assert row.raw == {
        "event_id": "rees46-" + row.raw["event_id"][-32:],  # type: ignore[index]
        "type": "add_to_cart",
        "user_id": "7",
        "session_id": "s-1",
        "item_id": "11",
        "timestamp": "2019-10-01T00:00:05Z",
        "price": 33.2,
    }
    assert row.origin == "oct.csv:2"
    assert row.item == ItemRow("11", 1_569_888_005_000_000, category="appliances.kettle", brand="aqua", price=33.2)


def test_a_row_without_category_code_is_of_its_category_id_and_empty_cells_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "oct.csv").write_text(HEADER + VIEW)
    [row] = rows_of(tmp_path / "oct.csv")
    assert isinstance(row, RawEvent)
    assert row.item == ItemRow("12", 1_569_888_006_000_000, category="2054")
    assert "price" not in row.raw  # type: ignore[operator]


def test_ids_depend_on_a_row_alone_and_not_on_file_line_or_packing(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(HEADER + CART + VIEW)
    with gzip.open(tmp_path / "b.csv.gz", "wt") as packed:
        packed.write(HEADER + VIEW + CART)
    first, second, third, fourth = (row.raw["event_id"] for row in rows_of(tmp_path))  # type: ignore[attr-defined]
    assert (first, second) == (fourth, third)
    assert first != second


def test_a_cut_line_is_refused_with_file_line_field_and_reason(tmp_path: Path) -> None:
    (tmp_path / "oct.csv").write_text(HEADER + CART + "2019-10-01 02:50:00 UTC,view,109,205,,elenberg,25.71,5204")
    _, bad = rows_of(tmp_path)
    raw = "2019-10-01 02:50:00 UTC,view,109,205,,elenberg,25.71,5204"
    assert bad == BadRow("oct.csv", 3, "user_session", "the line has 8 columns and not 9", raw)


@pytest.mark.parametrize(
    ("line", "field"),
    [
        ("yesterday,view,11,2053,,,1,7,s", "event_time"),
        ("2019-10-01 00:00:00,view,11,2053,,,1,7,s", "event_time"),
        ("2019-10-01 00:00:00 UTC,stare,11,2053,,,1,7,s", "event_type"),
        ("2019-10-01 00:00:00 UTC,view,11,2053,,,cheap,7,s", "price"),
    ],
)
def test_a_cell_that_cannot_be_read_is_refused_by_its_column(tmp_path: Path, line: str, field: str) -> None:
    (tmp_path / "oct.csv").write_text(HEADER + line + "\n" + VIEW)
    bad, good = rows_of(tmp_path)
    assert isinstance(bad, BadRow)
    assert (bad.line, bad.field, bad.raw) == (2, field, line)
    assert isinstance(good, RawEvent)


def test_another_header_is_refused(tmp_path: Path) -> None:
    (tmp_path / "oct.csv").write_text("a,b\n1,2\n")
    with pytest.raises(SourceError, match=r"oct\.csv begins with 'a,b', expected the header 'event_time"):
        rows_of(tmp_path)


@pytest.mark.data
def test_the_public_sample_has_one_bad_row_and_five_exact_duplicates(datasets: Path) -> None:
    rows = rows_of(datasets / "rees46")
    bad = [row for row in rows if isinstance(row, BadRow)]
    ids = [row.raw["event_id"] for row in rows if isinstance(row, RawEvent)]  # type: ignore[index]
    assert len(rows) == 17_435
    assert [(row.file, row.line, row.field) for row in bad] == [("2019-Oct.csv.gz", 17_436, "user_session")]
    assert (len(ids), len(set(ids))) == (17_434, 17_429)
