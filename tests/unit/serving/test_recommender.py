"""The recommendation API over ASGI, on an empty data directory: no store, no model, no catalogue."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from headrace.settings import Settings
from serving import snapshot
from serving.engine import Engine
from serving.recommender import build_recommender
from tests.unit.serving.small_shop import catalogue, changes

KEY = {"X-API-Key": "reader"}
REPOSITORY = Path(__file__).parents[3]


def settings_in(folder: Path) -> Settings:
    return Settings(data=folder, feature_repo=REPOSITORY / "feature_repo", read_keys="reader", event_keys="writer")


@pytest.fixture
def app(tmp_path: Path) -> FastAPI:
    saved = catalogue("a", "b", "c", trending=["b"], unavailable=["c"])
    saved.put(changes("a", "b", price=[1.0, 2.0]))
    snapshot.save(saved, tmp_path / "serving" / "snapshot.arrow")
    return build_recommender(settings_in(tmp_path))


def call(app: FastAPI, method: str, path: str, **options: object) -> httpx.Response:
    async def one() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            return await client.request(method, path, **options)  # type: ignore[arg-type]

    return asyncio.run(one())


def ask(app: FastAPI, what: str = "recommend", **body: object) -> Any:
    body = {"deadline_ms": 10_000, **body}
    return call(app, "POST", f"/v1/{what}", json=body, headers=KEY).json()


def ids(body: Any) -> list[str]:
    return [item["item_id"] for item in body["items"]]


NOTHING = ["hydrate: user features unavailable", "retrieval: no model", "catalogue: from snapshot"]


def test_without_store_and_model_the_snapshot_answers_in_full(app: FastAPI) -> None:
    body = ask(app, user_id="u", n=2)
    assert body["items"] == [
        {"item_id": "b", "score": 2.0, "source": "trending", "position": 0},
        {"item_id": "a", "score": 3.0, "source": "popular", "position": 1},
    ]
    assert body["degraded"] == NOTHING
    assert (body["model_version"], body["features_age_ms"], body["explored"]) == (None, None, False)
    assert len(body["request_id"]) == 36
    assert body["as_of"].endswith("+00:00")
    assert body["took_ms"] > 0
    assert "explain" not in body


def test_n_exclude_and_filter_are_honoured(app: FastAPI) -> None:
    assert ids(ask(app, user_id="u", n=1)) == ["b"]
    assert ids(ask(app, user_id="u", exclude=["b"])) == ["a"]
    assert ids(ask(app, user_id="u", filter={"max_price": 1.5})) == ["a"]
    assert ids(ask(app, user_id="u", filter={"include_unavailable": True})) == ["b", "a", "c"]


def test_given_items_are_put_in_order_and_unknown_ones_come_last(app: FastAPI) -> None:
    body = ask(app, "rank", user_id="u", items=["x", "a", "c", "b"])
    assert [(item["item_id"], item["source"], item["score"]) for item in body["items"]] == [
        ("a", "given", 0.0),
        ("b", "given", 0.0),
        ("x", "unknown", None),
    ]
    assert [item["position"] for item in body["items"]] == [0, 1, 2]
    assert "retrieval: unknown item" in body["degraded"]


def test_items_like_given_ones_need_no_user_and_are_never_the_given_ones(app: FastAPI) -> None:
    body = ask(app, "similar", items=["a"])
    assert ids(body) == ["b"]
    assert body["degraded"] == ["retrieval: no model", "catalogue: from snapshot"]


def test_an_explained_answer_tells_stages_sources_and_who_found_what(app: FastAPI) -> None:
    told = ask(app, user_id="u", n=2, exclude=["b"], explain=True)["explain"]
    assert [stage["stage"] for stage in told["stages"]] == ["hydrate", "retrieve", "filter", "rank", "select"]
    assert told["stages"][2]["removed"] == {"excluded": 1}
    assert [(source["source"], source["count"]) for source in told["sources"]][2] == ("trending", 1)
    assert told["removed"] == {"excluded": ["b"]}
    assert told["items"] == [{"item_id": "a", "sources": ["popular"], "features": []}]


def test_a_profile_that_cannot_be_read_is_503_with_a_time_to_retry(app: FastAPI) -> None:
    answer = call(app, "GET", "/v1/users/u/profile", headers=KEY)
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert answer.json() == {"error": "the online store does not answer", "remedy": "try again later"}


@pytest.mark.parametrize("what", ["recommend", "rank", "similar"])
@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b'{"user_id": "u", "items": ["a"], "n": 0}', "n: Input should be greater than or equal to 1"),
        (b"[]", "the body: Input should be"),
        (b"null", "the body: Input should be"),
        (b'{"user_id": "u", "items": ["a"], "surprise": 1}', ": Extra inputs are not permitted"),
    ],
)
def test_a_wrong_field_is_refused_with_its_name_and_the_reason(app: FastAPI, what: str, body: bytes, said: str) -> None:
    answer = call(app, "POST", f"/v1/{what}", content=body, headers=KEY)
    assert answer.status_code == 422
    assert said in answer.json()["error"]
    assert answer.json()["remedy"]


@pytest.mark.parametrize("token", ["nonsense", "e.", "e.0", "x.0-1", "e.0-1.0-"])
def test_a_token_that_is_none_is_refused(app: FastAPI, token: str) -> None:
    answer = call(app, "POST", "/v1/recommend", json={"user_id": "u", "after": token}, headers=KEY)
    assert answer.status_code == 422
    assert answer.json()["error"].startswith("after: ")


@pytest.mark.parametrize("token", ["e.0-99", "i.0-99"])
def test_what_was_not_seen_inside_the_deadline_is_named(
    app: FastAPI, token: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serving.recommender._WAIT_SHARE", 0.02)  # much is left for a machine that stalls
    body = ask(app, user_id="u", n=1, after=token, deadline_ms=10_000)
    assert ids(body) == ["b"]
    assert body["degraded"][0] == "after: not yet seen"


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b"[" * 5_000, b'{"user_id": "\\ud800"}'])
def test_what_is_no_json_is_refused(app: FastAPI, body: bytes) -> None:
    answer = call(app, "POST", "/v1/recommend", content=body, headers=KEY)
    assert answer.status_code == 400
    assert set(answer.json()) == {"error", "remedy"}


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/recommend"),
        ("POST", "/v1/rank"),
        ("POST", "/v1/similar"),
        ("GET", "/v1/users/u/profile"),
        ("GET", "/metrics"),
        ("GET", "/docs"),
        ("GET", "/openapi.json"),
    ],
)
def test_all_but_health_and_readiness_need_a_read_key(app: FastAPI, method: str, path: str) -> None:
    for headers in ({}, {"X-API-Key": "writer"}, {"Authorization": "Bearer nobody"}):
        answer = call(app, method, path, json={"user_id": "u"}, headers=headers)
        assert answer.status_code == 401
        assert "HEADRACE_READ_KEYS" in answer.json()["remedy"]


def test_health_and_readiness_need_none_and_readiness_names_what_is_wrong(app: FastAPI) -> None:
    assert call(app, "GET", "/healthz").json() == {"ok": True}
    ready = call(app, "GET", "/readyz")
    assert ready.status_code == 200
    assert ready.json()["model_version"] is None
    assert ready.json()["catalogue"] == {"items": 3, "origin": "snapshot"}
    assert "headrace apply" in ready.json()["problems"]["store"]


def test_the_document_describes_both_applications_with_examples(app: FastAPI) -> None:
    document = call(app, "GET", "/openapi.json", headers=KEY).json()
    questions = {"/v1/recommend", "/v1/rank", "/v1/similar"}
    others = {"/v1/users/{user_key}/profile", "/v1/items", "/healthz", "/readyz", "/metrics"}
    assert set(document["paths"]) == {*questions, *others, "/v1/events"}
    assert {
        "EventIn",
        "RecommendIn",
        "RankIn",
        "SimilarIn",
        "FilterIn",
        "Context",
        "Problem",
        "Slate",
        "Profile",
    } <= set(document["components"]["schemas"])
    for path in (*questions, "/v1/events"):
        assert document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["examples"]
    assert "swagger" in call(app, "GET", "/docs", headers=KEY).text


def test_metrics_count_what_was_degraded_and_what_was_shown(app: FastAPI) -> None:
    ask(app, user_id="u", n=2)
    ask(app, "similar", items=["a"])
    text = call(app, "GET", "/metrics", headers=KEY).text
    assert 'headrace_degraded_total{reason="retrieval: no model"} 2.0' in text
    assert 'headrace_items_shown_total{source="popular"} 1.0' in text
    assert 'headrace_requests_total{endpoint="recommend",status="200"} 1.0' in text
    assert 'headrace_requests_total{endpoint="similar",status="200"} 1.0' in text


def test_unknown_paths_and_methods_say_what_to_do(app: FastAPI) -> None:
    assert call(app, "GET", "/nothing").json() == {"error": "not found", "remedy": "see /docs for the paths"}
    assert call(app, "GET", "/v1/recommend", headers=KEY).status_code == 405


def test_a_fault_of_the_request_path_is_answered_with_the_order_of_popularity(
    app: FastAPI, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fault(*_: object) -> None:
        raise AssertionError("a fault of ours")

    monkeypatch.setattr("serving.recommender.answer", fault)
    body = ask(app, user_id="u", exclude=["a"])
    assert ids(body) == ["b"]
    assert body["degraded"] == ["pipeline: failed", "catalogue: from snapshot"]


# Overload.


class Loaded(Engine):
    """So much work waits already."""

    def __init__(self) -> None:
        super().__init__()
        self.backlog_s = 0.0
        self.room_s = 60.0

    def fits(self, needs_s: float, left_s: float) -> bool:
        return needs_s <= self.room_s and self.backlog_s + needs_s <= 0.8 * left_s


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Loaded:
    engine = Loaded()
    monkeypatch.setattr("serving.recommender.Engine", lambda: engine)
    return engine


@pytest.mark.parametrize("path", ["/v1/recommend", "/v1/rank", "/v1/similar"])
def test_a_request_that_would_be_late_is_shed_with_a_time_to_retry(engine: Loaded, app: FastAPI, path: str) -> None:
    engine.backlog_s = 60.0
    answer = call(app, "POST", path, json={"user_id": "u", "items": ["a"]}, headers=KEY)
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "1")
    assert set(answer.json()) == {"error", "remedy"}
    assert call(app, "GET", "/v1/users/u/profile", headers=KEY).status_code == 429
    text = call(app, "GET", "/metrics", headers=KEY).text
    assert 'headrace_requests_shed_total{reason="queue"} 1.0' in text


def test_a_longer_deadline_is_taken_in_where_the_default_one_is_shed(engine: Loaded, app: FastAPI) -> None:
    engine.backlog_s = 0.07  # of 100 ms
    assert ids(ask(app, user_id="u", n=1, deadline_ms=10_000)) == ["b"]
    shed = call(app, "POST", "/v1/recommend", json={"user_id": "u", "deadline_ms": 50}, headers=KEY)
    assert shed.status_code == 429
    assert 'reason="deadline"} 1.0' in call(app, "GET", "/metrics", headers=KEY).text


def test_under_overload_the_order_of_popularity_may_be_the_answer(engine: Loaded, tmp_path: Path) -> None:
    snapshot.save(catalogue("a", "b", trending=["b"]), tmp_path / "serving" / "snapshot.arrow")
    app = build_recommender(settings_in(tmp_path).model_copy(update={"overload": "fallback", "deadline_ms": 10_000}))
    engine.room_s = 0.001  # for the cheap answer alone
    body = call(app, "POST", "/v1/recommend", json={"user_id": "u"}, headers=KEY).json()
    assert ids(body) == ["a", "b"]
    assert body["degraded"] == ["overload: ranker left out", "catalogue: from snapshot"]


def test_only_so_many_of_those_shed_are_held_back_at_a_time(
    engine: Loaded, app: FastAPI, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fourth of them hears at once, while the others still wait."""
    monkeypatch.setattr("serving.recommender.MOST_SHED_WAITING", 3)
    monkeypatch.setattr("serving.recommender.SHED_WAITS_S", 0.5)
    engine.backlog_s = 60.0

    async def flood() -> list[asyncio.Task[httpx.Response]]:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            asked = [
                asyncio.create_task(client.post("/v1/recommend", json={"user_id": "u"}, headers=KEY)) for _ in range(4)
            ]
            first, _ = await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
            answers = await asyncio.gather(*asked)
            assert [answer.status_code for answer in answers] == [429] * 4
            return list(first)

    assert len(asyncio.run(flood())) == 1


def test_a_request_is_shed_before_its_body_is_read(engine: Loaded, app: FastAPI) -> None:
    engine.backlog_s = 60.0

    async def body() -> AsyncIterator[bytes]:
        raise AssertionError("the body is asked for")
        yield b""

    assert call(app, "POST", "/v1/recommend", content=body(), headers=KEY).status_code == 429
