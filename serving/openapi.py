"""The OpenAPI document: one for both applications, what a client of the stack may send and what comes back."""

from typing import Any, Final

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from starlette.responses import PlainTextResponse

from headrace import names
from serving.api import RankIn, RecommendIn, SimilarIn
from serving.collector import collector_openapi, documented
from serving.web import NO_KEY_NEEDED, PROBLEM_SCHEMA, REFUSALS, problem_docs, with_security

_BODIES: Final = (RecommendIn, RankIn, SimilarIn)


def openapi_of(app: FastAPI) -> dict[str, Any]:
    document = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
    collector = collector_openapi(documented())
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    schemas |= collector["components"]["schemas"] | _SCHEMAS
    for body in _BODIES:
        schema = body.model_json_schema(ref_template="#/components/schemas/{model}")
        schemas |= schema.pop("$defs", {}) | {body.__name__: schema}
    document["paths"][names.EVENTS_PATH] = collector["paths"]["/"]
    return with_security(document)


_STRINGS: Final = {"type": "array", "items": {"type": "string"}}
_SLATE: Final[dict[str, Any]] = {
    "type": "object",
    "required": ["request_id", "items", "model_version", "features_age_ms", "as_of", "degraded", "explored", "took_ms"],
    "properties": {
        "request_id": {"type": "string", "description": "Send it with the events that answer this slate."},
        "items": {
            "type": "array",
            "description": "Best first, unless `explored`.",
            "items": {
                "type": "object",
                "required": ["item_id", "score", "source", "position"],
                "properties": {
                    "item_id": {"type": "string"},
                    "score": {"type": ["number", "null"]},
                    "source": {"type": "string", "description": "The source that found it first."},
                    "position": {"type": "integer", "minimum": 0},
                },
            },
        },
        "model_version": {"type": ["string", "null"]},
        "features_age_ms": {
            "type": ["number", "null"],
            "description": "as_of minus the time the features are complete to.",
        },
        "as_of": {"type": "string", "format": "date-time"},
        "degraded": {**_STRINGS, "description": "What was missing, as `stage: reason`; empty in a full answer."},
        "explored": {"type": "boolean", "description": "The order was drawn, to learn from: show it as it is."},
        "took_ms": {"type": "number"},
        "explain": {"type": "object", "description": "With `explain`: stages, sources, removed items, what weighed."},
    },
}
_PROFILE: Final[dict[str, Any]] = {
    "type": "object",
    "required": ["user_key", "as_of", "known", "complete_age_ms", "newest_event_age_ms", "features"],
    "properties": {
        "user_key": {"type": "string"},
        "as_of": {"type": "string", "format": "date-time"},
        "known": {"type": "boolean", "description": "Whether there is any event of this user in the store."},
        "complete_age_ms": {"type": ["number", "null"]},
        "newest_event_age_ms": {"type": ["number", "null"]},
        "features": {"type": "object", "additionalProperties": {"type": "object"}},
    },
}
_READY: Final[dict[str, Any]] = {
    "type": "object",
    "required": ["ready", "model_version", "catalogue", "problems"],
    "properties": {
        "ready": {"type": "boolean"},
        "model_version": {"type": ["string", "null"]},
        "catalogue": {
            "type": "object",
            "required": ["items", "origin"],
            "properties": {"items": {"type": "integer", "minimum": 0}, "origin": {"type": "string"}},
        },
        "problems": {"type": "object", "additionalProperties": {"type": "string"}, "description": "By part."},
    },
}
_SCHEMAS: Final = {"Problem": PROBLEM_SCHEMA, "Slate": _SLATE, "Profile": _PROFILE, "Readiness": _READY}
_EXAMPLE: Final = {
    "request_id": "0b0f3c1e-5f0e-4c3e-9d0a-0f5a3f3f8a11",
    "items": [{"item_id": "i-4711", "score": 0.83, "source": "two_tower", "position": 0}],
    "model_version": "20260131T120000-000000-default",
    "features_age_ms": 41.7,
    "as_of": "2026-01-31T12:00:00.250000+00:00",
    "degraded": [],
    "explored": False,
    "took_ms": 2.4,
}
_SHED: Final = {429: problem_docs("More requests than can be answered in time. See Retry-After.")}


def _question(summary: str, description: str, body: str, examples: dict[str, Any]) -> dict[str, Any]:
    slate = {"schema": {"$ref": "#/components/schemas/Slate"}, "example": _EXAMPLE}
    content = {
        "schema": {"$ref": f"#/components/schemas/{body}"},
        "examples": {name: {"value": value} for name, value in examples.items()},
    }
    return {
        "summary": summary,
        "description": description,
        "responses": {
            200: {"description": "The slate.", "content": {"application/json": slate}},
            **REFUSALS,
            **_SHED,
            422: problem_docs("A field is missing or wrong."),
        },
        "openapi_extra": {"requestBody": {"required": True, "content": {"application/json": content}}},
    }


RECOMMEND_DOCS: Final = _question(
    "Recommend items to a user",
    "Always a full slate of min(n, eligible) items inside the deadline; `degraded` names what was missing.",
    "RecommendIn",
    {
        "known user": {"user_id": "u-17", "n": 10, "exclude": ["i-1"]},
        "visitor": {"anonymous_id": "a-93", "context": {"device": "phone"}, "explain": True},
        "filtered": {"user_id": "u-17", "filter": {"category": ["shoes"], "max_price": 80}, "deadline_ms": 50},
    },
)
RANK_DOCS: Final = _question(
    "Put given items in order for a user",
    "A feed, search results. Items that are not available are left out; those that the catalogue does not know come last, unscored.",
    "RankIn",
    {"search results": {"user_id": "u-17", "items": ["i-4711", "i-4712", "i-4713"]}},
)
SIMILAR_DOCS: Final = _question(
    "Items like an item, or like a set",
    "By content and by what people turn to next. The given items themselves are never among them.",
    "SimilarIn",
    {"one item": {"items": ["i-4711"], "n": 10}, "a basket": {"items": ["i-4711", "i-4712"], "user_id": "u-17"}},
)
PROFILE_DOCS: Final[dict[str, Any]] = {
    "summary": "What the store knows of a user, as of now",
    "description": "Every feature that a request would read, and how old it is. Of a visitor the key is `anon:` and the anonymous_id.",
    "responses": {
        200: {
            "description": "Features by view.",
            "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Profile"}}},
        },
        401: REFUSALS[401],
        404: problem_docs("A key holds no line break."),
        **_SHED,
        422: problem_docs("No event can have made this key."),
        503: problem_docs("The online store does not answer. See Retry-After."),
    },
}
_READINESS: Final = {"application/json": {"schema": {"$ref": "#/components/schemas/Readiness"}}}
HEALTH_DOCS: Final[dict[str, Any]] = {"summary": "Is the process alive? Needs no key.", "openapi_extra": NO_KEY_NEEDED}
READINESS_DOCS: Final[dict[str, Any]] = {
    "summary": "What is in service, and what is wrong? Needs no key.",
    "responses": {
        200: {"description": "Requests are answered.", "content": _READINESS},
        503: {"description": "The catalogue and the model are still being read.", "content": _READINESS},
    },
    "openapi_extra": NO_KEY_NEEDED,
}
METRICS_DOCS: Final[dict[str, Any]] = {
    "summary": "Prometheus metrics.",
    "response_class": PlainTextResponse,
    "responses": {401: REFUSALS[401]},
}
