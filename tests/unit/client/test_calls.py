"""What is sent, and what each answer means."""

from typing import Any

import httpx
import orjson
import pytest

from headrace.client import (
    AnswerError,
    HeadraceError,
    OverloadedError,
    RefusedError,
    TimedOutError,
    UnauthorizedError,
    UnavailableError,
    calls,
)
from headrace.events import Context

SLATE = {
    "request_id": "r",
    "items": [{"item_id": "i", "score": 0.5, "source": "trending", "position": 0}],
    "model_version": None,
    "features_age_ms": 4.5,
    "as_of": "2026-01-01T00:00:00+00:00",
    "degraded": ["ranker: deadline"],
    "took_ms": 3.25,
    "a field of tomorrow": 1,
}


def test_a_request_holds_what_was_asked_and_no_more():
    call = calls.recommend(
        {"user_id": "u", "anonymous_id": None, "n": 3, "exclude": ("a",), "filter": {"category": ["b"], "max_price": 2}}
    )
    assert (call.method, call.path, call.key) == ("POST", "/v1/recommend", "read_key")
    assert orjson.loads(call.body or b"") == {
        "user_id": "u", "n": 3, "exclude": ["a"], "filter": {"category": ["b"], "max_price": 2},
    }  # fmt: skip


def test_items_go_with_rank_and_similar_and_similar_needs_no_user():
    assert orjson.loads(calls.rank(["a", "b"], {"user_id": "u"}).body or b"") == {"user_id": "u", "items": ["a", "b"]}
    assert orjson.loads(calls.similar(["a"], {}).body or b"") == {"items": ["a"]}


def test_a_profile_is_asked_for_by_user_key_and_named_without_it():
    call = calls.profile("a/b ü", None)
    assert call.path == "/v1/users/a%2Fb%20%C3%BC/profile"
    assert str(call) == "GET /v1/users/{id}/profile"
    assert calls.profile(None, "x").path == "/v1/users/anon%3Ax/profile"


def test_changes_of_the_catalogue_are_sent_in_the_list_they_belong_to():
    body = calls.change_items([{"item_id": "i", "price": 2.0}], {"j": False}, ["k"]).body or b""
    assert orjson.loads(body) == {
        "upsert": [{"item_id": "i", "price": 2.0}],
        "availability": [{"item_id": "j", "available": False}],
        "delete": ["k"],
    }


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({}, ""),
        ({"user_id": "anon:x"}, ""),
        ({"user_id": 5}, "user_id"),
        ({"user_id": "u", "n": "5"}, "n"),
        ({"user_id": "u", "exclude": "abc"}, "exclude"),
        ({"user_id": "u", "filter": {"colour": "red"}}, "filter.colour"),
        ({"user_id": "u", "stages": True}, "stages"),
    ],
)
def test_what_no_server_would_take_is_refused_here(options: Any, field: str):
    with pytest.raises(RefusedError) as caught:
        calls.recommend(options)
    assert caught.value.field == field


def test_the_context_has_the_fields_of_an_event():
    context: Any = {name: "x" for name in Context.model_fields}
    assert orjson.loads(calls.recommend({"user_id": "u", "context": context}).body or b"")["context"] == context


def test_an_answer_is_a_frozen_value_and_fields_of_tomorrow_are_left_out():
    slate = calls.read_answer(calls.recommend({"user_id": "u"}), httpx.Response(200, json=SLATE), lambda: 0)
    assert (slate.items[0].item_id, slate.degraded, slate.took_ms) == ("i", ("ranker: deadline",), 3.25)
    with pytest.raises(ValueError, match="frozen"):
        slate.took_ms = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("status", "headers", "body", "kind", "said"),
    [
        (401, {}, {"error": "no key in the request", "remedy": "send it"}, UnauthorizedError, "HEADRACE_READ_KEYS"),
        (429, {"Retry-After": "2"}, {"error": "too many", "remedy": "wait"}, OverloadedError, "too many: wait"),
        (503, {"Retry-After": "2"}, {"error": "down", "remedy": "wait"}, UnavailableError, "answered 503: down: wait"),
        (500, {}, "Internal", UnavailableError, "answered 500"),
        (502, {}, "<html>", UnavailableError, "answered 502"),
        (504, {}, "", TimedOutError, "answered 504"),
        (
            422,
            {},
            {"error": "n: must be 1 or more", "remedy": "correct it"},
            RefusedError,
            "422: n: must be 1 or more: ",
        ),
        (422, {}, "somebody else's page", AnswerError, "is this address the API's"),
        (404, {}, {"error": "not found", "remedy": "see /docs"}, AnswerError, "not found"),
        (302, {}, "", AnswerError, "answered 302"),
        (200, {}, "<html>", AnswerError, "cannot read"),
        (200, {}, {"request_id": "r"}, AnswerError, "items: Field required"),
    ],
)
def test_each_status_is_an_error_of_its_own_kind(
    status: int, headers: dict[str, str], body: Any, kind: type[HeadraceError], said: str
):
    content = body.encode() if isinstance(body, str) else orjson.dumps(body)
    response = httpx.Response(status, headers=headers, content=content)
    with pytest.raises(HeadraceError) as caught:
        calls.read_answer(calls.recommend({"user_id": "u"}), response, lambda: 0)
    assert type(caught.value) is kind
    assert said in str(caught.value)
    assert str(caught.value).startswith("POST /v1/recommend answered ")
    assert getattr(caught.value, "retry_after_s", None) == (2 if headers else None)


def test_a_refusal_names_field_reason_and_what_was_listed():
    body = {"error": "n: must be 1 or more", "remedy": "correct it", "refused": [{"index": 0}]}
    error = calls.error_of(calls.recommend({"user_id": "u"}), httpx.Response(422, json=body), lambda: 0)
    assert isinstance(error, RefusedError)
    assert (error.field, error.reason, error.refused) == ("n", "must be 1 or more: correct it", ({"index": 0},))


def test_a_key_that_was_not_given_is_named():
    keys: dict[calls.KeyKind, str | None] = {"event_key": "w", "read_key": None, "admin_key": None}
    with pytest.raises(UnauthorizedError, match="pass read_key=, one of HEADRACE_READ_KEYS"):
        calls.headers_of(calls.recommend({"user_id": "u"}), keys)
    assert calls.headers_of(calls.send_events([b"{}"]), keys)["authorization"] == "Bearer w"
