"""The recommendation API over ASGI, on an empty data directory: no store, no model, no catalogue."""

import asyncio
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI

from headrace.settings import Settings
from serving import catalogue as cat
from serving.catalogue import Catalogue
from serving.recommender import build_recommender

KEY = {"X-API-Key": "reader"}
REPOSITORY = Path(__file__).parents[3]


def settings_in(folder: Path) -> Settings:
    return Settings(data=folder, feature_repo=REPOSITORY / "feature_repo", read_keys="reader", event_keys="writer")


@pytest.fixture
def app(tmp_path: Path) -> FastAPI:
    cat.save(Catalogue(popular=("a", "b", "c"), trending=("b",)), tmp_path / "serving" / "snapshot.json")
    return build_recommender(settings_in(tmp_path))


def call(app: FastAPI, method: str, path: str, **options: object) -> httpx.Response:
    async def one() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            return await client.request(method, path, **options)  # type: ignore[arg-type]

    return asyncio.run(one())


def test_without_store_and_model_the_snapshot_answers_in_full(app: FastAPI):
    answer = call(app, "POST", "/v1/recommend", json={"user_id": "u", "n": 2, "stages": True}, headers=KEY)
    body = answer.json()
    assert answer.status_code == 200
    assert [(item["item_id"], item["source"], item["position"]) for item in body["items"]] == [
        ("b", "trending", 0),
        ("a", "popular", 1),
    ]
    assert body["degraded"] == ["user_features_unavailable", "no_model", "catalogue_from_snapshot"]
    assert (body["model_version"], body["features_age_ms"]) == (None, None)
    assert [stage["stage"] for stage in body["stages"]][-1] == "select"
    assert len(body["request_id"]) == 36
    assert body["as_of"].endswith("+00:00")


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b'{"user_id": "u", "n": 0}', "n: Input should be greater than or equal to 1"),
        (b'{"user_id": "u", "n": 10000}', "n: Input should be less than or equal to 1000"),
        (b'{"user_id": "u", "n": "5"}', "n: Input should be a valid integer"),
        (b'{"user_id": 5}', "user_id: Input should be a valid string"),
        (b'{"user_id": "anon:x"}', "user_id must not begin with"),
        (b'{"user_id": ""}', "user_id: String should have at least 1 character"),
        (b"{}", "one of user_id and anonymous_id is needed"),
        (b"[]", "the body: Input should be"),
        (b"null", "the body: Input should be"),
        (b'{"user_id": "u", "surprise": 1}', "surprise: Extra inputs are not permitted"),
        (b'{"user_id": "u", "exclude": "i"}', "exclude: Input should be a valid list"),
        (b'{"user_id": "u", "context": {"device": 3}}', "context.device: Input should be a valid string"),
    ],
)
def test_a_wrong_field_is_refused_with_its_name_and_the_reason(app: FastAPI, body: bytes, said: str):
    answer = call(app, "POST", "/v1/recommend", content=body, headers=KEY)
    assert answer.status_code == 422
    assert said in answer.json()["error"]
    assert answer.json()["remedy"]


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b"[" * 5_000, b'{"user_id": "\\ud800"}'])
def test_what_is_no_json_is_refused(app: FastAPI, body: bytes):
    answer = call(app, "POST", "/v1/recommend", content=body, headers=KEY)
    assert answer.status_code == 400
    assert set(answer.json()) == {"error", "remedy"}


@pytest.mark.parametrize(
    ("method", "path"), [("POST", "/v1/recommend"), ("GET", "/metrics"), ("GET", "/docs"), ("GET", "/openapi.json")]
)
def test_all_but_health_and_readiness_need_a_read_key(app: FastAPI, method: str, path: str):
    for headers in ({}, {"X-API-Key": "writer"}, {"Authorization": "Bearer nobody"}):
        answer = call(app, method, path, json={"user_id": "u"}, headers=headers)
        assert answer.status_code == 401
        assert "HEADRACE_READ_KEYS" in answer.json()["remedy"]


def test_health_and_readiness_need_none_and_readiness_names_what_is_wrong(app: FastAPI):
    assert call(app, "GET", "/healthz").json() == {"ok": True}
    ready = call(app, "GET", "/readyz")
    assert ready.status_code == 200
    assert ready.json()["model_version"] is None
    assert ready.json()["catalogue"] == {"items": 3, "origin": "snapshot"}
    assert "headrace apply" in ready.json()["problems"]["store"]


def test_the_document_describes_both_applications_with_examples(app: FastAPI):
    document = call(app, "GET", "/openapi.json", headers=KEY).json()
    assert set(document["paths"]) == {"/v1/recommend", "/v1/events", "/v1/items", "/healthz", "/readyz", "/metrics"}
    assert {"EventIn", "RecommendIn", "Context", "Problem"} <= set(document["components"]["schemas"])
    for path in ("/v1/recommend", "/v1/events", "/v1/items"):
        assert document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["examples"]
    assert "swagger" in call(app, "GET", "/docs", headers=KEY).text


def test_metrics_count_what_was_degraded_and_what_was_shown(app: FastAPI):
    call(app, "POST", "/v1/recommend", json={"user_id": "u", "n": 2}, headers=KEY)
    text = call(app, "GET", "/metrics", headers=KEY).text
    assert 'headrace_recommend_degraded_total{reason="no_model"} 1.0' in text
    assert 'headrace_recommend_items_total{source="popular"} 1.0' in text
    assert 'headrace_recommend_requests_total{status="200"} 1.0' in text


def test_unknown_paths_and_methods_say_what_to_do(app: FastAPI):
    assert call(app, "GET", "/nothing").json() == {"error": "not found", "remedy": "see /docs for the paths"}
    assert call(app, "GET", "/v1/recommend", headers=KEY).status_code == 405


def test_a_fault_of_the_request_path_is_answered_with_the_order_of_popularity(
    app: FastAPI, monkeypatch: pytest.MonkeyPatch
):
    def fault(*_: object) -> None:
        raise AssertionError("a fault of ours")

    monkeypatch.setattr("serving.recommender.recommend", fault)
    body = call(app, "POST", "/v1/recommend", json={"user_id": "u", "exclude": ["a"]}, headers=KEY).json()
    assert [item["item_id"] for item in body["items"]] == ["b", "c"]
    assert body["degraded"] == ["pipeline_failed", "catalogue_from_snapshot"]
