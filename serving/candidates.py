"""What travels through the request path: a candidate, from its source to the answer, and a trace of the stages."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final, NamedTuple

# Sources, in the order in which they win a candidate that several of them find.
TWO_TOWER: Final = "two_tower"
NEIGHBOURS: Final = "neighbours"
TRENDING: Final = "trending"
NEW: Final = "new"
POPULAR: Final = "popular"

# Reasons for which a filter removes a candidate.
EXCLUDED: Final = "excluded"
UNAVAILABLE: Final = "unavailable"
UNKNOWN: Final = "unknown"
HIDDEN: Final = "hidden"

# What a slate can be degraded by. Each is named in the answer and counted.
UNKNOWN_USER: Final = "unknown_user"
UNKNOWN_HISTORY: Final = "unknown_item_in_history"
NO_USER_FEATURES: Final = "user_features_unavailable"
NO_ITEM_FEATURES: Final = "item_features_unavailable"
STALE_FEATURES: Final = "features_stale"
WAITING_FEATURES: Final = "features_await_backfill"
EMPTY_STORE: Final = "store_empty"
NO_MODEL: Final = "no_model"
RETRIEVAL_FAILED: Final = "retrieval_failed"
RANKER_FAILED: Final = "ranker_failed"
OVER_DEADLINE: Final = "deadline"
FROM_SNAPSHOT: Final = "catalogue_from_snapshot"
FROM_BUNDLE: Final = "catalogue_from_bundle"
NO_POPULARITY: Final = "popularity_unavailable"
STALE_CATALOGUE: Final = "catalogue_stale"
NO_CATALOGUE: Final = "catalogue_empty"
PIPELINE_FAILED: Final = "pipeline_failed"


class Candidate(NamedTuple):
    """An item, the source that found it first, and its score: of the source, or of the ranker once that has spoken."""

    item_id: str
    source: str
    score: float


@dataclass(frozen=True)
class RecommendationRequest:
    """A request, validated: `n` >= 1."""

    user_key: str
    n: int
    exclude: frozenset[str] = frozenset()


@dataclass
class Stage:
    """What a stage left (`count`), what it removed by reason, and how long it took."""

    name: str
    count: int = 0
    removed: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0


class Trace:
    """Stages of one request and what degraded it, against a deadline."""

    def __init__(self, deadline_ms: float, started: float | None = None) -> None:
        """`started` is a value of `time.perf_counter`: when the request arrived; now if not given."""
        self.started = time.perf_counter() if started is None else started
        self._deadline = self.started + deadline_ms / 1_000
        self.stages: list[Stage] = []
        self.sources: list[Stage] = []
        self._degraded: dict[str, BaseException | None] = {}

    def allow(self, deadline_ms: float) -> None:
        """Another time budget, still counted from the request's arrival."""
        self._deadline = self.started + deadline_ms / 1_000

    @contextmanager
    def stage(self, name: str) -> Iterator[Stage]:
        stage = Stage(name)
        self.stages.append(stage)
        begun = time.perf_counter()
        try:
            yield stage
        finally:
            stage.seconds = time.perf_counter() - begun

    @property
    def degraded(self) -> list[str]:
        return list(self._degraded)

    @property
    def errors(self) -> dict[str, BaseException]:
        """What went wrong, where an error stands behind a reason."""
        return {reason: error for reason, error in self._degraded.items() if error is not None}

    def degrade(self, reason: str, error: BaseException | None = None) -> None:
        self._degraded.setdefault(reason, error)

    def has_time(self) -> bool:
        """Whether the deadline is still ahead; names it as degraded when it is not."""
        if time.perf_counter() < self._deadline:
            return True
        self.degrade(OVER_DEADLINE)
        return False

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.started


@dataclass(frozen=True)
class Slate:
    """The answer: items best first, the time that features were read as of, and what was missing.

    `features_age_us` is that time minus the time up to which the user's shard is complete; None when not known.
    """

    items: list[Candidate]
    as_of_us: int
    features_age_us: int | None
    model_version: str | None
    trace: Trace
