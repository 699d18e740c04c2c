"""The recommend benchmark's figures, by hand arithmetic; and that its report is what it promises."""

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import recommend, report
from benchmarks.asking import Asked, Phase
from benchmarks.recommend import Million, Ours
from benchmarks.recommend_freshness import Freshness, SeenProbe
from benchmarks.recommend_side import Closed, Explained, Overload, Side, p99_by_second


def asked(phase: Phase, took_s: list[float], status: list[int] | None = None, lacking: int = 0) -> Asked:
    """Requests at equal distances over the phase."""
    due_s = np.arange(len(took_s)) * phase.seconds / len(took_s)
    statuses = np.array(status or [200] * len(took_s))
    incomplete = {"ranker: deadline": lacking} if lacking else {}
    return Asked(phase, due_s, due_s + np.array(took_s), statuses, np.zeros(len(took_s)), incomplete)


def calm(count: int, took_s: float = 0.01) -> Asked:
    return asked(Phase("round", 2.0, connections=1), [took_s] * count)


def overloaded() -> Overload:
    before = asked(Phase("before", 2.0, rate=2), [0.010, 0.010, 0.020, 0.010])
    during = asked(Phase("during", 2.0, rate=4), [0.05, 0.05, 0.2, 0.01, 0.09, 0.01, 0.05, 0.05], [200] * 6 + [429, 0])
    after = asked(Phase("after", 3.0, rate=1), [0.5, 0.01, 0.01], [200, 503, 200])
    return Overload(before, during, after, rate=2.0, deadline_s=0.1, survived=True)


def test_the_round_with_the_median_rate_speaks_for_a_closed_loop() -> None:
    closed = Closed([calm(30), calm(10), calm(20)])
    assert closed.middle.rate == 10.0
    assert closed.details()["rate"] == 10.0
    assert [each["rate"] for each in closed.details()["rounds"]] == [15.0, 5.0, 10.0]


def test_the_worst_round_tells_how_many_answers_had_less() -> None:
    phase = Phase("round", 1.0, connections=1)
    closed = Closed([asked(phase, [0.1] * 4), asked(phase, [0.1] * 4, lacking=1), asked(phase, [0.1] * 4)])
    assert closed.degraded == 0.25


def test_answers_in_time_are_a_share_of_what_the_stack_can_do() -> None:
    """Of eight, five are 200 within 100 ms, in two seconds, of 2 a second."""
    assert overloaded().answered_in_time == pytest.approx(5 / 2 / 2)


def test_normal_is_back_with_the_first_second_as_fast_as_those_before() -> None:
    found = overloaded()
    assert p99_by_second(found.before) == pytest.approx([0.010, 0.010])  # the lower of two is the 99th of a hundred
    assert found.normal_s == pytest.approx(0.015)
    assert p99_by_second(found.after)[1] == np.inf
    assert found.recovered_s == 2
    assert found.details()["p99_ms_after_by_second"] == [500.0, None, 10.0]


def test_the_report_ends_with_the_keys_that_it_promises(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    monkeypatch.setattr("sys.argv", ["recommend"])
    ours, noop, stock = (
        Side(Closed([calm(20, took_s)] * 3), Closed([calm(count, took_s)] * 3))
        for took_s, count in ((0.004, 40), (0.001, 80), (0.02, 8))
    )
    counts = {"hydrate": 9.0, "rank": 200.0}
    explained = Explained({"hydrate": [0.001], "rank": [0.002]}, [0.0035], [0.004], counts, ["i"], "v1")
    fresh = Freshness([SeenProbe(0.03, 4, 0, 0), SeenProbe(0.05, 6, 1, 0)], {"rate": 100.0}, calm(10))
    measured = Ours(ours, calm(20, 0.005), explained, fresh, overloaded(), {"recommender": 2.5}, 900.0, 0.97, {}, {})
    grown = Million(1_000_000, Closed([calm(20, 0.005)] * 3), explained, 3_000.0, {})
    shop = {"items": 100_000}
    recommend.report(noop, stock, None, measured, grown, shop)
    said = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert {name: said[name] for name in list(said)[:11]} == {
        "p50_ms": 4.0,
        "p99_ms": 4.0,
        "rps_16": 20.0,
        "stock_p50_ms": 20.0,
        "stock_rps_16": 4.0,
        "noop_p50_ms": 1.0,
        "ratio_rps": 5.0,
        "ratio_noop": 4.0,
        "p50_ms_1m": 5.0,
        "index_recall": 0.97,
        "rss_mb": 900.0,
    }
    assert said["degraded"] == {"1": 0.0, "16": 0.0, "half": 0.0}
    assert (said["fresh_p50_ms"], said["fresh"]["unseen"], said["fresh"]["failures"]) == (40.0, 0, 1)
    assert json.loads((tmp_path / "recommend.json").read_text())["benchmark"] == "recommend"
    assert (tmp_path / "recommend.png").stat().st_size > 10_000
