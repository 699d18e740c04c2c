"""What travels through the request path: the request, a table of candidates from their sources to the answer, a trace of the stages."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final, Self

import numpy as np

from headrace.arrays import Floats, Ints, Mask

# What is asked for: items for a user, an order of given items, items like given ones.
RECOMMEND, RANK, SIMILAR = "recommend", "rank", "similar"

# Sources, in the order in which they win a candidate that several of them find. Each is a bit of `Candidates.found_by`.
TWO_TOWER: Final = "two_tower"
NEIGHBOURS: Final = "neighbours"
UNFINISHED: Final = "unfinished"
CATEGORY_TRENDING: Final = "category_trending"
TRENDING: Final = "trending"
NEW: Final = "new"
POPULAR: Final = "popular"
GIVEN: Final = "given"
ALIKE: Final = "similar"
SOURCES: Final = (TWO_TOWER, NEIGHBOURS, UNFINISHED, CATEGORY_TRENDING, TRENDING, NEW, POPULAR, GIVEN, ALIKE)
BIT: Final = {source: 1 << place for place, source in enumerate(SOURCES)}

# Reasons for which a filter removes a candidate.
EXCLUDED: Final = "excluded"
DELETED: Final = "deleted"
UNAVAILABLE: Final = "unavailable"
HIDDEN: Final = "hidden"
FILTERED: Final = "filtered"
REASONS: Final = (EXCLUDED, DELETED, UNAVAILABLE, HIDDEN, FILTERED)

# What a slate can be degraded by: the stage and what was missing there. Each is named in the answer and counted.
UNKNOWN_USER: Final = "hydrate: unknown user"
UNKNOWN_HISTORY: Final = "hydrate: unknown item in history"
NO_USER_FEATURES: Final = "hydrate: user features unavailable"
STALE_FEATURES: Final = "hydrate: features stale"
WAITING_FEATURES: Final = "hydrate: features await backfill"
EMPTY_STORE: Final = "hydrate: store empty"
LATE_FEATURES: Final = "hydrate: deadline"
NO_MODEL: Final = "retrieval: no model"
RETRIEVAL_FAILED: Final = "retrieval: failed"
LATE_RETRIEVAL: Final = "retrieval: deadline"
UNKNOWN_ITEMS: Final = "retrieval: unknown item"
RANKER_FAILED: Final = "ranker: failed"
LATE_RANKER: Final = "ranker: deadline"
LATE_EXPLANATION: Final = "explain: deadline"
OVERLOADED: Final = "overload: ranker left out"
FROM_SNAPSHOT: Final = "catalogue: from snapshot"
FROM_BUNDLE: Final = "catalogue: from bundle"
NO_POPULARITY: Final = "catalogue: popularity unavailable"
STALE_CATALOGUE: Final = "catalogue: stale"
NO_CATALOGUE: Final = "catalogue: empty"
PIPELINE_FAILED: Final = "pipeline: failed"
NOT_SEEN: Final = "after: not yet seen"


@dataclass(frozen=True, slots=True)
class Candidates:
    """Items: rows of the catalogue, the sources that found each (bits), and its score: of the first of them, or of the ranker once that
    has spoken. Shapes (n,).
    """

    rows: Ints
    found_by: Ints
    scores: Floats

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, which: "Ints | Mask | slice") -> "Candidates":
        return Candidates(self.rows[which], self.found_by[which], self.scores[which])

    @classmethod
    def of(cls, source: str, rows: Ints, scores: Floats) -> "Candidates":
        return cls(rows, np.full(len(rows), BIT[source], np.int64), scores)

    @classmethod
    def none(cls) -> "Candidates":
        return cls(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))

    @classmethod
    def join(cls, parts: "Sequence[Candidates]") -> "Candidates":
        return cls(
            np.concatenate([each.rows for each in parts]),
            np.concatenate([each.found_by for each in parts]),
            np.concatenate([each.scores for each in parts]),
        )


def first_source(bits: int) -> str:
    """The source that wins a candidate found by several."""
    return SOURCES[(bits & -bits).bit_length() - 1]


def sources_of(bits: int) -> list[str]:
    return [source for source in SOURCES if bits & BIT[source]]


@dataclass(frozen=True)
class Filter:
    """What the caller wants of items. Nothing given: everything that is available."""

    category: frozenset[str] | None = None
    brand: frozenset[str] | None = None
    min_price: float | None = None
    max_price: float | None = None
    include_unavailable: bool = False

    @property
    def narrows(self) -> bool:
        """Whether it leaves out items that are available."""
        return any(each is not None for each in (self.category, self.brand, self.min_price, self.max_price))


EVERYTHING: Final = Filter()


@dataclass(frozen=True)
class RecommendationRequest:
    """A request, validated: `n` >= 1. `user_key` is None where nobody in particular asks. `items`: those given, in order, each once."""

    user_key: str | None
    n: int
    kind: str = RECOMMEND
    exclude: frozenset[str] = frozenset()
    wanted: Filter = EVERYTHING
    items: tuple[str, ...] = ()

    @property
    def never_shown(self) -> frozenset[str]:
        """What the caller excludes, and the items that others are to be like."""
        return self.exclude.union(self.items) if self.kind == SIMILAR else self.exclude


@dataclass(slots=True)
class Stage:
    """What a stage or a source left (`count`), what it removed by reason, and how long it took: the time in its `with`."""

    name: str
    count: int = 0
    removed: Mapping[str, int] = field(default_factory=dict)
    seconds: float = 0.0

    def __enter__(self) -> Self:
        self.seconds = -time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds += time.perf_counter()


class Trace:
    """Stages and sources of one request and what degraded it, against a deadline."""

    def __init__(self, deadline_ms: float, started: float | None = None) -> None:
        """`started` is a value of `time.perf_counter`: when the request arrived; now if not given."""
        self.started = time.perf_counter() if started is None else started
        self._deadline = self.started + deadline_ms / 1_000
        self.stages: list[Stage] = []
        self.sources: list[Stage] = []
        self.explained: dict[str, Any] = {}
        self._degraded: dict[str, BaseException | None] = {}

    def allow(self, deadline_ms: float) -> None:
        """Another time budget, still counted from the request's arrival."""
        self._deadline = self.started + deadline_ms / 1_000

    def stage(self, name: str) -> Stage:
        """To be entered: `with trace.stage("rank") as stage`."""
        self.stages.append(stage := Stage(name))
        return stage

    def source(self, name: str) -> Stage:
        self.sources.append(source := Stage(name))
        return source

    @property
    def degraded(self) -> list[str]:
        return list(self._degraded)

    @property
    def errors(self) -> dict[str, BaseException]:
        """What went wrong, where an error stands behind a reason."""
        return {reason: error for reason, error in self._degraded.items() if error is not None}

    def degrade(self, reason: str, error: BaseException | None = None) -> None:
        self._degraded.setdefault(reason, error)

    def left_s(self) -> float:
        """Seconds to the deadline; negative once it has passed."""
        return self._deadline - time.perf_counter()

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.started


