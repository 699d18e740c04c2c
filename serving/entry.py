"""The short way in: questions are taken from the server itself, past what FastAPI and Ray Serve do for every request.

That costs several times what it takes to read a question, or to refuse one, and a flood of what is refused must leave the processor to what
was taken in (docs/adr/0017-questions-take-a-short-way-in.md). Everything else goes the usual way.
"""

import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Receive, Scope, Send

from serving.web import JSON_TYPE, Problem

logger = logging.getLogger(__name__)

Ask = Callable[[Mapping[str, str], Receive], Awaitable[bytes]]
"""Headers (names in lower case) and a body to a JSON answer, or a `Problem`."""
Ways = Mapping[str, ASGIApp]
"""Who answers a POST, by path."""

_FAULT: Final = Problem(500, "a fault of ours", "try again; the replica's log says what it is")


class ShortWay:
    """In front of an application: whoever has a way of its own is answered by that."""

    def __init__(self, app: ASGIApp, ways: Ways) -> None:
        self._app = app
        self._ways = ways

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        way = self._ways.get(scope["path"]) if scope["type"] == "http" and scope["method"] == "POST" else None
        await (way or self._app)(scope, receive, send)


def way_of(ask: Ask, count: Callable[[str], None]) -> ASGIApp:
    """An application of one question; `count` hears the status of each answer."""

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        status = "500"
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in reversed(scope["headers"])}
        try:
            try:
                body = await ask(headers, receive)
            except Problem as problem:
                status = str(problem.status)
                await _send(send, problem.status, problem.body, problem.headers)
            except Exception:
                logger.exception("a question could not be answered")
                await _send(send, _FAULT.status, _FAULT.body, {})
            else:
                status = "200"
                await _send(send, 200, body, {})
        finally:
            count(status)

    return answer


async def _send(send: Send, status: int, body: bytes, headers: Mapping[str, str]) -> None:
    raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    raw += [(b"content-length", b"%d" % len(body)), (b"content-type", JSON_TYPE.encode())]
    await send({"type": "http.response.start", "status": status, "headers": raw})
    await send({"type": "http.response.body", "body": body})


_ways: dict[str, ASGIApp] = {}
"""Of this process. Ray Serve makes its middlewares itself, in each of its servers, and knows nothing of an application."""


def open_in_server(ways: Ways) -> None:
    """From now on Ray Serve's server of this process takes the short way to these."""
    _ways.update(ways)


def middlewares() -> list[Middleware]:
    """What RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH names (serving/ray_runtime.py)."""
    return [Middleware(ShortWay, ways=_ways)]
