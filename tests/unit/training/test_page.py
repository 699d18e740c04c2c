from dataclasses import replace
from pathlib import Path

from tests.unit.training.report_of import report
from training.figures import draw
from training.fit import Epoch
from training.intervals import Estimate
from training.measures import RANKED
from training.page import page, price, write_page
from training.staleness import StalePoint


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


def test_the_page_of_a_training_shows_how_it_learnt() -> None:
    towers = [Epoch(0, float("nan"), 0.1, 0, 0, 0), Epoch(1, 2.0, 0.2, 1, 9, 0)]
    text = page(report(), {}, draw(report(), {"towers": towers, "ranker": []}))
    assert text.count("<svg") == 8
    assert "towers: loss" in text
    assert "ranker: loss" not in text
    assert "<h2>Learning" not in page(report(), {})


def test_a_page_is_written_into_a_folder_that_is_made(tmp_path: Path) -> None:
    write_page(tmp_path / "reports" / "3.html", report(), {})
    assert (tmp_path / "reports" / "3.html").read_text().endswith("</html>\n")


def test_the_price_of_age_is_said_as_a_share_where_it_is_clear() -> None:
    hour = StalePoint("1h", 3_600_000_000, {}, {RANKED: Estimate(-0.05, -0.08, -0.02)})
    assert (
        price(hour, Estimate(0.2))
        == "Features 1h old change NDCG@10 of towers + ranker by -25%: -0.0500 [-0.0800, -0.0200]"
    )
    minute = StalePoint("1m", 60_000_000, {}, {RANKED: Estimate(-0.05, -0.08, 0.02)})
    assert price(minute, Estimate(0.2)).startswith("Features 1m old make no clear difference")
