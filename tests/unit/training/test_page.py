from dataclasses import replace
from pathlib import Path

from tests.unit.training.report_of import report
from training.intervals import Estimate
from training.page import page, verdict, write_page


def test_a_page_holds_every_part_and_escapes_what_it_is_given() -> None:
    text = page(report(), {"version": "3 <b>", "command": "headrace evaluate"})
    assert text.startswith("<!DOCTYPE html>")
    assert "Evaluation of version 3 &lt;b&gt;" in text
    assert "2 &lt; 3 &amp; so on" in text
    assert "<shoes>" not in text
    assert text.count("<svg") == 7
    assert '<tr class="main"><td>towers + ranker</td>' in text
    assert "<small>[0.2500, 0.7500]</small>" in text


def test_parts_of_which_there_is_nothing_are_left_out() -> None:
    bare = replace(report(), outcomes={}, staleness=(), segments=(), notes=())
    bare = replace(bare, retrieval=replace(bare.retrieval, requests=bare.requests))
    text = page(bare, {})
    for heading in ("What real time is worth", "Outcomes", "Without the ranker", "Segments"):
        assert f"<h2>{heading}" not in text
    assert "<h1>Evaluation</h1>" in text


def test_better_and_worse_are_said_only_where_zero_is_outside_of_the_interval() -> None:
    assert (
        verdict("item-kNN", Estimate(0.1, 0.05, 0.15))
        == "towers + ranker is better than item-kNN: 0.1000 [0.0500, 0.1500]"
    )
    assert verdict("item-kNN", Estimate(-0.1, -0.15, -0.05)).startswith("towers + ranker is worse than item-kNN")
    assert verdict("item-kNN", Estimate(0.1, -0.05, 0.15)).startswith(
        "towers + ranker and item-kNN: no clear difference"
    )


def test_a_page_is_written_into_a_folder_that_is_made(tmp_path: Path) -> None:
    write_page(tmp_path / "reports" / "3.html", report(), {})
    assert (tmp_path / "reports" / "3.html").read_text().endswith("</html>\n")
