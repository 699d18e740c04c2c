"""The real applications on loopback under one address, as behind Ray Serve: in a thread, or as a process that can be killed.

`python -m tests.integration.client_server` serves the collector, by the settings of its environment, until it is killed.
"""

import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import uvicorn
from fastapi import FastAPI
from starlette.applications import Starlette

from headrace import names
from headrace.settings import Settings
from serving.collector import build_collector
from tests.conftest import wait_until

App = Callable[[Any, Any, Any], Awaitable[None]]


def mounted(collector: FastAPI, recommender: FastAPI | None = None) -> App:
    """The collector at its path, and the recommender, if there is one, at all others. Both begin and end with the server."""
    rest = recommender or FastAPI(openapi_url=None)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        async with collector.router.lifespan_context(collector), rest.router.lifespan_context(rest):
            yield

    living = Starlette(lifespan=lifespan)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await living(scope, receive, send)
        elif scope["path"] == names.EVENTS_PATH or scope["path"].startswith(f"{names.EVENTS_PATH}/"):
            await collector(scope | {"root_path": names.EVENTS_PATH}, receive, send)
        else:
            await rest(scope, receive, send)

    return app


def server_of(app: App, port: int) -> uvicorn.Server:
    return uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_level="warning", ws="none"))


@contextmanager
def served(app: App, port: int) -> Iterator[str]:
    """Serves in a thread; gives the address."""
    server = server_of(app, port)
    thread = threading.Thread(target=server.run)
    thread.start()
    wait_until(lambda: server.started or not thread.is_alive(), 60)
    assert server.started, "the server did not start; its log says why"
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(20)


if __name__ == "__main__":
    settings = Settings()
    server_of(mounted(build_collector(settings)), settings.http_port).run()
