import asyncio
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serving import candidates as c
from serving.candidates import Candidates, Chances, Slate, Stage, Trace
from serving.metrics import CountRequests, RecommenderMetrics, endpoint_of, exposition


def typical_slate(degraded: str | None = "ranker: deadline") -> Slate:
    trace = Trace(100)
    for name in ("hydrate", "retrieve", "filter", "features", "rank", "select"):
        removed = {"hidden": 3, "unavailable": 1} if name == "filter" else {}
        trace.stages.append(Stage(name, 200, removed, 0.0012))
    for name in ("two_tower", "neighbours", "trending", "new", "unfinished"):
        trace.sources.append(Stage(name, 100, {}, 0.0003))
    if degraded:
        trace.degrade(degraded)
    found_by = np.resize([c.BIT[c.TWO_TOWER] | c.BIT[c.NEW], c.BIT[c.NEW]], 20)
    items = Candidates(np.arange(20), found_by, np.full(20, 0.5))
    return Slate([f"i{place}" for place in range(20)], items, 1, 41_000, "3", trace)


def test_one_call_tells_all_of_a_request():
    metrics = RecommenderMetrics()
    metrics.record("recommend", typical_slate())
    lines = exposition(metrics.registry).decode().splitlines()
    for line in (
        'headrace_request_seconds_count{endpoint="recommend"} 1.0',
        'headrace_slate_items_bucket{endpoint="recommend",le="10.0"} 0.0',
        'headrace_slate_items_bucket{endpoint="recommend",le="20.0"} 1.0',
        'headrace_stage_seconds_bucket{le="0.001",stage="rank"} 0.0',
        'headrace_stage_seconds_bucket{le="0.002",stage="rank"} 1.0',
        'headrace_source_seconds_sum{source="trending"} 0.0003',
        'headrace_source_candidates_total{source="two_tower"} 100.0',
        'headrace_candidates_removed_total{reason="hidden"} 3.0',
        'headrace_items_shown_total{source="new"} 10.0',
        'headrace_degraded_total{reason="ranker: deadline"} 1.0',
        'headrace_slates_degraded_total{endpoint="recommend"} 1.0',
        'headrace_features_age_seconds_bucket{le="0.02"} 0.0',
        'headrace_features_age_seconds_bucket{le="0.05"} 1.0',
        "headrace_features_last_age_seconds 0.041",
    ):
        assert line in lines


def test_a_slate_with_nothing_missing_and_no_known_age_counts_as_neither():
    metrics = RecommenderMetrics()
    nothing = Candidates(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0))
    slate = Slate([], nothing, 1, None, None, Trace(100))
    metrics.record("similar", slate)
    text = exposition(metrics.registry).decode()
    assert "headrace_slates_degraded_total{" not in text
    assert "headrace_features_age_seconds_count 0.0" in text
    assert 'headrace_slate_items_bucket{endpoint="similar",le="0.0"} 1.0' in text


def test_a_slate_in_a_drawn_order_is_counted_and_one_whose_coin_fell_the_other_way_is_not():
    metrics, sure = RecommenderMetrics(), np.ones(20)
    for is_drawn in (True, False, True):
        chances = Chances(sure, sure, sure.astype(np.bool_), is_drawn)
        metrics.record("rank", replace(typical_slate(), chances=chances))
    metrics.record("recommend", typical_slate())
    lines = exposition(metrics.registry).decode().splitlines()
    assert [line for line in lines if line.startswith("headrace_slates_explored_total")] == [
        'headrace_slates_explored_total{endpoint="rank"} 2.0'
    ]


def test_recording_a_request_costs_microseconds(tmp_path: Path):
    metrics, slate = RecommenderMetrics(tmp_path), typical_slate()
    took: list[float] = []
    for _ in range(2_000):
        begun = time.perf_counter()
        metrics.record("recommend", slate)
        took.append(time.perf_counter() - begun)
    assert (
        sorted(took)[len(took) // 10] < 100e-6
    )  # 14 to 24 us on a busy machine; benchmarks/metrics_cost.py measures it


def test_a_new_version_takes_the_place_of_the_old_one():
    metrics = RecommenderMetrics()
    for version in ("3", "4"):
        metrics.model_in_service(version)
    info = [
        line for line in exposition(metrics.registry).decode().splitlines() if line.startswith("headrace_model_info")
    ]
    assert info == ['headrace_model_info{version="4"} 1.0']
    metrics.model_in_service(None)
    assert "headrace_model_info{" not in exposition(metrics.registry).decode()


def test_two_replicas_on_two_versions_show_both_and_a_dropped_impression_is_seen_from_zero_on(tmp_path: Path):
    one, other = RecommenderMetrics(tmp_path), RecommenderMetrics(tmp_path)
    one.model_in_service("3")
    other.model_in_service("4")
    one.queue.set(3)
    other.queue.set(4)
    one.change_feed_lag.set(0.5)
    other.change_feed_lag.set(0.25)
    text = exposition(other.registry).decode()
    for line in (
        'headrace_model_info{version="3"} 1.0',
        'headrace_model_info{version="4"} 1.0',
        "headrace_admission_queue_requests 7.0",
        "headrace_change_feed_lag_seconds 0.5",
        'headrace_impressions_dropped_total{reason="queue_full"} 0.0',
    ):
        assert line in text.splitlines()


@pytest.mark.parametrize(
    ("path", "endpoint"),
    [
        ("/v1/recommend", "recommend"),
        ("/v1/rank", "rank"),
        ("/v1/similar", "similar"),
        ("/v1/items", "items"),
        ("/v1/users/u-1/profile", "profile"),
        ("/metrics", "metrics"),
        ("/readyz", "health"),
        ("/v1/recommend/u-1", "other"),
        ("", "other"),
    ],
)
def test_a_path_becomes_one_of_few_labels(path: str, endpoint: str):
    assert endpoint_of(path) == endpoint


@pytest.mark.parametrize("status", [200, 429, 500])
def test_every_answer_is_counted_also_one_that_raised(status: int):
    metrics = RecommenderMetrics()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if status == 500:
            raise RuntimeError("a fault of ours")
        await send({"type": "http.response.start", "status": status})

    async def send(message: Any) -> None:
        assert message["status"] == status

    counted = CountRequests(app, metrics)({"type": "http", "path": "/v1/rank"}, None, send)
    if status == 500:
        with pytest.raises(RuntimeError):
            asyncio.run(counted)
    else:
        asyncio.run(counted)
    assert metrics.requests.labels("rank", str(status)).value == 1.0
