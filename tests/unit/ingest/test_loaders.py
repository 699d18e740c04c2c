"""The smaller formats, and what all of them share."""

import gzip
from pathlib import Path

import pytest

from headrace.ingest.formats import open_source
from headrace.ingest.jsonl import JsonLines
from headrace.ingest.retailrocket import RetailRocket
from headrace.ingest.source import BadRow, ItemRow, RawEvent, SourceError, delimited_rows
from headrace.ingest.taobao import Taobao


def test_json_lines_are_passed_on_as_they_are_and_a_line_that_is_no_json_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"event_id":"1"}\n\n{"event_id":\n')
    good, bad = JsonLines(tmp_path).read()
    assert good == RawEvent({"event_id": "1"}, "a.jsonl:1")
    assert isinstance(bad, BadRow)
    assert (bad.origin, bad.field, bad.raw) == ("a.jsonl:3", "event", '{"event_id":')


def test_files_of_a_folder_are_read_by_name_packed_or_not(tmp_path: Path) -> None:
    (tmp_path / "b.jsonl").write_text('{"n":2}\n')
    with gzip.open(tmp_path / "a.jsonl.gz", "wt") as packed:
        packed.write('{"n":1}\n')
    (tmp_path / "notes.txt").write_text("not read")
    assert [row.raw for row in JsonLines(tmp_path).read() if isinstance(row, RawEvent)] == [{"n": 1}, {"n": 2}]


def test_retailrocket_rows_are_typed_and_times_are_milliseconds(tmp_path: Path) -> None:
    (tmp_path / "events.csv").write_text(
        "timestamp,visitorid,event,itemid,transactionid\n1433221332117,25,view,355,\n1433221332118,25,transaction,355,40\n"
    )
    view, purchase = RetailRocket(tmp_path).read()
    assert isinstance(view, RawEvent)
    assert isinstance(purchase, RawEvent)
    assert view.item == ItemRow("355", 1_433_221_332_117_000)
    assert view.raw["timestamp"] == "2015-06-02T05:02:12.117000Z"  # type: ignore[index]
    assert purchase.raw["type"] == "purchase"  # type: ignore[index]
    assert purchase.raw["properties"] == {"transaction_id": "40"}  # type: ignore[index]


def test_taobao_rows_are_typed_and_have_no_header(tmp_path: Path) -> None:
    (tmp_path / "UserBehavior.csv").write_text(
        "1,2268318,2520377,pv,1511544070\n1,2268318,2520377,fav,1511544071\n1,2,3,x,4\n"
    )
    view, like, bad = Taobao(tmp_path).read()
    assert isinstance(view, RawEvent)
    assert isinstance(like, RawEvent)
    assert view.item == ItemRow("2268318", 1_511_544_070_000_000, category="2520377")
    assert (view.raw["type"], like.raw["type"]) == ("view", "like")  # type: ignore[index]
    assert isinstance(bad, BadRow)
    assert (bad.line, bad.field) == (3, "behavior_type")


def test_a_stray_quote_spoils_its_own_line_alone() -> None:
    rows = list(delimited_rows(['a,"b\n', 'c,"d,e"\n', "f,g\n"], "x.csv", ["one", "two"]))
    assert isinstance(rows[0], BadRow)
    assert rows[1:] == [(2, ["c", "d,e"]), (3, ["f", "g"])]


def test_a_gzip_file_that_ends_early_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b'{"n":1}\n' * 10_000)[:-20])
    with pytest.raises(SourceError, match=r"a\.jsonl\.gz is no complete gzip file"):
        list(JsonLines(tmp_path).read())


def test_a_path_or_a_format_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="nowhere does not exist"):
        open_source("jsonl", tmp_path / "nowhere")
    with pytest.raises(
        ValueError, match="no loader is called 'excel': choose one of simulator, rees46, movielens, jsonl"
    ):
        open_source("excel", tmp_path)
    with pytest.raises(ValueError, match="rees46 needs a file or a folder"):
        open_source("rees46")
