"""The request path in plain Python, without Ray and without a web framework: hydrate, retrieve, filter, rank, select.

Every failure degrades in the open, from the ranker's order to the retrieval order to what trends to the last good
snapshot: what is missing is named in the trace, and the answer holds min(n, eligible) items all the same.
"""

import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import Any, Final, Protocol

import redis

from headrace import names
from headrace.clock import Clock
from serving import candidates as c
from serving import catalogue as cat
from serving.candidates import Ask, Candidate, Slate, Trace
from serving.catalogue import Catalogue

Features = dict[str, Any]
"""`view__feature` to a column: one value for the user, one value for each item."""

USER_VIEWS: Final = (names.USER_ACTIVITY, names.USER_PROFILE)
ITEM_VIEWS: Final = (names.ITEM_ACTIVITY, names.ITEM_CATALOGUE)
RECENT_ITEMS: Final = f"{names.USER_ACTIVITY}__recent_items"
RECENT_TYPES: Final = f"{names.USER_ACTIVITY}__recent_types"
AVAILABLE: Final = f"{names.ITEM_CATALOGUE}__available"
HIDING_TYPES: Final = frozenset({names.HIDE, names.DISLIKE})

# How many candidates the sources find at least, and how many items of the history neighbours are sought for.
POOL: Final = 200
RECENT_SEEDS: Final = 5

# What a store or a model may raise on bad state or input; anything else is a fault of ours: `last_resort` answers.
STORE_ERRORS: Final = (redis.RedisError, OSError, RuntimeError, ValueError, LookupError)
MODEL_ERRORS: Final = (RuntimeError, ValueError, LookupError, TypeError, ArithmeticError)


class Rows(Protocol):
    """State of some entities in one view."""

    def values(self, t_us: int) -> Mapping[str, Any]: ...


class Fetched(Protocol):
    """Rows of several views, fetched in one round trip (headrace.stores.online_reader.Snapshot)."""

    @property
    def streams(self) -> Mapping[str, Rows]: ...
    @property
    def plain(self) -> Mapping[str, Rows]: ...
    @property
    def newest_us(self) -> int: ...
    @property
    def complete_us(self) -> int: ...


class FeatureReader(Protocol):
    """What the request path needs of the online store."""

    def fetch(self, wanted: Mapping[str, Sequence[str]], /) -> Fetched: ...


class Model(Protocol):
    """What the request path needs of a trained model. Results of a search are (item id, score), best first."""

    @property
    def version(self) -> str: ...
    def knows(self, item_id: str) -> bool: ...
    def for_user(self, features: Features, t_us: int, k: int) -> list[tuple[str, float]]: ...
    def like_items(self, item_ids: Sequence[str], k: int) -> list[tuple[str, float]]: ...
    def rank(self, user: Features, item_ids: Sequence[str], items: Features, t_us: int) -> Sequence[float]: ...


@dataclass(frozen=True)
class World:
    """What a request reads that is not the user's own. One reference, swapped whole: a request never sees a mix."""

    model: Model | None = None
    catalogue: Catalogue = field(default_factory=Catalogue)


@dataclass
class User:
    """A user's state and its values at `t_us`; no state when the store did not answer."""

    state: Fetched | None
    t_us: int
    features: Features

    @property
    def history(self) -> list[str]:
        """Items acted on, oldest first."""
        return [item for item in _only(self.features.get(RECENT_ITEMS)) if item is not None]

    @property
    def hidden(self) -> frozenset[str]:
        items, types = _only(self.features.get(RECENT_ITEMS)), _only(self.features.get(RECENT_TYPES))
        return frozenset(item for item, kind in zip(items, types, strict=False) if kind in HIDING_TYPES)


def recommend(
    ask: Ask, world: World, reader: FeatureReader | None, clock: Clock, age_bound_us: int, trace: Trace
) -> Slate:
    """A slate of min(n, eligible) items for one request."""
    with trace.stage("hydrate") as stage:
        user = hydrate_user(ask.user_key, reader, clock, trace)
        stage.count = len(user.history)
        age_us = features_age(user, age_bound_us, trace)

    with trace.stage("retrieve") as stage:
        found = retrieve(user, world, max(POOL, 2 * ask.n), trace)
        stage.count = len(found)

    with trace.stage("filter") as stage:
        kept, removed = split(found, ask, world.catalogue, user.hidden)
        stage.count, stage.removed = len(kept), _count(removed)

    with trace.stage("features") as stage:
        items, user = hydrate_items(kept, user, reader, trace)
        gone = gone_in(kept, items)
        stage.count, stage.removed = len(kept) - len(gone), _count(gone)

    with trace.stage("rank") as stage:
        ranked = rank(kept, user, items, world.model, trace)
        stage.count = len(ranked)

    with trace.stage("select") as stage:
        slate = select(ranked, ask, world.catalogue, user.hidden, {candidate.item_id for candidate, _ in gone})
        stage.count = len(slate)

    note_origin(world.catalogue, user.t_us - age_bound_us, trace)
    return Slate(slate, user.t_us, age_us, world.model.version if world.model else None, trace)


