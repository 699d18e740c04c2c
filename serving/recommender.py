"""The recommendation API: parse, let the engine answer in its turn, then log what was shown."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from fastapi import FastAPI, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive

from headrace.clock import Clock, system_clock
from headrace.identity import shard_of
from headrace.logs import new_request_id
from headrace.settings import MICROS, Settings
from headrace.stores.tokens import EVENTS, read_token
from serving import candidates as c
from serving.answers import body_of, profile_of
from serving.api import AskIn, Question, RankIn, RecommendIn, SimilarIn, check_user_key, parse
from serving.auth import Keys, require
from serving.candidates import RecommendationRequest, Slate, Trace
from serving.committer import log_writer
from serving.engine import Engine, Pace, nothing
from serving.entry import ShortWay, way_of
from serving.explore import Exploration
from serving.follower import Follower
from serving.hydrate import hydrate, wanted
from serving.impressions import ImpressionLog, Shown
from serving.interfaces import FeatureReader
from serving.items import add_items_route
from serving.metrics import CountRequests, RecommenderMetrics, exposition
from serving.openapi import (
    HEALTH_DOCS,
    METRICS_DOCS,
    PROFILE_DOCS,
    RANK_DOCS,
    READINESS_DOCS,
    RECOMMEND_DOCS,
    SIMILAR_DOCS,
    openapi_of,
)
from serving.pipeline import RANKED, Means, answer, last_resort, popular_slate
from serving.refresher import Refresher
from serving.replica import Live, Replica
from serving.seen import Seen
from serving.state import ServingState
from serving.web import JSON_TYPE, Problem, add_docs, json_response, new_app, read_json

logger = logging.getLogger(__name__)

LOG_FAILURES_EVERY_S: Final = 10.0
FALLBACK: Final = "fallback"
SHED_WAITS_S: Final = 0.05
"""Before it hears so: a client that comes back at once must not take the processor from the requests that were taken in."""
NOTED_S: Final = 0.5
MOST_SHED_WAITING: Final = 500
"""Beyond so many at a time it hears at once."""
QUESTIONS: Final = (
    (c.RECOMMEND, RecommendIn, RECOMMEND_DOCS),
    (c.RANK, RankIn, RANK_DOCS),
    (c.SIMILAR, SimilarIn, SIMILAR_DOCS),
)
# What work is expected to take before any was done.
_FULL_S, _CHEAP_S, _RANK_S = 0.005, 0.0005, 0.002
_LEAST_WAIT_S: Final = 0.01
"""Enough to look once, whatever a stall has made of the estimate."""
_ANY_AGE_US: Final = 2**62
_WAIT_SHARE: Final = 0.75
"""Of the time left, what waiting for a write may take: a request that has waited must still be answered."""


@dataclass(frozen=True)
class Answer:
    """What a client is told, and what there is to note of it."""

    asked: Question
    request: RecommendationRequest
    slate: Slate
    request_id: str
    body: bytes


class Recommender:
    """Answers requests, in the engine's thread: the pipeline, its last resort, then metrics and impressions."""

    def __init__(
        self, settings: Settings, live: Live, impressions: ImpressionLog, metrics: RecommenderMetrics, clock: Clock
    ) -> None:
        self._live = live
        self._impressions = impressions
        self._metrics = metrics
        self._clock = clock
        self._age_bound_us = int(settings.feature_age_bound_s * MICROS)
        self._exploration = Exploration(settings.exploration, settings.exploration_temperature)
        self._last_logged: dict[str, float] = {}
        self._rank = Pace(_RANK_S)

    @property
    def reader(self) -> FeatureReader | None:
        return self._live.readers.request if self._live.readers else None

    def ask_store(self, user_key: str | None) -> Any | None:
        """So that the user's rows are here when the request has its turn; called by the event loop, in the order of the turns."""
        reader = self.reader
        return reader.ask(wanted(user_key)) if reader is not None and user_key is not None else None

    def answer(self, asked: Question, request: RecommendationRequest, trace: Trace, sent: Any | None) -> Answer:
        """Never fails for lack of a store, a model or a catalogue."""
        request_id = new_request_id()
        state = self._live.state
        means = Means(
            self.reader,
            self._clock,
            self._age_bound_us,
            self._rank.seconds,
            asked.explain,
            sent,
            self._exploration,
            request_id,
        )
        try:
            slate = answer(request, state, means, trace)
            self._note_ranking(request, state, trace)
        except Exception:
            logger.exception("the request path failed; answering with the order of popularity")
            slate = last_resort(request, state, self._clock, trace)
        return _told(asked, request, slate, request_id)

    def _note_ranking(self, request: RecommendationRequest, state: ServingState, trace: Trace) -> None:
        """What ranking as many as RANKED takes. One that was left out counts as nothing, so that the estimate comes down after a stall."""
        if request.kind != c.SIMILAR and state.model is not None:
            ranked = next(stage for stage in trace.stages if stage.name == "rank")
            self._rank.note(ranked.seconds / max(1.0, ranked.count / RANKED))

    def answer_cheaply(self, asked: Question, request: RecommendationRequest, trace: Trace) -> Answer:
        """Under overload: the order of popularity, and said so."""
        request_id = new_request_id()
        trace.degrade(c.OVERLOADED)
        return _told(asked, request, popular_slate(request, self._live.state, self._clock, trace), request_id)

    def profile(self, user_key: str, trace: Trace, sent: Any | None) -> bytes:
        """Raises a 503 `Problem` where the store cannot be read."""
        user, _ = hydrate(user_key, self._live.state, self.reader, self._clock, _ANY_AGE_US, trace, sent)
        if user.rows is None:
            late = c.LATE_FEATURES in trace.degraded
            what = "no time was left to ask the online store" if late else "the online store does not answer"
            raise Problem(503, what, "try again later", headers={"Retry-After": "1"})
        return profile_of(user_key, user, user.rows.complete_us, user.rows.newest_us)

    def note(self, answer: Answer) -> None:
        """What was shown into the log, what it took into the metrics, what failed into the replica's log."""
        slate, asked = answer.slate, answer.asked
        if answer.request.user_key is not None:
            self._impressions.add(Shown(slate, answer.request_id, asked.who, asked.context, self._clock()))
        self._metrics.record(answer.request.kind, slate)
        for reason, error in slate.trace.errors.items():
            if time.monotonic() - self._last_logged.get(reason, -LOG_FAILURES_EVERY_S) >= LOG_FAILURES_EVERY_S:
                self._last_logged[reason] = time.monotonic()
                logger.warning("%s: %s: %s", reason, type(error).__name__, error)


