"""The request path in plain Python, without Ray and without a web framework: hydrate, retrieve, filter, rank, select.

Every failure degrades in the open: from the ranker's order to the order of retrieval, to what trends in the user's main category, to what
trends anywhere, to popularity, as the last good snapshot on disk has it if nothing else. What is missing is named in the trace, and the
answer holds min(n, eligible) items all the same.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from headrace.arrays import Floats, Ints, Mask
from headrace.clock import Clock
from serving import candidates as c
from serving import catalogue as cat
from serving.candidates import RANK, RECOMMEND, SIMILAR, Candidates, Chances, RecommendationRequest, Slate, Trace
from serving.catalogue import Catalogue
from serving.explore import OFF, Exploration, explore
from serving.filters import allowed, split, why_not
from serving.hydrate import hydrate
from serving.interfaces import MODEL_ERRORS, FeatureReader
from serving.sources import alike, by_popularity, given, read_user, retrieve
from serving.state import ServingState, User

RANKED: Final = 200
"""Candidates that the ranker sees at most; a longer slate goes on in the order of retrieval."""
_ORIGIN_NAMED: Final = {cat.SNAPSHOT: c.FROM_SNAPSHOT, cat.BUNDLE: c.FROM_BUNDLE}


@dataclass(frozen=True)
class Means:
    """What a request needs besides itself and the shared state. `rank_s`: what ranking RANKED candidates is expected to take; `sent`: what
    was asked of the store already; `request_id`: what exploration is seeded by.
    """

    reader: FeatureReader | None
    clock: Clock
    age_bound_us: int
    rank_s: float = 0.0
    explain: bool = False
    sent: Any | None = None
    exploration: Exploration = OFF
    request_id: str = ""


def answer(request: RecommendationRequest, state: ServingState, means: Means, trace: Trace) -> Slate:
    """A slate of min(n, eligible) items for one request; for RANK, of those that were given."""
    with trace.stage("hydrate") as stage:
        user, age_us = hydrate(
            request.user_key, state, means.reader, means.clock, means.age_bound_us, trace, means.sent
        )
        stage.count = len(user.history)

    with trace.stage("retrieve") as stage:
        as_read = None if request.kind == SIMILAR else read_user(user, state, trace)
        among = allowed(request, state.catalogue)
        found = find(user, as_read, request, state, among, trace)
        stage.count = len(found)

    with trace.stage("filter") as stage:
        kept, removed = split(found, request, state.catalogue, user.hidden)
        stage.count, stage.removed = len(kept), {reason: len(each) for reason, each in removed.items()}

    with trace.stage("rank") as stage:
        first, rest = shortlist(kept, RANKED if request.kind == RECOMMEND else len(kept))
        by_score = None if request.kind == SIMILAR else rank(first, user, as_read, state, means.rank_s, trace)
        ranked, chances = (first, None) if by_score is None else explore(by_score, means.exploration, means.request_id)
        stage.count = len(ranked)

    with trace.stage("select") as stage:
        fill = state.catalogue.most_popular_first() if request.kind != RANK else found.rows[:0]
        slate = select(ranked, rest, fill, request, state.catalogue, user.hidden)
        stage.count = len(slate)

    note_origin(state.catalogue, user.t_us - means.age_bound_us, trace)
    if means.explain:
        trace.explained = explain(slate, removed, user, as_read, state, trace)
    version = state.model.version if state.model else None
    return slate_of(slate, request, state.catalogue, user.t_us, trace, age_us, version, user.hidden, chances)


def slate_of(
    items: Candidates,
    request: RecommendationRequest,
    catalogue: Catalogue,
    t_us: int,
    trace: Trace,
    age_us: int | None = None,
    version: str | None = None,
    hidden: Collection[str] = frozenset(),
    chances: Chances | None = None,
) -> Slate:
    unknown = [
        item
        for item in request.items
        if item not in catalogue.row_of and item not in request.exclude and item not in hidden
    ]
    left = request.n - len(items) if request.kind == RANK and not request.wanted.narrows else 0
    item_ids = [catalogue.item_ids[row] for row in items.rows.tolist()]
    return Slate(item_ids, items, t_us, age_us, version, trace, unknown[:left], chances)


def find(
    user: User, as_read: Any, request: RecommendationRequest, state: ServingState, among: Mask | None, trace: Trace
) -> Candidates:
    if request.kind == RANK:
        return given(request, state.catalogue, trace)
    if request.kind == SIMILAR:
        return alike(request, state, among, trace)
    return retrieve(user, as_read, request, state, among, trace)


def shortlist(kept: Candidates, most: int) -> tuple[Candidates, Candidates]:
    """What the ranker sees, and the rest. Every source has its say: the index, which finds the most, makes room for the others."""
    if len(kept) <= most:
        return kept, kept.take(slice(0, 0))
    of_index = (kept.found_by & c.BIT[c.TWO_TOWER]).astype(np.bool_)
    others = np.flatnonzero(~of_index)
    room = max(most - len(others), most // 2)
    chosen = np.sort(np.concatenate([np.flatnonzero(of_index)[:room], others]))[:most]
    left_out = np.ones(len(kept), np.bool_)
    left_out[chosen] = False
    return kept.take(chosen), kept.take(left_out)


def rank(
    kept: Candidates, user: User, as_read: Any, state: ServingState, needs_s: float, trace: Trace
) -> Candidates | None:
    """Best first by the ranker's score; None where the ranker cannot speak or has no time to."""
    if state.model is None or as_read is None or not len(kept):
        return None
    if trace.left_s() <= needs_s * max(1.0, len(kept) / RANKED):
        trace.degrade(c.LATE_RANKER)
        return None
    try:
        scores = state.model.rank(as_read, kept.rows, activity_of(kept.rows, user.t_us, state))
        if not np.isfinite(scores).all():
            raise ValueError("the ranker gave a score that is not finite")
    except MODEL_ERRORS as error:
        trace.degrade(c.RANKER_FAILED, error)
        return None
    order = np.argsort(-scores, kind="stable")
    if (np.diff(scores[order]) == 0).any():  # by id, which is the same on every replica, as rows are not
        ids = np.array([state.catalogue.item_ids[row] for row in kept.rows.tolist()])
        order = np.lexsort((ids, -scores))
    return Candidates(kept.rows[order], kept.found_by[order], scores[order])


