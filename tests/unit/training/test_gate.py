"""Each check of the gate by itself, with what it measured given by hand."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from headrace.ops.verify import Mismatch, VerifyReport
from headrace.settings import Settings
from tests.unit.models import tiny_shop
from tests.unit.training.test_champion import fitting, rewritten, serve
from training.config import default, small
from training.gate import (
    DEFINITIONS,
    FEATURES,
    FILES,
    Verdict,
    as_table,
    check_quality,
    check_served_features,
    failed,
    gate,
    judge_latency,
    judge_quality,
    judge_scores,
    judge_served_features,
)
from training.gate_measures import Comparison, Differences, Stopwatch, differences, judged_by, shelf_of, time_models
from training.intervals import Estimate
from training.made_up import NOBODY_KNOWS, made_up


def compared(value: float, low: float | None, high: float | None) -> Comparison:
    return Comparison("7", 0.2 + value, 0.2, Estimate(value, low, high), requests=400, users=90)


@pytest.mark.parametrize(
    ("gain", "passed"),
    [
        ((0.01, 0.005, 0.02), True),
        ((-0.01, -0.03, 0.0), True),
        ((-0.01, -0.03, -0.0001), False),
        ((-0.5, None, None), False),
        ((0.5, None, None), False),
        ((float("nan"), float("nan"), float("nan")), False),
    ],
)
def test_worse_is_only_what_is_worse_beyond_the_interval(
    gain: tuple[float, float | None, float | None], passed: bool
) -> None:
    """The last ones are of one user alone, who says nothing of others, and of no number."""
    assert judge_quality(compared(*gain)).passed is passed


def test_a_refusal_says_what_was_measured_on_what() -> None:
    verdict = judge_quality(compared(-0.05, -0.06, -0.04))
    assert verdict.measured == (
        "NDCG@10 0.1500, champion version 7 0.2000: -0.0500 [-0.0600, -0.0400] on 400 requests of 90 users"
    )
    assert "--force" in verdict.remedy
    assert "+0.0000 [0.0000, 0.0000], every request alike on 400" in judge_quality(compared(0.0, 0.0, 0.0)).measured
    seen = judge_quality(replace(compared(0.05, 0.04, 0.06), note="the champion has seen part of the test"))
    assert seen.measured.endswith(
        "+0.0500 [0.0400, 0.0600] on 400 requests of 90 users; the champion has seen part of the test"
    )


def test_of_too_few_users_nothing_is_passed_and_the_remedy_is_more_of_them() -> None:
    verdict = judge_quality(replace(compared(-0.1, None, None), requests=40, users=1))
    assert verdict.measured == (
        "NDCG@10 0.1000, champion version 7 0.2000: -0.1000 on 40 requests of 1 users: that takes 50 requests of 10 users at least"
    )
    assert verdict.remedy == (
        "let more users do more since its cut or train with a larger test_share, or promote it unseen with --force"
    )
    assert not judge_quality(replace(compared(-0.1, -0.2, 0.0), users=9)).passed
    assert judge_quality(replace(compared(-0.1, -0.2, 0.0), users=10)).passed
    assert not judge_quality(replace(compared(-0.1, -0.2, 0.0), users=40, requests=49)).passed
    assert judge_quality(replace(compared(-0.1, -0.2, 0.0), users=40, requests=50)).passed


def test_a_version_does_not_choose_how_it_is_judged() -> None:
    lenient = small().changed(max_test=1, max_ranked_requests=1, seed=5, resamples=0, candidates=2, width=64)
    judged, own = judged_by(lenient, {}), default()
    for name in ("max_test", "max_ranked_requests", "seed", "resamples", "candidates"):
        assert getattr(judged, name) == getattr(own, name)
    assert judged.width == 64


def test_what_counts_as_turning_to_an_item_is_the_champions_word() -> None:
    lenient = small().changed(outcome_hours=0.01, min_rating=0.0)
    judged = judged_by(lenient, {"outcome_hours": 48.0, "min_rating": 7.0, "of another version of the code": 1})
    assert (judged.outcome_hours, judged.min_rating) == (48.0, 7.0)
    of_none = judged_by(lenient, {})
    assert (of_none.outcome_hours, of_none.min_rating) == (default().outcome_hours, default().min_rating)


def test_without_a_champion_there_is_none_to_be_worse_than(settings: Settings) -> None:
    verdict = check_quality(tiny_shop.bundle(), "1", settings)
    assert (verdict.passed, verdict.measured) == (True, "no champion to compare with: no version is in service")


def test_a_champion_that_cannot_be_read_is_not_taken_for_one_that_is_worse(settings: Settings) -> None:
    """It may be better, so it takes whoever puts its files back, or says --force."""
    champion, candidate = fitting(settings, "user_activity"), tiny_shop.bundle("second")
    folder = serve(settings, champion)
    whole = (folder / "bundle.json").read_text()
    rewritten(folder, model={**champion.manifest.model.to_json(), "towers": "not_here:Own"})
    elsewhere = check_quality(candidate, "8", settings)
    assert not elsewhere.passed
    assert "no towers 'not_here:Own'" in elsewhere.measured
    assert elsewhere.remedy.startswith("run this where Python finds that module")

    (folder / "bundle.json").write_text(whole)
    (folder / "weights.pt").write_bytes(b"")
    damaged = check_quality(candidate, "8", settings)
    assert not damaged.passed
    assert damaged.measured.startswith("no champion to compare with: version 7, which is in service, cannot be asked")
    assert damaged.remedy.startswith("put its files back, or `headrace rollback`")


def test_of_a_champion_that_no_replica_would_take_any_more_nothing_is_lost(settings: Settings) -> None:
    champion, candidate = fitting(settings, "user_activity"), tiny_shop.bundle("second")
    old = replace(champion, manifest=replace(champion.manifest, fingerprints={"user_activity": 12}))
    folder = serve(settings, old)
    other = check_quality(candidate, "8", settings)
    assert (other.passed, other.remedy) == (True, "")
    assert "another definition of view user_activity" in other.measured
    rewritten(folder, format=1)
    older = check_quality(candidate, "8", settings)
    assert (older.passed, older.remedy) == (True, "")
    assert "has format 1" in older.measured


def test_without_registered_features_no_definition_is_said_to_fit(settings: Settings, tmp_path: Path) -> None:
    tiny_shop.bundle().save(tmp_path / "first")
    whole, definitions = gate("1", tmp_path / "first", settings)
    assert (whole.check, whole.passed) == (FILES, True)
    assert (definitions.check, definitions.passed, definitions.remedy) == (DEFINITIONS, False, "run `headrace apply`")
    assert "no features are registered in" in definitions.measured


def test_without_a_store_there_is_nothing_served_to_compare(settings: Settings) -> None:
    verdict = check_served_features(settings, lambda: 1)
    assert (verdict.passed, verdict.measured) == (True, "not checked: no store runs")


def test_one_mismatch_and_a_feature_that_waits_for_a_backfill_are_refused() -> None:
    report = VerifyReport(entities={"user_activity": 3}, compared=60)
    assert judge_served_features(report) == Verdict(
        FEATURES, True, "60 values of 3 entities, 0 mismatches",
        "no mismatch between online store and lake, nothing waiting for a backfill",
    )  # fmt: skip
    waiting = judge_served_features(replace(report, waiting_for_backfill=["user_activity.spent_1h"]))
    assert (waiting.passed, waiting.remedy) == (False, "run `headrace backfill`")
    report.add(Mismatch("user_activity", "u-1", "views_1h", 2, 3))
    assert judge_served_features(report).measured == (
        "60 values of 3 entities, 1 mismatches, the first: user_activity.views_1h of u-1: the store has 2, the lake gives 3"
    )


@pytest.mark.parametrize(("off", "passed"), [(1e-4, True), (1.1e-4, False), (float("nan"), False)])
def test_served_scores_may_be_off_by_a_ten_thousandth(off: float, passed: bool) -> None:
    assert judge_scores(Differences(off, 0.0, 0.0, 32, 200)).passed is passed
    assert judge_scores(Differences(0.0, off, 0.0, 32, 200)).passed is passed
    assert judge_scores(Differences(0.0, 0.0, off, 32, 200)).passed is passed


def test_the_slowest_requests_are_held_to_the_budget() -> None:
    watch = Stopwatch(24.0, 2.0, 200)
    assert judge_latency(watch, 25.0).passed
    refused = judge_latency(watch, 20.0)
    assert refused.measured == "p99 24.00 ms, p50 2.00 ms of the processor: one user, retrieval and 200 ranked"
    assert not refused.passed
    assert "HEADRACE_MODEL_SHARE" in refused.remedy


def whole() -> tiny_shop.Bundle:
    """The tiny shop's bundle with the vectors that its item tower gives."""
    bundle = tiny_shop.bundle()
    with torch.inference_mode():
        inputs = bundle.preprocessing.items(bundle.snapshot.features, with_activity=False)
        vectors = bundle.towers.items(inputs).numpy()
    return replace(bundle, items=replace(bundle.items, vectors_ND=vectors))


