"""The recommendation API: parse, call the pipeline in a thread, answer, then log what was shown."""

import logging
import threading
import time
import uuid
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any, Final

import anyio.to_thread
from fastapi import Depends, FastAPI, Request
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from starlette.responses import Response

from headrace import names
from headrace.clock import Clock, from_micros, system_clock
from headrace.events import Context, Identifier, check_user, first_error
from headrace.identity import user_key
from headrace.settings import MICROS, Settings
from serving.auth import Keys, require
from serving.candidates import RecommendationRequest, Slate, Trace
from serving.collector import build_collector, collector_openapi
from serving.committer import log_writer
from serving.impressions import ImpressionLog, Shown
from serving.items import add_items_route
from serving.metrics import RecommenderMetrics, exposition
from serving.pipeline import last_resort, recommend
from serving.refresher import Live, Refresher
from serving.web import PROBLEM_SCHEMA, Problem, add_docs, json_response, new_app, read_json, with_security

logger = logging.getLogger(__name__)

MAX_ITEMS: Final = 1_000
MAX_EXCLUDED: Final = 5_000
THREADS: Final = 8
MAX_IN_FLIGHT: Final = 128
LOG_FAILURES_EVERY_S: Final = 10.0


class RecommendIn(BaseModel):
    """Who asks, and for what."""

    model_config = ConfigDict(extra="forbid", strict=True)

    user_id: Identifier | None = None
    anonymous_id: Identifier | None = None
    session_id: Identifier | None = None
    n: int = Field(20, ge=1, le=MAX_ITEMS, description="Items wanted.")
    context: Context | None = None
    exclude: list[Identifier] = Field(default_factory=list, max_length=MAX_EXCLUDED, description="Items not to show.")
    deadline_ms: float | None = Field(None, gt=0, le=60_000, description="Time budget; left out: HEADRACE_DEADLINE_MS.")
    stages: bool = Field(False, description="Tell counts and times of each stage.")

    @model_validator(mode="after")
    def _check_user(self) -> "RecommendIn":
        check_user(self.user_id, self.anonymous_id)
        return self

    @property
    def who(self) -> dict[str, str]:
        ids = {"user_id": self.user_id, "anonymous_id": self.anonymous_id, "session_id": self.session_id}
        return {name: value for name, value in ids.items() if value is not None}


def parse_request(body: object) -> RecommendIn:
    """Raises a 422 `Problem` naming the field and the reason."""
    try:
        return RecommendIn.model_validate(body)
    except ValidationError as error:
        field, reason = first_error(error)
        where = field[:200] or "the body"
        raise Problem(422, f"{where}: {reason}", "correct the field; see /docs for what is allowed") from error


class Recommender:
    """Answers requests in threads: the pipeline, its last resort, metrics, impressions."""

    def __init__(
        self, settings: Settings, live: Live, impressions: ImpressionLog, metrics: RecommenderMetrics, clock: Clock
    ) -> None:
        self._settings = settings
        self._live = live
        self._impressions = impressions
        self._metrics = metrics
        self._clock = clock
        self._age_bound_us = int(settings.feature_age_bound_s * MICROS)
        self._last_logged: dict[str, float] = {}

    def answer(self, asked: RecommendIn, trace: Trace) -> dict[str, Any]:
        """The body of the answer. Never fails for lack of a store, a model or a catalogue."""
        user = user_key(asked.user_id, asked.anonymous_id)
        request = RecommendationRequest(user, asked.n, frozenset(asked.exclude))
        state, readers = self._live.state, self._live.readers
        reader = readers.request if readers else None
        try:
            slate = recommend(request, state, reader, self._clock, self._age_bound_us, trace)
        except Exception:
            logger.exception("the request path failed; answering with the order of popularity")
            slate = last_resort(request, state, self._clock, trace)
        request_id = str(uuid.uuid4())
        self._impressions.add(Shown(slate, request_id, asked.who, asked.context, self._clock()))
        self._count(slate)
        return body_of(slate, request_id, with_stages=asked.stages)

    def _count(self, slate: Slate) -> None:
        trace = slate.trace
        for reason in trace.degraded:
            self._metrics.degraded.labels(reason).inc()
        for stage in trace.stages:
            self._metrics.stage_seconds.labels(stage.name).observe(stage.seconds)
            for reason, number in stage.removed.items():
                self._metrics.removed.labels(reason).inc(number)
        for candidate in slate.items:
            self._metrics.items.labels(candidate.source).inc()
        if slate.features_age_us is not None:
            self._metrics.feature_age.set(slate.features_age_us / MICROS)
        self._metrics.seconds.observe(trace.seconds)
        for reason, error in trace.errors.items():
            if time.monotonic() - self._last_logged.get(reason, -LOG_FAILURES_EVERY_S) >= LOG_FAILURES_EVERY_S:
                self._last_logged[reason] = time.monotonic()
                logger.warning("%s: %s: %s", reason, type(error).__name__, error)


