"""The short way in, as ASGI messages."""

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest
from starlette.types import Receive

from serving import entry
from serving.entry import ShortWay, middlewares, open_in_server, way_of
from serving.web import Problem

counted: list[str] = []


@pytest.fixture(autouse=True)
def nothing_counted() -> None:
    counted.clear()


async def ask(headers: Mapping[str, str], receive: Receive) -> bytes:
    match headers.get("x-wish"):
        case "problem":
            raise Problem(429, "too many", "wait", headers={"Retry-After": "1"})
        case "fault":
            raise AssertionError("a fault of ours")
        case wish:
            return f"{wish} {(await receive())['body'].decode()}".encode()


async def rest(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "the usual way"})


def sent(app: Any, *headers: tuple[bytes, bytes], path: str = "/v1/rank", method: str = "POST") -> list[Any]:
    messages: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": b"body"}

    async def send(message: Any) -> None:
        messages.append(message)

    asyncio.run(app({"type": "http", "method": method, "path": path, "headers": list(headers)}, receive, send))
    return messages


def test_an_answer_is_two_messages_and_counted() -> None:
    start, body = sent(way_of(ask, counted.append), (b"x-wish", b"the first"), (b"x-wish", b"the second"))
    assert (start["status"], body["body"]) == (200, b"the first body")
    assert start["headers"] == [(b"content-length", b"14"), (b"content-type", b"application/json")]
    assert counted == ["200"]


def test_a_problem_keeps_its_status_its_headers_and_its_body() -> None:
    start, body = sent(way_of(ask, counted.append), (b"x-wish", b"problem"))
    assert (start["status"], body["body"]) == (429, b'{"error":"too many","remedy":"wait"}')
    assert start["headers"][0] == (b"retry-after", b"1")
    assert counted == ["429"]


def test_a_fault_of_ours_is_logged_and_answered_with_500(caplog: pytest.LogCaptureFixture) -> None:
    start, body = sent(way_of(ask, counted.append), (b"x-wish", b"fault"))
    assert start["status"] == 500
    assert b"remedy" in body["body"]
    assert counted == ["500"]
    assert "a question could not be answered" in caplog.text


@pytest.mark.parametrize(("path", "method"), [("/v1/rank", "GET"), ("/v1/rank/", "POST"), ("/v1/items", "POST")])
def test_whatever_has_no_way_of_its_own_goes_the_usual_one(path: str, method: str) -> None:
    app = ShortWay(rest, {"/v1/rank": way_of(ask, counted.append)})
    assert sent(app, path=path, method=method) == [{"type": "the usual way"}]
    assert len(sent(app)) == 2


def test_a_server_made_before_its_application_takes_the_short_way_once_it_is_open(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(entry, "_ways", {})
    (made,) = middlewares()
    app = made.cls(rest, *made.args, **made.kwargs)
    assert sent(app) == [{"type": "the usual way"}]
    open_in_server({"/v1/rank": way_of(ask, counted.append)})
    assert [message["type"] for message in sent(app)] == ["http.response.start", "http.response.body"]