def activity_of(rows: Ints, t_us: int, state: ServingState) -> Floats:
    """What the model wants to know of each item, as of t; null where the store has never been read."""
    assert state.model is not None
    wanted = state.model.activity_features
    if state.activity is None:
        return np.full((len(rows), len(wanted)), np.nan)
    return state.activity.columns(wanted, rows, t_us)


def select(
    ranked: Candidates,
    rest: Candidates,
    fill: Ints,
    request: RecommendationRequest,
    catalogue: Catalogue,
    hidden: Collection[str],
) -> Candidates:
    """The best n; then what was not ranked; then, where the sources found too few, others in the order of `fill`."""
    slate = ranked.take(slice(request.n))
    if len(slate) < request.n and len(rest):
        slate = Candidates.join([slate, rest.take(slice(request.n - len(slate)))])
    missing = request.n - len(slate)
    for start in range(0, len(fill) if missing else 0, 10_000):
        rows = fill[start : start + 10_000]
        rows = rows[~np.isin(rows, slate.rows)]
        rows = rows[why_not(rows, request, catalogue, hidden) < 0][:missing]
        slate = Candidates.join([slate, Candidates.of(c.POPULAR, *by_popularity(rows, catalogue))])
        missing -= len(rows)
        if not missing:
            break
    return slate


def last_resort(request: RecommendationRequest, state: ServingState, clock: Clock, trace: Trace) -> Slate:
    """The order of popularity: what is answered when the request path itself fails."""
    trace.degrade(c.PIPELINE_FAILED)
    return popular_slate(request, state, clock, trace)


def popular_slate(request: RecommendationRequest, state: ServingState, clock: Clock, trace: Trace) -> Slate:
    """The cheapest answer there is: given items as they were given, else the order of popularity."""
    catalogue, none = state.catalogue, Candidates.none()
    fill = catalogue.rows(request.items) if request.kind == RANK else catalogue.most_popular_first()
    slate = select(none, none, fill, request, catalogue, frozenset())
    note_origin(catalogue, 0, trace)
    return slate_of(slate, request, catalogue, clock(), trace)


def explain(
    slate: Candidates, removed: dict[str, Candidates], user: User, as_read: Any, state: ServingState, trace: Trace
) -> dict[str, Any]:
    """What was removed and why, who found each item, and which features weighed in its score."""
    ids: Callable[[Ints], list[str]] = lambda rows: [state.catalogue.item_ids[row] for row in rows.tolist()]  # noqa: E731
    weighed = what_weighed(slate, user, as_read, state, trace)
    return {
        "removed": {reason: ids(each.rows) for reason, each in removed.items()},
        "items": [
            {"item_id": item, "sources": c.sources_of(bits), "features": weighed[place] if weighed else []}
            for place, (item, bits) in enumerate(zip(ids(slate.rows), slate.found_by.tolist(), strict=True))
        ],
    }


def what_weighed(slate: Candidates, user: User, as_read: Any, state: ServingState, trace: Trace) -> list[Any]:
    """For each item the features that weighed most in its score; none where there is no model, or no time to ask it."""
    if state.model is None or as_read is None or not len(slate):
        return []
    if trace.left_s() <= 0:
        trace.degrade(c.LATE_EXPLANATION)
        return []
    try:
        return list(state.model.explain(as_read, slate.rows, activity_of(slate.rows, user.t_us, state)))
    except MODEL_ERRORS as error:
        trace.degrade(c.RANKER_FAILED, error)
        return []


def note_origin(catalogue: Catalogue, oldest_us: int, trace: Trace) -> None:
    """Name the catalogue as degraded when it is empty, not the live one, or older than `oldest_us`."""
    if not len(catalogue):
        trace.degrade(c.NO_CATALOGUE)
    elif catalogue.origin in _ORIGIN_NAMED:
        trace.degrade(_ORIGIN_NAMED[catalogue.origin])
    elif catalogue.orders.as_of_us == 0:
        trace.degrade(c.NO_POPULARITY)
    elif catalogue.orders.as_of_us < oldest_us:
        trace.degrade(c.STALE_CATALOGUE)