def test_the_fused_path_gives_what_the_modules_give_and_other_weights_are_found() -> None:
    bundle = whole()
    shelf = shelf_of(bundle)
    found = differences(bundle, shelf)
    assert max(found.scores, found.users, found.items) < 1e-5
    assert (found.requests, found.candidates) == (32, 4)
    with torch.no_grad():
        bundle.ranker.out_crossed.bias.add_(0.1)
    assert differences(bundle, shelf).scores > 1e-3
    with torch.no_grad():
        bundle.towers.out.bias.add_(0.1)
    assert differences(bundle, shelf).users > 1e-3


def test_requests_that_are_made_up_hold_what_real_ones_hold_and_what_they_seldom_do() -> None:
    bundle = whole()
    requests = made_up(bundle, 40, 3)
    assert requests[0].user == {}
    assert [len(each.rows_N) for each in requests] == [3] * 40
    assert {len(each.user["user_activity__recent_items"]) for each in requests[1:]} == {1, 2, 3, 4, 5}
    items = {item for each in requests[1:] for item in each.user["user_activity__recent_items"]}
    assert items == {"a", "b", "c", "d", NOBODY_KNOWS}
    assert {each.user["user_profile__country"] for each in requests[1:]} == {"DE", "FR", None, NOBODY_KNOWS}
    views = np.array([each.user["user_activity__views_10m"] for each in requests[1:]])
    assert np.isnan(views).any()
    assert (views[~np.isnan(views)] >= 0).all()
    for each in requests[1:]:
        times = each.user["user_activity__recent_times"]
        assert times == sorted(times)
        assert times[-1] < each.t_us
    near = {"a": {"b", "c"}, "b": {"a"}, "c": set(), "d": set(), NOBODY_KNOWS: set()}
    for each in requests[1:]:
        assert len(set(each.rows_N.tolist())) == 3
        around = set().union(*(near[item] for item in each.user["user_activity__recent_items"]))
        assert not around or around & {"abcd"[row] for row in each.rows_N}
    again = made_up(bundle, 40, 3)
    assert [each.rows_N.tolist() for each in again] == [each.rows_N.tolist() for each in requests]


def test_what_is_timed_ranks_the_candidates_that_there_are() -> None:
    watch = time_models(whole(), shelf_of(whole()), rounds=2)
    assert watch.candidates == 4
    assert 0 < watch.p50_ms <= watch.p99_ms


def test_a_table_has_bound_and_remedy_of_what_is_to_be_mended() -> None:
    passed = Verdict("files", True, "whole", "every file whole")
    failing = Verdict("latency", False, "9 ms", "p99 at most 5 ms", "a faster machine")
    told = [str(cell) for cell in as_table([passed, failing], "The gate").columns[-1].cells]
    assert told == ["whole", "9 ms\nmust be: p99 at most 5 ms\nto do: a faster machine"]


def test_a_bundle_that_is_not_whole_is_asked_nothing_else(settings: Settings, tmp_path: Path) -> None:
    tiny_shop.bundle().save(tmp_path / "first")
    (tmp_path / "first" / "weights.pt").write_bytes(b"")
    told: list[Verdict] = []
    [verdict] = gate("1", tmp_path / "first", settings, note=told.append)
    assert (verdict.check, verdict.passed) == (FILES, False)
    assert "weights.pt is damaged" in verdict.measured
    assert told == [verdict]
    assert failed(told) == ["files"]
