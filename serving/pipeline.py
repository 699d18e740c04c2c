"""The request path in plain Python, without Ray and without a web framework: hydrate, retrieve, filter, rank, select.

Every failure degrades in the open, from the ranker's order to the retrieval order to what trends to the last good
snapshot: what is missing is named in the trace, and the answer holds min(n, eligible) items all the same.
"""

import math
from collections import Counter
from collections.abc import Collection, Iterable
from itertools import islice
from typing import Final

from headrace.clock import Clock
from serving import candidates as c
from serving import catalogue as cat
from serving.candidates import Candidate, RecommendationRequest, Slate, Trace
from serving.catalogue import Catalogue
from serving.filters import Removed, split, unavailable_in, why_not
from serving.hydrate import features_age, hydrate_items, hydrate_user
from serving.interfaces import MODEL_ERRORS, FeatureReader, Features, Model
from serving.sources import listed, retrieve
from serving.state import ServingState, User

# How many candidates the sources find at least.
POOL: Final = 200
ORIGIN_NAMED: Final = {cat.SNAPSHOT: c.FROM_SNAPSHOT, cat.BUNDLE: c.FROM_BUNDLE, cat.LAKE: c.NO_POPULARITY}


def recommend(
    request: RecommendationRequest,
    state: ServingState,
    reader: FeatureReader | None,
    clock: Clock,
    age_bound_us: int,
    trace: Trace,
) -> Slate:
    """A slate of min(n, eligible) items for one request."""
    with trace.stage("hydrate") as stage:
        user = hydrate_user(request.user_key, reader, clock, trace)
        stage.count = len(user.history)
        age_us = features_age(user, age_bound_us, trace)

    with trace.stage("retrieve") as stage:
        found = retrieve(user, state, max(POOL, 2 * request.n), trace)
        stage.count = len(found)

    with trace.stage("filter") as stage:
        kept, removed = split(found, request, state.catalogue, user.hidden)
        stage.count, stage.removed = len(kept), by_reason(removed)

    with trace.stage("features") as stage:
        items, user = hydrate_items(kept, user, reader, trace)
        gone = unavailable_in(kept, items)
        stage.count, stage.removed = len(kept) - len(gone), by_reason(gone)

    with trace.stage("rank") as stage:
        ranked = rank(kept, user, items, state.model, trace)
        stage.count = len(ranked)

    with trace.stage("select") as stage:
        slate = select(ranked, request, state.catalogue, user.hidden, {candidate.item_id for candidate, _ in gone})
        stage.count = len(slate)

    note_origin(state.catalogue, user.t_us - age_bound_us, trace)
    return Slate(slate, user.t_us, age_us, state.model.version if state.model else None, trace)


def last_resort(request: RecommendationRequest, state: ServingState, clock: Clock, trace: Trace) -> Slate:
    """The catalogue's popularity order: what is answered when the request path itself fails."""
    trace.degrade(c.PIPELINE_FAILED)
    note_origin(state.catalogue, 0, trace)
    return Slate(select([], request, state.catalogue, frozenset(), set()), clock(), None, None, trace)


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
    ranked: Iterable[Candidate],
    request: RecommendationRequest,
    catalogue: Catalogue,
    hidden: frozenset[str],
    gone: Collection[str],
) -> list[Candidate]:
    """The best n; where the sources found too few, filled up in the order of popularity."""
    slate = [candidate for candidate in ranked if candidate.item_id not in gone][: request.n]
    if len(slate) == request.n:
        return slate
    passed_over = {candidate.item_id for candidate in slate} | set(gone)
    eligible = (
        item
        for item in catalogue.popular
        if item not in passed_over and why_not(item, request, catalogue, hidden) is None
    )
    return slate + listed(islice(eligible, request.n - len(slate)), c.POPULAR, catalogue)


def note_origin(catalogue: Catalogue, oldest_us: int, trace: Trace) -> None:
    """Name the catalogue as degraded when it is empty, not the live one, or older than `oldest_us`."""
    if not catalogue.popular:
        trace.degrade(c.NO_CATALOGUE)
    elif catalogue.origin in ORIGIN_NAMED:
        trace.degrade(ORIGIN_NAMED[catalogue.origin])
    elif catalogue.as_of_us < oldest_us:
        trace.degrade(c.STALE_CATALOGUE)


def by_reason(removed: Iterable[Removed]) -> dict[str, int]:
    return dict(Counter(reason for _, reason in removed))
