"""The real collector, and the rest of the API beside it, on loopback: as a process that can be killed, or in a thread.

`python -m tests.integration.client_server` serves the settings of its environment until it is killed.
"""

import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from fastapi import FastAPI, HTTPException, Request

from headrace import names
from headrace.settings import Settings
from serving.collector import build_collector
from tests.conftest import wait_until

App = Callable[[Any, Any, Any], Awaitable[None]]


def beside(collector: App, rest: App) -> App:
    """Both applications under one address, mounted as they are behind Ray Serve."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await collector(scope, receive, send)
        elif scope["path"].startswith(names.EVENTS_PATH):
            await collector(scope | {"root_path": names.EVENTS_PATH}, receive, send)
        else:
            await rest(scope, receive, send)

    return app


class Interface:
    """The agreed interface of the paths that answer, with fixed answers; keeps what it was asked."""

    def __init__(self, shed_events: int = 0) -> None:
        """The first `shed_events` requests with events are told to come again in a second."""
        self._shed_events = shed_events
        self.asked: list[tuple[str, str, Any]] = []
        self.events_asked_at: list[float] = []
        self.app = FastAPI()
        for path in ("/v1/recommend", "/v1/rank", "/v1/similar"):
            self.app.post(path)(self._slate)
        self.app.get("/v1/users/{key:path}/profile")(self._profile)
        self.app.post("/v1/items")(self._items)
        self.app.post("/v1/events")(self._events)

    async def _note(self, request: Request) -> Any:
        body = await request.json() if request.method == "POST" else None
        self.asked.append((request.url.path, request.headers["authorization"], body))
        return body

    async def _slate(self, request: Request) -> Any:
        body = await self._note(request)
        ids = body.get("items", ["a", "b"])[: body.get("n", 20)]
        return {
            "request_id": "r-1",
            "items": [
                {"item_id": each, "score": 1.0, "source": "given", "position": place} for place, each in enumerate(ids)
            ],
            "model_version": "3",
            "features_age_ms": 12.5,
            "as_of": "2026-01-01T00:00:00.250000+00:00",
            "degraded": ["ranker: deadline"],
            "took_ms": 2.5,
        } | ({"explain": {"stages": []}} if body.get("explain") else {})

    async def _profile(self, key: str, request: Request) -> Any:
        await self._note(request)
        return {
            "user_key": key,
            "as_of": "2026-01-01T00:00:00+00:00",
            "known": True,
            "complete_age_ms": 3.0,
            "newest_event_age_ms": None,
            "features": {"user_activity": {"views_1h": 2}},
        }

    async def _items(self, request: Request) -> Any:
        body = await self._note(request)
        operations = [(name, index, each) for name, each_list in body.items() for index, each in enumerate(each_list)]
        refused = [
            {"list": name, "index": index, "item_id": "bad", "field": "price", "reason": "must not be negative"}
            for name, index, each in operations
            if isinstance(each, dict) and each.get("price", 0) < 0
        ]
        return {"accepted": len(operations) - len(refused), "refused": refused, "positions": {"0": 7}, "token": "i.0-7"}

    async def _events(self, request: Request) -> Any:
        body = await self._note(request)
        self.events_asked_at.append(time.monotonic())
        if len(self.events_asked_at) <= self._shed_events:
            raise HTTPException(429, "not so fast", {"Retry-After": "1"})
        return {
            "accepted": len(body), "refused": [], "positions": {"2": len(self.asked)}, "token": f"e.2-{len(self.asked)}",
        }  # fmt: skip


def server_of(app: App, port: int) -> uvicorn.Server:
    return uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_level="warning", ws="none"))


@contextmanager
def served(app: App, port: int) -> Iterator[str]:
    """Serves in a thread; gives the address."""
    server = server_of(app, port)
    thread = threading.Thread(target=server.run)
    thread.start()
    wait_until(lambda: server.started or not thread.is_alive())
    assert server.started, "the server did not start; its log says why"
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(20)


if __name__ == "__main__":
    settings = Settings()
    server_of(beside(build_collector(settings), Interface().app), settings.http_port).run()