def last_resort(ask: Ask, world: World, clock: Clock, trace: Trace) -> Slate:
    """The catalogue's popularity order: what is answered when the request path itself fails."""
    trace.degrade(c.PIPELINE_FAILED)
    note_origin(world.catalogue, 0, trace)
    return Slate(select([], ask, world.catalogue, frozenset(), set()), clock(), None, None, trace)


# --- hydrate


def hydrate_user(user_key: str, reader: FeatureReader | None, clock: Clock, trace: Trace) -> User:
    """State first, then one t: the later of the clock and just after the newest event in that state."""
    try:
        state = reader.fetch({view: [user_key] for view in USER_VIEWS}) if reader else None
        if state is not None:
            t_us = max(clock(), state.newest_us + 1)
            if state.newest_us == 0:
                trace.degrade(c.UNKNOWN_USER)
            return User(state, t_us, values_of(state, t_us))
    except STORE_ERRORS as error:
        trace.degrade(c.NO_USER_FEATURES, error)
    else:
        trace.degrade(c.NO_USER_FEATURES)
    return User(None, clock(), {})


def hydrate_items(
    kept: Sequence[Candidate], user: User, reader: FeatureReader | None, trace: Trace
) -> tuple[Features | None, User]:
    """Item features of the candidates, read in one round trip, and the user as of the same t.

    Should an item hold an event newer than the user's t (a clock ahead of ours), t moves behind it for both.
    """
    if reader is None or user.state is None or not kept or not trace.has_time():
        return None, user
    try:
        state = reader.fetch({view: [candidate.item_id for candidate in kept] for view in ITEM_VIEWS})
        if state.newest_us >= user.t_us:
            t_us = state.newest_us + 1
            user = User(user.state, t_us, values_of(user.state, t_us))
        return values_of(state, user.t_us), user
    except STORE_ERRORS as error:
        trace.degrade(c.NO_ITEM_FEATURES, error)
        return None, user


def values_of(state: Fetched, t_us: int) -> Features:
    """All features at t, by `view__feature`."""
    rows = {**state.streams, **state.plain}
    return {f"{view}__{name}": column for view, each in rows.items() for name, column in each.values(t_us).items()}


def features_age(user: User, bound_us: int, trace: Trace) -> int | None:
    """t minus the time up to which the user's shard is complete."""
    if user.state is None:
        return None
    if user.state.complete_us == 0:
        trace.degrade(c.EMPTY_STORE)
        return None
    age_us = max(0, user.t_us - user.state.complete_us)
    if age_us > bound_us:
        trace.degrade(c.STALE_FEATURES)
    return age_us


# --- retrieve


