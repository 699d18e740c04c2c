"""Prometheus metrics of the two applications: what is counted, in what unit, under which labels.

Labels take few values, all of them ours: no user, no item, no key. docs/metrics.md lists the metrics and alerts on them.
"""

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Final

from prometheus_client import CollectorRegistry, generate_latest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from headrace import names
from headrace.settings import MICROS
from serving.cells import Cells

if TYPE_CHECKING:
    from serving.candidates import Slate

SECONDS: Final = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0)
PART_SECONDS: Final = (0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
AGE_SECONDS: Final = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0, 3600.0)
SLATE_ITEMS: Final = (0, 1, 5, 10, 20, 50, 100, 200, 500, 1_000)
GROUP_EVENTS: Final = (1, 2, 5, 10, 50, 100, 500, 1_000, 5_000)

ENDPOINTS: Final = {
    "/v1/recommend": "recommend",
    "/v1/rank": "rank",
    "/v1/similar": "similar",
    "/v1/items": "items",
    "/metrics": "metrics",
    "/healthz": "health",
    "/readyz": "health",
}
PROFILE_PREFIX: Final = "/v1/users/"
DROPPED: Final = ("queue_full", "closed", "log_unavailable", "failed")
LONGEST_VERSION: Final = 60


class CollectorMetrics:
    def __init__(self, folder: Path | None = None) -> None:
        """`folder`: where all replicas of this node count; without one, each counts for itself."""
        cells = Cells(names.COLLECTOR_APP, folder)
        self.registry = _registry_of(cells)
        self.accepted = cells.counter("headrace_events_accepted", "Events acknowledged: on disk in the log.")
        self.refused = cells.counters("headrace_events_refused", "Events refused, by field.", "field")
        self.unavailable = cells.counter("headrace_events_unavailable", "Requests answered 503: log down or full.")
        self.append_seconds = cells.histogram("headrace_log_append_seconds", "Time of one append to the log.", SECONDS)
        self.group_records = cells.histogram("headrace_log_group_events", "Events in one append.", GROUP_EVENTS)


class ItemsMetrics:
    """Of `POST /v1/items`, counted with those of the application that it is part of."""

    def __init__(self, cells: Cells) -> None:
        self.accepted = cells.counter(
            "headrace_items_accepted", "Operations on items acknowledged: on disk in the log."
        )
        self.refused = cells.counters("headrace_items_refused", "Operations on items refused, by field.", "field")
        self.unavailable = cells.counter(
            "headrace_items_unavailable", "Requests to /v1/items answered 503: log down or full."
        )
        self.append_seconds = cells.histogram(
            "headrace_items_append_seconds", "Time of one append of operations on items to the log.", SECONDS
        )
        self.group_records = cells.histogram(
            "headrace_items_group_operations", "Operations on items in one append.", GROUP_EVENTS
        )