def body_of(slate: Slate, request_id: str, *, with_stages: bool) -> dict[str, Any]:
    body: dict[str, Any] = {
        "request_id": request_id,
        "items": [
            {"item_id": each.item_id, "score": each.score, "source": each.source, "position": position}
            for position, each in enumerate(slate.items)
        ],
        "model_version": slate.model_version,
        "features_age_ms": None if slate.features_age_us is None else slate.features_age_us / 1_000,
        "as_of": from_micros(slate.as_of_us).isoformat(timespec="microseconds"),
        "degraded": slate.trace.degraded,
        "took_ms": round(slate.trace.seconds * 1_000, 3),
    }
    if with_stages:
        body["stages"] = [
            {"stage": stage.name, "count": stage.count, "removed": stage.removed, "ms": round(stage.seconds * 1_000, 3)}
            for stage in slate.trace.stages
        ]
    return body


def build_recommender(settings: Settings, clock: Clock = system_clock) -> FastAPI:
    """The application, to be mounted at `/`. Loads model and catalogue before it returns."""
    metrics = RecommenderMetrics()
    refresher = Refresher(settings, clock, metrics)
    impressions = ImpressionLog(log_writer(settings), metrics)
    recommender = Recommender(settings, refresher.live, impressions, metrics, clock)
    threads = anyio.CapacityLimiter(THREADS)
    places = threading.Semaphore(MAX_IN_FLIGHT)
    may_read = require(Keys(settings.read_keys, "HEADRACE_READ_KEYS"))
    refresher.refresh_once()

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        refresher.start()
        yield
        await items.close()
        with ThreadPoolExecutor(2) as closing:
            closing.submit(refresher.close)
            closing.submit(impressions.close)

    app = new_app("Headrace", "Behaviour in, recommendations out.", lifespan=lifespan)
    add_docs(app, may_read, lambda: openapi_of(app, settings))
    items = add_items_route(app, settings, clock, metrics)

    @app.post("/v1/recommend", dependencies=[Depends(may_read)], **_RECOMMEND_DOCS)
    async def post_recommend(request: Request) -> Response:
        trace = Trace(settings.deadline_ms)
        asked = parse_request(await read_json(request, settings.max_body_bytes))
        if asked.deadline_ms is not None:
            trace.allow(asked.deadline_ms)
        if not places.acquire(blocking=False):
            metrics.requests.labels("429").inc()
            raise Problem(
                429, "too many requests at once", "try again after Retry-After seconds", headers={"Retry-After": "1"}
            )
        try:
            body = await anyio.to_thread.run_sync(recommender.answer, asked, trace, limiter=threads)
        finally:
            places.release()
        metrics.requests.labels("200").inc()
        return json_response(body)

    @app.get("/healthz", summary="Is the process alive? Needs no key.")
    async def healthz() -> dict[str, bool]:
        return {"ok": True}

    @app.get("/readyz", summary="What is in service, and what is wrong? Needs no key.")
    async def readyz() -> Response:
        live = refresher.live
        return json_response(readiness(live), 200 if live.refreshed else 503)

    @app.get("/metrics", dependencies=[Depends(may_read)], summary="Prometheus metrics.")
    def get_metrics() -> Response:
        return Response(exposition(metrics.registry), media_type="text/plain; version=0.0.4")

    return app


def readiness(live: Live) -> dict[str, Any]:
    state = live.state
    return {
        "ready": live.refreshed,
        "model_version": state.model.version if state.model else None,
        "catalogue": {"items": len(state.catalogue.popular), "origin": state.catalogue.origin},
        "problems": dict(live.problems),
    }


def openapi_of(app: FastAPI, settings: Settings) -> dict[str, Any]:
    """One document for both applications: what a client of the stack may send."""
    document = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
    schema = RecommendIn.model_json_schema(ref_template="#/components/schemas/{model}")
    collector = collector_openapi(build_collector(settings))
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    schemas |= (
        collector["components"]["schemas"]
        | schema.pop("$defs", {})
        | {"RecommendIn": schema, "Problem": PROBLEM_SCHEMA}
    )
    document["paths"][names.EVENTS_PATH] = collector["paths"]["/"]
    return with_security(document)


_PROBLEM = {"application/json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
_RECOMMEND_DOCS: Final[dict[str, Any]] = {
    "summary": "Recommend items to a user",
    "description": "Always a full slate of min(n, eligible) items; `degraded` names what was missing.",
    "responses": {
        200: {
            "description": "Items best first, each with its score and the source that found it.",
            "content": {
                "application/json": {
                    "example": {
                        "request_id": "0b0f3c1e-5f0e-4c3e-9d0a-0f5a3f3f8a11",
                        "items": [{"item_id": "i-4711", "score": 0.83, "source": "two_tower", "position": 0}],
                        "model_version": "3",
                        "features_age_ms": 41.7,
                        "as_of": "2026-01-31T12:00:00.250000+00:00",
                        "degraded": [],
                        "took_ms": 9.4,
                    }
                }
            },
        },
        400: {"description": "Not JSON.", "content": _PROBLEM},
        401: {"description": "No key, or a wrong one.", "content": _PROBLEM},
        422: {"description": "A field is missing or wrong.", "content": _PROBLEM},
        429: {"description": "Too many requests at once. See Retry-After.", "content": _PROBLEM},
    },
    "openapi_extra": {
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {
                    "schema": {"$ref": "#/components/schemas/RecommendIn"},
                    "examples": {
                        "known user": {"value": {"user_id": "u-17", "n": 10, "exclude": ["i-1"]}},
                        "visitor": {"value": {"anonymous_id": "a-93", "context": {"device": "phone"}, "stages": True}},
                    },
                }
            },
        }
    },
}
