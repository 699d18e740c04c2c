"""A small client of Headrace's own public HTTP API: what `status` and the demo see is what any client sees."""

import http.client
import json
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from headrace.settings import Settings


class ApiError(RuntimeError):
    """The API did not answer, or answered with an error."""


class Api:
    """One kept-alive connection to the API of these settings. Use from one thread."""

    def __init__(self, settings: Settings, timeout_s: float = 10.0) -> None:
        host = "127.0.0.1" if settings.http_host == "0.0.0.0" else settings.http_host
        self.base_url = f"http://{host}:{settings.http_port}"
        self._connection = http.client.HTTPConnection(host, settings.http_port, timeout=timeout_s)
        self._event_key = settings.event_keys.split(",")[0].strip()
        self._read_key = settings.read_keys.split(",")[0].strip()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._connection.close()

    def readiness(self) -> tuple[int, Any]:
        """Status code and body of `GET /readyz`; 0 and the reason if nobody answers."""
        try:
            return self._request("GET", "/readyz", None, "")
        except ApiError as error:
            return 0, str(error)

    def is_ready(self) -> bool:
        return self.readiness()[0] == 200

    def send_events(self, events: Sequence[Mapping[str, Any]]) -> Any:
        """`POST /v1/events`. Raises ApiError unless every event was accepted and is on disk."""
        answer = self._checked("/v1/events", list(events), self._event_key)
        if answer["refused"]:
            raise ApiError(f"{len(answer['refused'])} of {len(events)} events were refused: {answer['refused'][0]}")
        return answer

    def recommend(self, request: Mapping[str, Any]) -> Any:
        """`POST /v1/recommend`. Raises ApiError."""
        return self._checked("/v1/recommend", request, self._read_key)

    def _checked(self, path: str, body: Any, key: str) -> Any:
        status, answer = self._request("POST", path, body, key)
        if status != 200:
            raise ApiError(f"POST {self.base_url}{path} answered {status}: {str(answer)[:300]}")
        return answer

    def _request(self, method: str, path: str, body: Any, key: str) -> tuple[int, Any]:
        headers = {"content-type": "application/json"} | ({"authorization": f"Bearer {key}"} if key else {})
        try:
            self._connection.request(method, path, None if body is None else json.dumps(body), headers)
            response = self._connection.getresponse()
            text = response.read()
        except (OSError, http.client.HTTPException) as error:
            self._connection.close()
            raise ApiError(f"{method} {self.base_url}{path} got no answer: {error}") from error
        try:
            return response.status, json.loads(text)
        except ValueError:
            return response.status, text.decode(errors="replace")