def retrieve(user: User, world: World, pool: int, trace: Trace) -> list[Candidate]:
    """Candidates of all sources, each item once, with the first source that found it."""
    found = chain(
        personal_sources(user, world, pool, trace),
        _listed(world.catalogue.trending[: pool // 2], c.TRENDING, world.catalogue),
        _listed(world.catalogue.newest[: pool // 10], c.NEW, world.catalogue),
    )
    unique: dict[str, Candidate] = {}
    for candidate in found:
        unique.setdefault(candidate.item_id, candidate)
    return list(unique.values())


def personal_sources(user: User, world: World, pool: int, trace: Trace) -> list[Candidate]:
    """The two-tower index and the neighbours of the newest items of the history."""
    model = world.model
    if model is None:
        trace.degrade(c.NO_MODEL)
        return []
    history = list(dict.fromkeys(reversed(user.history)))
    seeds = [item for item in history if model.knows(item)][:RECENT_SEEDS]
    if any(item not in world.catalogue.known and not model.knows(item) for item in history):
        trace.degrade(c.UNKNOWN_HISTORY)
    if user.state is None or not trace.has_time():
        return []
    try:
        towers = [Candidate(item, c.TWO_TOWER, score) for item, score in model.for_user(user.features, user.t_us, pool)]
        near = model.like_items(seeds, pool // 2) if seeds else []
        return towers + [Candidate(item, c.NEIGHBOURS, score) for item, score in near]
    except MODEL_ERRORS as error:
        trace.degrade(c.RETRIEVAL_FAILED, error)
        return []


def _listed(items: Iterable[str], source: str, catalogue: Catalogue) -> list[Candidate]:
    return [Candidate(item, source, catalogue.popularity.get(item, 0.0)) for item in items]


# --- filter


Removed = tuple[Candidate, str]


def split(
    found: Iterable[Candidate], ask: Ask, catalogue: Catalogue, hidden: frozenset[str]
) -> tuple[list[Candidate], list[Removed]]:
    """Kept, and removed with the reason."""
    kept: list[Candidate] = []
    removed: list[Removed] = []
    for candidate in found:
        reason = why_not(candidate.item_id, ask, catalogue, hidden)
        if reason is None:
            kept.append(candidate)
        else:
            removed.append((candidate, reason))
    return kept, removed


def why_not(item_id: str, ask: Ask, catalogue: Catalogue, hidden: frozenset[str]) -> str | None:
    """Why this item is not eligible, None if it is."""
    if item_id in ask.exclude:
        return c.EXCLUDED
    if item_id in catalogue.unavailable:
        return c.UNAVAILABLE
    if item_id in hidden:
        return c.HIDDEN
    return None if item_id in catalogue.known else c.UNKNOWN


def gone_in(kept: Sequence[Candidate], items: Features | None) -> list[Removed]:
    """What the store, fresher than this replica's catalogue, says is not available. `items` has one row a candidate."""
    available = items.get(AVAILABLE) if items else None
    if available is None:
        return []
    rows = zip(kept, available, strict=True)
    return [(candidate, c.UNAVAILABLE) for candidate, value in rows if value is not None and not value]


# --- rank and select


def rank(
    kept: list[Candidate], user: User, items: Features | None, model: Model | None, trace: Trace
) -> list[Candidate]:
    """Best first by the ranker's score; the order of retrieval where the ranker cannot speak."""
    if model is None or items is None or not kept or not trace.has_time():
        return kept
    try:
        scores = model.rank(user.features, [candidate.item_id for candidate in kept], items, user.t_us)
        scored = [candidate._replace(score=float(score)) for candidate, score in zip(kept, scores, strict=True)]
        if not all(math.isfinite(candidate.score) for candidate in scored):
            raise ValueError("the ranker gave a score that is not finite")
    except MODEL_ERRORS as error:
        trace.degrade(c.RANKER_FAILED, error)
        return kept
    return sorted(scored, key=lambda candidate: -candidate.score)


def select(
    ranked: Iterable[Candidate], ask: Ask, catalogue: Catalogue, hidden: frozenset[str], gone: Collection[str]
) -> list[Candidate]:
    """The best n; where the sources found too few, filled up in the order of popularity."""
    slate = [candidate for candidate in ranked if candidate.item_id not in gone][: ask.n]
    if len(slate) == ask.n:
        return slate
    passed_over = {candidate.item_id for candidate in slate} | set(gone)
    eligible = (
        item for item in catalogue.popular if item not in passed_over and why_not(item, ask, catalogue, hidden) is None
    )
    return slate + _listed(islice(eligible, ask.n - len(slate)), c.POPULAR, catalogue)


# --- respond


ORIGIN_NAMED: Final = {cat.SNAPSHOT: c.FROM_SNAPSHOT, cat.BUNDLE: c.FROM_BUNDLE, cat.LAKE: c.NO_POPULARITY}


def note_origin(catalogue: Catalogue, oldest_us: int, trace: Trace) -> None:
    """Name the catalogue as degraded when it is empty, not the live one, or older than `oldest_us`."""
    if not catalogue.popular:
        trace.degrade(c.NO_CATALOGUE)
    elif catalogue.origin in ORIGIN_NAMED:
        trace.degrade(ORIGIN_NAMED[catalogue.origin])
    elif catalogue.as_of_us < oldest_us:
        trace.degrade(c.STALE_CATALOGUE)


def _only(column: Any) -> Sequence[Any]:
    """The one list in a column of one user, empty where there is none."""
    return column[0] if column is not None and len(column) and column[0] is not None else ()


def _count(removed: Iterable[Removed]) -> dict[str, int]:
    return dict(Counter(reason for _, reason in removed))
