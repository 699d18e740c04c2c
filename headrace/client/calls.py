"""Requests and answers of the API as plain functions: what is sent, and what an answer means. No network here."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Generic, Literal, TypeVar
from urllib.parse import quote

import httpx
import orjson
from pydantic import ConfigDict, TypeAdapter, ValidationError, with_config
from typing_extensions import TypedDict

from headrace import names
from headrace.client.answers import Answer, EventsAnswer, ItemsAnswer, Profile, Slate
from headrace.client.errors import (
    AnswerError,
    HeadraceError,
    OverloadedError,
    RefusedError,
    RetryableError,
    TimedOutError,
    UnauthorizedError,
    UnavailableError,
)
from headrace.client.event import ContextFields
from headrace.client.retry import retry_after_s
from headrace.clock import Clock
from headrace.events import check_user, first_error
from headrace.identity import user_key

KeyKind = Literal["event_key", "read_key", "admin_key"]
AnswerT = TypeVar("AnswerT", bound=Answer)
SETTING_OF: Final[dict[KeyKind, str]] = {
    "event_key": "HEADRACE_EVENT_KEYS",
    "read_key": "HEADRACE_READ_KEYS",
    "admin_key": "HEADRACE_ADMIN_KEYS",
}
_STRICT: Final = ConfigDict(extra="forbid", strict=True)


@with_config(_STRICT)
class Filter(TypedDict, total=False):
    """What may be in the slate: any of these categories and brands, a price in a range; what is unavailable only if asked."""

    category: Sequence[str]
    brand: Sequence[str]
    min_price: float
    max_price: float
    include_unavailable: bool


@with_config(_STRICT)
class Options(TypedDict, total=False):
    """Options that recommend, rank and similar share; None is as good as left out.

    `after` is the token of an acknowledgement: the answer is to have seen it.
    """

    user_id: str | None
    anonymous_id: str | None
    session_id: str | None
    n: int | None
    context: ContextFields | None
    exclude: Sequence[str] | None
    filter: Filter | None
    deadline_ms: float | None
    explain: bool
    after: str | None


@with_config(_STRICT)
class _Asked(Options, total=False):
    items: Sequence[str]


class _ItemId(TypedDict):
    item_id: str


@with_config(_STRICT)
class Item(_ItemId, total=False):
    """An item of the catalogue. `available` is true where it is left out."""

    title: str
    category: str
    brand: str
    price: float
    available: bool
    properties: dict[str, Any]


@dataclass(frozen=True)
class Call(Generic[AnswerT]):
    """One request, and the kind of its answer."""

    method: str
    path: str
    key: KeyKind
    answer: type[AnswerT]
    body: bytes | None = None
    what: str = ""

    def __str__(self) -> str:
        return self.what or f"{self.method} {self.path}"


def recommend(options: Options) -> Call[Slate]:
    return _slate("/v1/recommend", options, {}, needs_user=True)


def rank(items: Sequence[str], options: Options) -> Call[Slate]:
    return _slate("/v1/rank", options, {"items": items}, needs_user=True)


def similar(items: Sequence[str], options: Options) -> Call[Slate]:
    return _slate("/v1/similar", options, {"items": items}, needs_user=False)


def profile(user_id: str | None, anonymous_id: str | None) -> Call[Profile]:
    what = "GET /v1/users/{id}/profile"  # messages and logs hold no user
    try:
        check_user(user_id, anonymous_id)
    except ValueError as error:
        raise RefusedError(what, "", str(error)) from error
    path = f"/v1/users/{quote(user_key(user_id, anonymous_id), safe='')}/profile"
    return Call("GET", path, "read_key", Profile, what=what)


def change_items(upsert: Sequence[Item], availability: Mapping[str, bool], delete: Sequence[str]) -> Call[ItemsAnswer]:
    path = "/v1/items"
    lists = {
        "upsert": _checked(_ITEMS, upsert, f"POST {path}"),
        "availability": [{"item_id": item_id, "available": available} for item_id, available in availability.items()],
        "delete": _checked(_IDS, delete, f"POST {path}"),
    }
    body = _json({name: operations for name, operations in lists.items() if operations}, f"POST {path}")
    return Call("POST", path, "admin_key", ItemsAnswer, body)


def send_events(events: Sequence[bytes]) -> Call[EventsAnswer]:
    """Events as `encode_event` made them."""
    return Call("POST", names.EVENTS_PATH, "event_key", EventsAnswer, b"[%b]" % b",".join(events))


def user_asked(options: Options) -> str | None:
    """The user key that a request is about, if it says who."""
    if options.get("user_id") is None and options.get("anonymous_id") is None:
        return None
    return user_key(options.get("user_id"), options.get("anonymous_id"))


def headers_of(call: Call[Any], keys: Mapping[KeyKind, str | None]) -> dict[str, str]:
    """Raises UnauthorizedError where the client was given no such key."""
    key = keys[call.key]
    if not key:
        raise UnauthorizedError(
            f"{call}: the client was made without a key for it: pass {call.key}=, one of {SETTING_OF[call.key]}"
        )
    return {"authorization": f"Bearer {key}", "content-type": "application/json"}


def read_answer(call: Call[AnswerT], response: httpx.Response, clock: Clock) -> AnswerT:
    """The answer, or the error that the response stands for."""
    if response.status_code != 200:
        raise error_of(call, response, clock)
    try:
        return call.answer.model_validate_json(response.content)
    except ValidationError as error:
        field, reason = first_error(error)
        raise AnswerError(
            f"{call} answered 200 with what this client cannot read ({field or 'body'}: {reason}): "
            "is this address the API's, and of this version?"
        ) from error


def error_of(call: Call[Any], response: httpx.Response, clock: Clock) -> HeadraceError:
    """What a response other than 200 means."""
    status, problem = response.status_code, _problem(response)
    said, remedy = str(problem.get("error", response.reason_phrase)), str(problem.get("remedy", ""))
    message = f"{call} answered {status}: {said}" + (f": {remedy}" if remedy else "")
    wait_s = retry_after_s(response.headers.get("retry-after"), clock)
    match status:
        case 401 | 403:
            return UnauthorizedError(f"{message} (this client's {call.key} must be one of {SETTING_OF[call.key]})")
        case 429:
            return OverloadedError(message, wait_s)
        case 408 | 504:
            return TimedOutError(message, wait_s)
        case _ if status >= 500:
            return UnavailableError(message, wait_s)
        case 400 | 413 | 415 | 422 if status == 413 or "error" in problem:
            field, _, reason = said.partition(": ")
            if not reason or " " in field:
                field, reason = "", said
            refused = problem.get("refused", [])
            listed = tuple(refused) if isinstance(refused, list) else ()
            return RefusedError(f"{call} answered {status}", field, f"{reason}: {remedy}" if remedy else reason, listed)
        case _:
            return AnswerError(f"{message}: is this address the API's, and of this version?")


def unanswered(call: Call[Any], error: httpx.HTTPError, base_url: str) -> RetryableError:
    """What it means that no response came."""
    if isinstance(error, httpx.TimeoutException):
        return TimedOutError(
            f"{call} at {base_url} got no answer in time ({type(error).__name__}): "
            "try again, or allow more with ClientConfig(timeout_s=, events_timeout_s=)"
        )
    return UnavailableError(
        f"{call} at {base_url} got no answer ({type(error).__name__}: {error}): is it running and reachable?"
    )


def breaks_off(error: httpx.HTTPError) -> bool:
    """Whether a connection was refused or broke, as kept-alive ones do when a server restarts: worth an attempt at once."""
    return isinstance(error, (httpx.NetworkError, httpx.RemoteProtocolError))


def _slate(path: str, options: Options, more: dict[str, object], *, needs_user: bool) -> Call[Slate]:
    what = f"POST {path}"
    given = {name: value for name, value in options.items() if value is not None}
    asked = _checked(_ASKED, given | more, what)
    if needs_user or user_asked(asked) is not None:
        try:
            check_user(asked.get("user_id"), asked.get("anonymous_id"))
        except ValueError as error:
            raise RefusedError(what, "", str(error)) from error
    return Call("POST", path, "read_key", Slate, _json(asked, what))


def _checked(adapter: "TypeAdapter[Any]", value: object, what: str) -> Any:
    try:
        return adapter.validate_python(value)
    except ValidationError as error:
        field, reason = first_error(error)
        raise RefusedError(what, field or "body", reason) from error


def _json(value: object, what: str) -> bytes:
    try:
        return orjson.dumps(value)
    except TypeError as error:
        raise RefusedError(what, "body", f"it cannot be written as JSON: {error}") from error


def _problem(response: httpx.Response) -> dict[str, Any]:
    try:
        decoded = orjson.loads(response.content)
    except orjson.JSONDecodeError:
        return {}
    return decoded if isinstance(decoded, dict) else {}


_ASKED: Final = TypeAdapter(_Asked)
_ITEMS: Final = TypeAdapter(list[Item])
_IDS: Final = TypeAdapter(list[str])
