"""Where candidates come from. Each source gives rows and scores, best first; `retrieve` asks them all and puts their finds together."""

from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np

from headrace.arrays import Floats, Ints, Mask
from headrace.firsts import merge
from serving import candidates as c
from serving.candidates import Candidates, RecommendationRequest, Trace
from serving.catalogue import Catalogue
from serving.interfaces import MODEL_ERRORS, Model
from serving.state import ServingState, User

POOL: Final = 300
"""What the two-tower index is asked for, at least: what the ranker sees, and half as many again for filters to take away."""
# The most that each other source gives.
SEEDS, NEAR, UNFINISHED, TRENDING, NEW = 5, 60, 10, 40, 20

Found = tuple[Ints, Floats]
_NOTHING: Final[Found] = (np.zeros(0, np.int64), np.zeros(0))


def retrieve(
    user: User, as_read: Any, request: RecommendationRequest, state: ServingState, allowed: Mask | None, trace: Trace
) -> Candidates:
    """Candidates of all sources, each item once. `as_read` is the user as the model reads one, None where it could not."""
    model, catalogue = state.model, state.catalogue
    recent = catalogue.rows(list(dict.fromkeys(reversed(user.history))))
    sources: list[tuple[str, Callable[[], Found]]] = []
    if model is not None and as_read is not None:
        sources += [
            (c.TWO_TOWER, lambda: model.retrieve(as_read, max(POOL, 2 * request.n), allowed)),
            (c.NEIGHBOURS, lambda: model.neighbours(recent[:SEEDS], NEAR)),
        ]
    sources += [
        (c.UNFINISHED, lambda: by_popularity(catalogue.rows(user.unfinished)[:UNFINISHED], catalogue)),
        (c.CATEGORY_TRENDING, lambda: by_popularity(trending_like(recent, catalogue)[:TRENDING], catalogue)),
        (c.TRENDING, lambda: by_popularity(listed(catalogue.orders.trending, TRENDING, allowed), catalogue)),
        (c.NEW, lambda: by_popularity(listed(catalogue.orders.newest, NEW, allowed), catalogue)),
    ]
    return gather(sources, trace)


def given(request: RecommendationRequest, catalogue: Catalogue, trace: Trace) -> Candidates:
    """The items that the caller gave, in that order, deadline or not. Those that the catalogue does not know are none."""
    with trace.source(c.GIVEN) as source:
        rows = catalogue.rows(request.items)
        source.count = len(rows)
    if len(rows) < len(request.items):
        trace.degrade(c.UNKNOWN_ITEMS)
    return Candidates.of(c.GIVEN, rows, np.zeros(len(rows)))


def alike(request: RecommendationRequest, state: ServingState, allowed: Mask | None, trace: Trace) -> Candidates:
    """Items like those that the caller gave. Without a model, what trends in their category."""
    model, catalogue = state.model, state.catalogue
    seeds = catalogue.rows(request.items)
    if len(seeds) < len(request.items):
        trace.degrade(c.UNKNOWN_ITEMS)
    sources: list[tuple[str, Callable[[], Found]]] = []
    if model is None:
        trace.degrade(c.NO_MODEL)
    elif len(seeds):
        sources += [
            (c.ALIKE, lambda: model.similar(seeds, max(POOL, 2 * request.n), allowed)),
            (c.NEIGHBOURS, lambda: model.neighbours(seeds, NEAR)),
        ]
    sources += [(c.CATEGORY_TRENDING, lambda: by_popularity(trending_like(seeds, catalogue), catalogue))]
    return gather(sources, trace)


def gather(sources: Sequence[tuple[str, Callable[[], Found]]], trace: Trace) -> Candidates:
    """Ask each source and keep the first find of each item, with all that found it. A model that throws is named."""
    parts, bits = [_NOTHING], [0]
    for name, ask in sources:
        with trace.source(name) as source:
            if trace.left_s() <= 0:
                trace.degrade(c.LATE_RETRIEVAL)
                continue
            try:
                parts.append(ask())
            except MODEL_ERRORS as error:
                trace.degrade(c.RETRIEVAL_FAILED, error)
            else:
                bits.append(c.BIT[name])
                source.count = len(parts[-1][0])
    rows, scores = (np.concatenate(column) for column in zip(*parts, strict=True))
    first, found_by = merge(rows, np.repeat(bits, [len(part[0]) for part in parts]))
    return Candidates(rows.take(first), found_by, scores.take(first))


def read_user(user: User, state: ServingState, trace: Trace) -> Any:
    """The user as the model reads one; None, and named as degraded, where there is no model or it cannot."""
    model: Model | None = state.model
    if model is None:
        trace.degrade(c.NO_MODEL)
        return None
    if not state.catalogue.row_of.keys() >= set(user.history):
        trace.degrade(c.UNKNOWN_HISTORY)
    if user.rows is None:
        return None
    try:
        return model.read_user(user.features, user.t_us)
    except MODEL_ERRORS as error:
        trace.degrade(c.RETRIEVAL_FAILED, error)
        return None


def listed(order: Ints, most: int, allowed: Mask | None) -> Ints:
    """The first rows of an order, of those that are allowed."""
    return order[:most] if allowed is None else order[allowed[order]][:most]


def trending_like(rows: Ints, catalogue: Catalogue) -> Ints:
    """What trends in the category that most of these rows are of."""
    categories = catalogue.category[rows]
    categories = categories[categories >= 0]
    if not len(categories):
        return np.zeros(0, np.int64)
    return catalogue.trending_in(int(np.bincount(categories).argmax()))


def by_popularity(rows: Ints, catalogue: Catalogue) -> Found:
    """Rows with their popularity as scores."""
    overall = catalogue.orders.overall
    if len(overall) >= len(catalogue):
        return rows, overall[rows]
    scores = np.zeros(len(rows))
    scored = rows < len(overall)
    scores[scored] = overall[rows[scored]]
    return rows, scores
