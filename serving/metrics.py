"""Prometheus metrics of the two applications. Each owns a registry, so that two in one process do not meet."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

MILLISECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0)


class CollectorMetrics:
    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.accepted = Counter(
            "headrace_events_accepted", "Events acknowledged: on disk in the log.", registry=self.registry
        )
        self.refused = Counter(
            "headrace_events_refused", "Events refused, by field.", ["field"], registry=self.registry
        )
        self.unavailable = Counter(
            "headrace_events_unavailable", "Requests answered 503: log down or full.", registry=self.registry
        )
        self.append_seconds = Histogram(
            "headrace_log_append_seconds",
            "Time of one append to the log.",
            buckets=MILLISECONDS,
            registry=self.registry,
        )
        self.group_records = Histogram(
            "headrace_log_group_events",
            "Events in one append.",
            buckets=(1, 2, 5, 10, 50, 100, 500, 1_000, 5_000),
            registry=self.registry,
        )


class ItemsMetrics:
    """Of `POST /v1/items`, in the registry of the application that it is part of."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.accepted = Counter(
            "headrace_items_accepted", "Operations on items acknowledged: on disk in the log.", registry=registry
        )
        self.refused = Counter(
            "headrace_items_refused", "Operations on items refused, by field.", ["field"], registry=registry
        )
        self.unavailable = Counter(
            "headrace_items_unavailable", "Requests to /v1/items answered 503: log down or full.", registry=registry
        )
        self.append_seconds = Histogram(
            "headrace_items_append_seconds",
            "Time of one append of operations on items to the log.",
            buckets=MILLISECONDS,
            registry=registry,
        )
        self.group_records = Histogram(
            "headrace_items_group_operations",
            "Operations on items in one append.",
            buckets=(1, 2, 5, 10, 50, 100, 500, 1_000, 5_000),
            registry=registry,
        )


class RecommenderMetrics:
    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.door = ItemsMetrics(self.registry)
        self.requests = Counter(
            "headrace_recommend_requests", "Recommendations, by status.", ["status"], registry=self.registry
        )
        self.seconds = Histogram(
            "headrace_recommend_seconds", "Time of one recommendation.", buckets=MILLISECONDS, registry=self.registry
        )
        self.stage_seconds = Histogram(
            "headrace_recommend_stage_seconds",
            "Time of one stage.",
            ["stage"],
            buckets=MILLISECONDS,
            registry=self.registry,
        )
        self.removed = Counter(
            "headrace_recommend_removed", "Candidates filtered away, by reason.", ["reason"], registry=self.registry
        )
        self.items = Counter(
            "headrace_recommend_items",
            "Items shown, by the source that found them.",
            ["source"],
            registry=self.registry,
        )
        self.degraded = Counter(
            "headrace_recommend_degraded",
            "Recommendations answered with less, by what was missing.",
            ["reason"],
            registry=self.registry,
        )
        self.impressions_logged = Counter(
            "headrace_impressions_logged", "Impressions on disk in the log.", registry=self.registry
        )
        self.impressions_dropped = Counter(
            "headrace_impressions_dropped",
            "Impressions that were not logged, by reason.",
            ["reason"],
            registry=self.registry,
        )
        self.swaps = Counter("headrace_model_swaps", "Models put in service.", registry=self.registry)
        self.refused_bundles = Counter("headrace_model_refused", "Bundles refused.", registry=self.registry)
        self.catalogue_items = Gauge("headrace_catalogue_items", "Items known to this replica.", registry=self.registry)
        self.feature_age = Gauge(
            "headrace_features_age_seconds",
            "Age of the user's features in the last recommendation.",
            registry=self.registry,
        )


def exposition(registry: CollectorRegistry) -> bytes:
    """The text format that Prometheus reads."""
    return generate_latest(registry)
