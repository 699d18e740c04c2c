import json
from io import StringIO

from rich.console import Console

from headrace.ops.versions import MEASURED
from tests.unit.training.report_of import report
from training.intervals import Estimate
from training.report import title, verdict


def test_every_number_has_a_name_of_its_own() -> None:
    flat = report().flat()
    assert flat[MEASURED] == 0.5
    assert flat["two_towers_ndcg_at_10"] == flat["all_requests_two_towers_ndcg_at_10"] == 0.25
    assert (flat["gain_over_two_towers"], flat["gain_over_most_popular"]) == (0.25, -0.25)
    assert (flat["ranker_auc_click"], flat["ranker_calibration_error_click"]) == (0.75, 0.125)
    assert (flat["requests"], flat["users"]) == (2, 2)


def test_json_holds_all_but_the_details_of_the_plots() -> None:
    told = json.loads(json.dumps(report().to_json()))
    assert "detail" not in told
    assert told["methods"]["two towers"]["mrr"] == {"value": 0.25, "low": 0.125, "high": 0.375}
    assert told["outcomes"]["click"]["bins"][0] == {"predicted": 0.25, "observed": 0.5, "rows": 2}
    assert told["staleness"][1]["loss"]["two towers"] == {"value": -0.1, "low": None, "high": None}
    assert told["knobs"] == {"half_life_share": 1 / 16, "neighbours": 100, "validated": True}


def test_a_report_shows_its_tables_and_its_notes() -> None:
    written = StringIO()
    report().show(Console(file=written, width=80))
    text = written.getvalue()
    assert "…" not in text
    for said in (
        "0.5000 [0.2500, 0.7500]",
        "Without the ranker: 3 requests of 2 users",
        "user: new",
        "click over 4 impressions: AUC 0.7500 [0.5000, 1.0000]",
        "1h old",
        "note: 2 < 3 & so on",
    ):
        assert said in text


def test_metrics_are_titled_as_they_are_written() -> None:
    assert [title(name) for name in ("ndcg_at_10", "mrr", "hit_rate_at_20", "recall_at_100")] == [
        "NDCG@10", "MRR", "hit rate@20", "recall@100",
    ]  # fmt: skip


def test_better_and_worse_are_said_only_where_zero_is_outside_of_the_interval() -> None:
    better, worse, open_ = Estimate(0.1, 0.05, 0.15), Estimate(-0.1, -0.15, -0.05), Estimate(0.1, -0.05, 0.15)
    assert verdict("item-kNN", better) == "towers + ranker is better than item-kNN in NDCG@10: 0.1000 [0.0500, 0.1500]"
    assert verdict("item-kNN", worse).startswith("towers + ranker is worse than item-kNN")
    assert verdict("item-kNN", open_).startswith("towers + ranker and item-kNN: no clear difference")


def test_a_ranker_that_keeps_the_order_of_retrieval_is_said_to() -> None:
    nothing = Estimate(0.0, 0.0, 0.0)
    assert verdict("two towers", nothing) == (
        "towers + ranker keeps the order of the two towers: on the held-out lists the ranker found nothing that retrieval does not know"
    )
    assert verdict("champion", nothing).startswith("towers + ranker and champion: no clear difference")
    assert verdict("two towers", Estimate(0.0)).startswith("towers + ranker and two towers: no clear difference")