@dataclass(frozen=True, slots=True)
class Chances:
    """With which chance the item at each of the first places was shown, given those above it; what stands behind them follows. Shapes (k,).

    `propensities`: under the whole policy, the coin included; `drawn`: in an order that was drawn; `greedy`: down to here the order is also
    the deterministic one. `is_drawn`: how the coin fell.
    """

    propensities: Floats
    drawn: Floats
    greedy: Mask
    is_drawn: bool


@dataclass(frozen=True)
class Slate:
    """The answer: candidates best first with their ids, the time that features were read as of, and what was missing.

    `features_age_us` is that time minus the time up to which the user's shard is complete; None when not known.
    `unknown` are items that were given to be ordered and that the catalogue does not know: they stand behind the others, unscored.
    `chances` are there where the order was explored.
    """

    item_ids: list[str]
    items: Candidates
    as_of_us: int
    features_age_us: int | None
    model_version: str | None
    trace: Trace
    unknown: Sequence[str] = ()
    chances: Chances | None = None

    @cached_property
    def sources(self) -> list[str]:
        """The source that found each item first."""
        return [first_source(bits) for bits in self.items.found_by.tolist()]

    @property
    def is_explored(self) -> bool:
        """Whether it stands in an order that was drawn."""
        return self.chances is not None and self.chances.is_drawn