def _told(asked: Question, request: RecommendationRequest, slate: Slate, request_id: str) -> Answer:
    return Answer(asked, request, slate, request_id, body_of(slate, request_id, explain=asked.explain))


class Door:
    """Takes requests in as long as they can be expected to be answered in time; the others are shed, or answered cheaply."""

    def __init__(
        self, settings: Settings, recommender: Recommender, engine: Engine, seen: Seen, metrics: RecommenderMetrics
    ) -> None:
        self._settings = settings
        self._recommender = recommender
        self._engine = engine
        self._seen = seen
        self._metrics = metrics
        self._full, self._cheap, self._profile = Pace(_FULL_S), Pace(_CHEAP_S), Pace(_CHEAP_S)
        self._shed_waiting = 0
        self._least = self._cheap if settings.overload == FALLBACK else self._full

    async def look(self, trace: Trace) -> None:
        """Before the body is read: raises a 429 `Problem` where not even the cheapest answer would be in time.

        A body comes with its headers, as a rule: nothing else is then taken in until its request is. One that is late waits for its client
        and not for us, and is looked at again once it is there.
        """
        if not self._engine.fits(self._least.seconds, trace.left_s()):
            await self._shed("queue")

    async def answer(self, asked: Question, trace: Trace) -> bytes:
        """Raises a 429 `Problem`."""
        if asked.deadline_ms is not None:
            trace.allow(asked.deadline_ms)
        if asked.after is not None:
            await self._wait_until_seen(asked, asked.after, trace)
        request = asked.to_request()
        recommender = self._recommender
        if self._engine.fits(self._full.seconds, trace.left_s()):
            pace, work = (
                self._full,
                partial(recommender.answer, asked, request, trace, recommender.ask_store(request.user_key)),
            )
        else:
            pace, work = self._cheap, partial(recommender.answer_cheaply, asked, request, trace)
            if self._settings.overload != FALLBACK or not self._engine.fits(pace.seconds, trace.left_s()):
                await self._shed("deadline")
        return (await self._engine.answer(work, pace, self._note)).body

    def _note(self, answer: Answer) -> None:
        self._recommender.note(answer)
        self._metrics.queue.set(self._engine.waiting - 1)

    async def profile(self, user_key: str, trace: Trace) -> bytes:
        """Raises a 429 `Problem`."""
        if not self._engine.fits(self._profile.seconds, trace.left_s()):
            await self._shed("deadline")
        sent = self._recommender.ask_store(user_key)
        return await self._engine.answer(partial(self._recommender.profile, user_key, trace, sent), self._profile)

    async def _wait_until_seen(self, asked: AskIn, token: str, trace: Trace) -> None:
        try:
            kind, positions = read_token(token)
        except ValueError as error:
            raise Problem(422, f"after: {error}", "or leave it out, and see what there is") from error
        left_s = trace.left_s()
        within_s = min(_WAIT_SHARE * left_s, max(_LEAST_WAIT_S, left_s - 2 * self._full.seconds))
        if kind == EVENTS and asked.user_key is not None:
            is_seen = await self._seen.events(shard_of(asked.user_key, self._settings.shards), positions, within_s)
        else:
            is_seen = await self._seen.items(positions, within_s)
        if not is_seen:
            trace.degrade(c.NOT_SEEN)

    async def _shed(self, reason: str) -> None:
        self._metrics.shed[reason].inc()
        if self._shed_waiting < MOST_SHED_WAITING:
            self._shed_waiting += 1
            try:
                await asyncio.sleep(SHED_WAITS_S)
            finally:
                self._shed_waiting -= 1
        raise Problem(
            429, "too many requests at once", "try again after Retry-After seconds", headers={"Retry-After": "1"}
        )


