"""One request over HTTP, waited for by a thread or by a task."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx

from headrace.client.calls import AnswerT, Call, KeyKind, breaks_off, headers_of, read_answer, unanswered
from headrace.client.config import ClientConfig
from headrace.clock import Clock


@dataclass(frozen=True)
class Door:
    """Where the API is, the keys to it, and how it is asked."""

    base_url: str
    keys: Mapping[KeyKind, str | None] = field(repr=False)
    config: ClientConfig
    clock: Clock = field(repr=False)

    def __post_init__(self) -> None:
        if not self.base_url.startswith(("http://", "https://")):
            raise ValueError(f"base_url {self.base_url!r} is no address: give http://HOST:PORT or https://HOST")

    def open(self, timeout_s: float) -> httpx.Client:
        return httpx.Client(base_url=self.base_url, timeout=timeout_s)

    def open_async(self, timeout_s: float) -> httpx.AsyncClient:
        return httpx.AsyncClient(base_url=self.base_url, timeout=timeout_s)


def ask(http: httpx.Client, door: Door, call: Call[AnswerT]) -> AnswerT:
    """The answer. Raises HeadraceError."""
    request = _arguments(door, call)
    for left in reversed(range(door.config.attempts)):
        try:
            response = http.request(**request)
        except httpx.HTTPError as error:
            if left and breaks_off(error):
                continue
            raise unanswered(call, error, door.base_url) from error
        return read_answer(call, response, door.clock)
    raise AssertionError("there is at least one attempt")


async def ask_async(http: httpx.AsyncClient, door: Door, call: Call[AnswerT]) -> AnswerT:
    """The answer. Raises HeadraceError."""
    request = _arguments(door, call)
    for left in reversed(range(door.config.attempts)):
        try:
            response = await http.request(**request)
        except httpx.HTTPError as error:
            if left and breaks_off(error):
                continue
            raise unanswered(call, error, door.base_url) from error
        return read_answer(call, response, door.clock)
    raise AssertionError("there is at least one attempt")


def _arguments(door: Door, call: Call[Any]) -> dict[str, Any]:
    return {
        "method": call.method,
        "url": call.path,
        "content": call.body,
        "headers": headers_of(call, door.keys),
    }