class RecommenderMetrics:
    """`record` is the one call that an answered request makes; `CountRequests` counts answers of every status."""

    def __init__(self, folder: Path | None = None) -> None:
        """`folder`: where all replicas of this node count; without one, each counts for itself."""
        cells = Cells(names.RECOMMENDER_APP, folder)
        self.registry = _registry_of(cells)
        self.items_door = ItemsMetrics(cells)
        self.requests = cells.counters(
            "headrace_requests", "Requests, by endpoint and status of the answer.", "endpoint", "status"
        )
        self.seconds = cells.histograms(
            "headrace_request_seconds",
            "Time from a request's arrival to its slate, by endpoint.",
            "endpoint",
            bounds=SECONDS,
        )
        self.stage_seconds = cells.histograms(
            "headrace_stage_seconds", "Time of one stage of a request.", "stage", bounds=PART_SECONDS
        )
        self.source_seconds = cells.histograms(
            "headrace_source_seconds", "Time of one source of candidates.", "source", bounds=PART_SECONDS
        )
        self.found = cells.counters(
            "headrace_source_candidates", "Candidates found, by source, before duplicates are dropped.", "source"
        )
        self.removed = cells.counters("headrace_candidates_removed", "Candidates filtered away, by reason.", "reason")
        self.items = cells.counters(
            "headrace_items_shown", "Items in slates, by the source that found them first.", "source"
        )
        self.slate_items = cells.histograms(
            "headrace_slate_items", "Items in one slate, by endpoint.", "endpoint", bounds=SLATE_ITEMS
        )
        self.slates_degraded = cells.counters(
            "headrace_slates_degraded", "Slates answered with something missing, by endpoint.", "endpoint"
        )
        self.slates_explored = cells.counters(
            "headrace_slates_explored", "Slates in an order that was drawn, by endpoint.", "endpoint"
        )
        self.degraded = cells.counters(
            "headrace_degraded", "What was missing from slates, by stage and reason.", "reason"
        )
        self.shed = cells.counters("headrace_requests_shed", "Requests shed under overload, by reason.", "reason")
        self.queue = cells.gauge(
            "headrace_admission_queue_requests", "Requests taken in and not answered yet; of all replicas.", sum
        )
        self.feature_age = cells.histogram(
            "headrace_features_age_seconds",
            "Age of the user's features in a request: its time minus the time up to which they are complete.",
            AGE_SECONDS,
        )
        self.feature_last_age = cells.gauge(
            "headrace_features_last_age_seconds", "Age of the user's features in the last request."
        )
        self.change_feed_lag = cells.gauge(
            "headrace_change_feed_lag_seconds",
            "How far a replica's item features are behind the store's; of the one furthest behind.",
        )
        self.catalogue_items = cells.gauge("headrace_catalogue_items", "Items known to a replica.")
        self.index_items = cells.gauge("headrace_index_items", "Items in the retrieval index in service.")
        self.model_info = cells.gauges(
            "headrace_model_info", "1 for each model version in service on a replica.", "version"
        )
        self.swaps = cells.counter("headrace_model_swaps", "Models put in service.")
        self.refused_bundles = cells.counter("headrace_model_refused", "Bundles refused.")
        self.impressions_logged = cells.counter("headrace_impressions_logged", "Impressions on disk in the log.")
        self.impressions_dropped = cells.counters(
            "headrace_impressions_dropped", "Impressions that were not logged, by reason.", "reason"
        )
        for reason in DROPPED:  # from zero on: the first one dropped must be seen as an increase
            self.impressions_dropped.labels(reason)
        self._version: str | None = None
        self._lock = cells.lock

    def count_request(self, endpoint: str, status: str) -> None:
        """Of every answer."""
        self.requests[endpoint, status].inc()

    def record(self, endpoint: str, slate: "Slate") -> None:
        """All that one answered request says of itself. `endpoint` is a value of ENDPOINTS."""
        trace = slate.trace
        shown = Counter(slate.sources)
        with self._lock:
            self.seconds[endpoint].add(trace.seconds)
            self.slate_items[endpoint].add(len(slate.item_ids) + len(slate.unknown))
            for stage in trace.stages:
                self.stage_seconds[stage.name].add(stage.seconds)
                for reason, number in stage.removed.items():
                    self.removed[reason].add(number)
            for source in trace.sources:
                self.source_seconds[source.name].add(source.seconds)
                self.found[source.name].add(source.count)
            for name, number in shown.items():
                self.items[name].add(number)
            if trace.degraded:
                self.slates_degraded[endpoint].add()
                for reason in trace.degraded:
                    self.degraded[reason].add()
            if slate.is_explored:
                self.slates_explored[endpoint].add()
            if slate.features_age_us is not None:
                age_s = slate.features_age_us / MICROS
                self.feature_age.add(age_s)
                self.feature_last_age.set(age_s)

    def model_in_service(self, version: str | None) -> None:
        """This version and no other is what this replica answers with; None for no model."""
        if self._version is not None:
            self.model_info.remove(self._version)
        self._version = None if version is None else version[:LONGEST_VERSION]
        if self._version is not None:
            self.model_info.labels(self._version).set(1)


class CountRequests:
    """Counts each request by endpoint and status, whoever answers it: a handler, a check of keys, the framework."""

    def __init__(self, app: ASGIApp, metrics: RecommenderMetrics) -> None:
        self._app = app
        self._count = metrics.count_request

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status = "500"  # what a server says for an application that raised

        async def note_status(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = str(message["status"])
            await send(message)

        try:
            await self._app(scope, receive, note_status)
        finally:
            self._count(endpoint_of(scope["path"]), status)


def endpoint_of(path: str) -> str:
    """A label with few values: ids in a path, and paths that do not exist, must not become metrics."""
    return ENDPOINTS.get(path) or ("profile" if path.startswith(PROFILE_PREFIX) else "other")


def exposition(registry: CollectorRegistry) -> bytes:
    """The text format that Prometheus reads."""
    return generate_latest(registry)


def _registry_of(cells: Cells) -> CollectorRegistry:
    registry = CollectorRegistry()
    registry.register(cells)
    return registry