def build_recommender(settings: Settings, clock: Clock = system_clock) -> FastAPI:
    """The application, to be mounted at `/`. Loads model and catalogue before it returns."""
    metrics = RecommenderMetrics(settings.metrics_dir)
    engine = Engine()
    replica = Replica(engine)
    refresher, follower = Refresher(settings, replica, clock, metrics), Follower(replica, clock, metrics)
    impressions = ImpressionLog(log_writer(settings), metrics)
    recommender = Recommender(settings, replica.live, impressions, metrics, clock)
    seen = Seen(lambda: replica.live.readers.client if replica.live.readers else None, lambda: replica.reached)
    door = Door(settings, recommender, engine, seen, metrics)
    keys = Keys(settings.read_keys, "HEADRACE_READ_KEYS")
    may_read = require(keys)
    refresher.refresh_once()
    shard_of("", settings.shards)  # compiled at its first call, which no request should wait for

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        refresher.start()
        follower.start()
        yield
        await items.close()
        await asyncio.to_thread(follower.close)
        await asyncio.gather(asyncio.to_thread(refresher.close), asyncio.to_thread(impressions.close))
        engine.close()

    app = new_app("Headrace", "Behaviour in, recommendations out.", lifespan=lifespan)
    app.add_middleware(CountRequests, metrics=metrics)
    add_docs(app, may_read, lambda: openapi_of(app))
    items = add_items_route(app, settings, clock, metrics)

    async def ask(kind: type[Any], headers: Mapping[str, str], receive: Receive) -> bytes:
        trace = Trace(settings.deadline_ms)
        keys.check(headers)
        await door.look(trace)
        asked = parse(kind, await read_json(headers, receive, settings.max_body_bytes))
        return await door.answer(asked, trace)

    async def answered_before(_: Request) -> Response:
        raise AssertionError("questions take the short way; their routes are for the document")

    ways: dict[str, ASGIApp] = {}
    for kind, body, docs in QUESTIONS:
        path = f"/v1/{kind}"
        app.post(path, name=f"post_{kind}", **docs)(answered_before)
        ways[path] = way_of(partial(ask, body), partial(metrics.count_request, kind))
    app.add_middleware(ShortWay, ways=ways)
    app.state.ways = ways

    @app.get("/v1/users/{user_key:path}/profile", **PROFILE_DOCS)
    async def get_profile(request: Request, user_key: str) -> Response:
        may_read(request)
        check_user_key(user_key, request.scope.get("raw_path", b""))
        return Response(await door.profile(user_key, Trace(settings.deadline_ms)), media_type=JSON_TYPE)

    @app.get("/healthz", **HEALTH_DOCS)
    async def healthz() -> dict[str, bool]:
        return {"ok": True}

    @app.get("/readyz", **READINESS_DOCS)
    async def readyz() -> Response:
        live = replica.live
        return json_response(readiness(live), 200 if live.refreshed else 503)

    @app.get("/metrics", **METRICS_DOCS)
    async def get_metrics(request: Request) -> Response:
        may_read(request)
        # What was answered before is noted first, unless the engine is stuck, which is when metrics are wanted most.
        await asyncio.wait([asyncio.wrap_future(engine.change(nothing))], timeout=NOTED_S)
        text = await asyncio.to_thread(exposition, metrics.registry)
        return Response(text, media_type="text/plain; version=0.0.4")

    return app


def readiness(live: Live) -> dict[str, Any]:
    state = live.state
    return {
        "ready": live.refreshed,
        "model_version": state.model.version if state.model else None,
        "catalogue": {"items": len(state.catalogue), "origin": state.catalogue.origin},
        "problems": dict(live.problems),
    }
