"""What both HTTP applications share: bodies read within a limit, JSON, and refusals with a reason and a remedy."""

import importlib.metadata
from collections.abc import Callable, Mapping
from typing import Any, Final

import orjson
from fastapi import Depends, FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

JSON_TYPE: Final = "application/json"
_REMEDIES: Final = {404: "see /docs for the paths", 405: "see /docs for the methods of this path"}

SECURITY_SCHEMES: Final[dict[str, Any]] = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "apiKey": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
}
PROBLEM_SCHEMA: Final[dict[str, Any]] = {
    "type": "object",
    "required": ["error", "remedy"],
    "properties": {"error": {"type": "string"}, "remedy": {"type": "string"}},
}
NO_KEY_NEEDED: Final[dict[str, Any]] = {"security": []}


def problem_docs(description: str) -> dict[str, Any]:
    """An answer with the body of `Problem`, as an OpenAPI document has it."""
    return {"description": description, "content": {JSON_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}}


REFUSALS: Final[dict[int | str, dict[str, Any]]] = {
    400: problem_docs("Not JSON."),
    401: problem_docs("No key, or a wrong one."),
    413: problem_docs("The body is too large."),
    415: problem_docs("The body is compressed."),
}
"""Of whatever takes a body."""


class Problem(Exception):
    """A request that is not served: the answer's status, what is wrong and what to do about it."""

    def __init__(
        self,
        status: int,
        error: str,
        remedy: str,
        *,
        headers: Mapping[str, str] | None = None,
        detail: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(error)
        self.status = status
        self.error = error
        self.remedy = remedy
        self.headers = dict(headers or {})
        self.detail = dict(detail or {})

    @property
    def body(self) -> bytes:
        return orjson.dumps({"error": self.error, "remedy": self.remedy, **self.detail})

    def response(self) -> Response:
        return Response(self.body, self.status, self.headers, JSON_TYPE)


def product_version() -> str:
    return importlib.metadata.version("headrace")


def json_response(content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(orjson.dumps(content), status, dict(headers or {}), JSON_TYPE)


async def read_json(headers: Mapping[str, str], receive: Receive, max_bytes: int) -> Any:
    """The decoded body. Raises `Problem`: 413 past the limit (never reading further), 415 encoded, 400 not JSON."""
    encoding = headers.get("content-encoding", "identity")
    if encoding.lower() != "identity":
        raise Problem(415, f"content-encoding {encoding[:40]!r} is not supported", "send the body as plain JSON")
    body = await _read_body(headers, receive, max_bytes)
    if not body.strip():
        raise Problem(400, "the body is empty", "send JSON in UTF-8")
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise Problem(400, f"the body is not JSON: {error}", "send JSON in UTF-8, nested at most 1024 deep") from error


async def _read_body(headers: Mapping[str, str], receive: Receive, max_bytes: int) -> bytearray:
    declared = headers.get("content-length", "")
    is_too_large = declared.isdecimal() and int(declared) > max_bytes
    body, more = bytearray(), True
    while more and not is_too_large:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Problem(400, "the client went away before its body was complete", "send it again")
        body += message.get("body", b"")
        more = message.get("more_body", False)
        is_too_large = len(body) > max_bytes
    if is_too_large:
        raise Problem(413, f"the body exceeds {max_bytes} bytes", "send it in smaller parts")
    return body


def new_app(title: str, description: str, **options: Any) -> FastAPI:
    """A FastAPI application without open documentation pages, whose errors all have the body of `Problem`."""
    app = FastAPI(
        title=title,
        description=description,
        version=product_version(),
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        redirect_slashes=False,
        **options,
    )
    app.add_exception_handler(Problem, _answer_problem)
    app.add_exception_handler(HTTPException, _answer_http_error)
    return app


def add_docs(app: FastAPI, allowed: Callable[[Request], None], openapi: Callable[[], dict[str, Any]]) -> None:
    """`/docs` and `/openapi.json`, behind a key like everything else (in a browser: any user, the key as password)."""

    @app.get("/openapi.json", include_in_schema=False, dependencies=[Depends(allowed)])
    def schema() -> Response:
        return json_response(openapi())

    @app.get("/docs", include_in_schema=False, dependencies=[Depends(allowed)])
    def docs(request: Request) -> HTMLResponse:
        root = request.scope.get("root_path", "").rstrip("/")
        return get_swagger_ui_html(openapi_url=f"{root}/openapi.json", title=app.title)


def with_security(document: dict[str, Any]) -> dict[str, Any]:
    """An OpenAPI document that says how keys are sent."""
    document.setdefault("components", {})["securitySchemes"] = SECURITY_SCHEMES
    document["security"] = [{name: []} for name in SECURITY_SCHEMES]
    return document


async def _answer_problem(_: Request, error: Exception) -> Response:
    assert isinstance(error, Problem)
    return error.response()


async def _answer_http_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    remedy = _REMEDIES.get(error.status_code, "see /docs")
    return Problem(error.status_code, str(error.detail).lower(), remedy, headers=error.headers).response()


class SlashAtMount:
    """Lets `/prefix` reach the route `/` of an application mounted there, without a redirect to a slash."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] == scope.get("root_path", ""):
            scope = {**scope, "path": scope["path"] + "/"}
        await self._app(scope, receive, send)
