"""Where candidates come from: the two-tower index, neighbours of the history, what trends, what is new."""

from collections.abc import Iterable
from itertools import chain
from typing import Final

from serving import candidates as c
from serving.candidates import Candidate, Trace
from serving.catalogue import Catalogue
from serving.interfaces import MODEL_ERRORS
from serving.state import ServingState, User

# How many items of the history neighbours are sought for.
RECENT_SEEDS: Final = 5


def retrieve(user: User, state: ServingState, pool: int, trace: Trace) -> list[Candidate]:
    """Candidates of all sources, each item once, with the first source that found it."""
    found = chain(
        personal_sources(user, state, pool, trace),
        listed(state.catalogue.trending[: pool // 2], c.TRENDING, state.catalogue),
        listed(state.catalogue.newest[: pool // 10], c.NEW, state.catalogue),
    )
    unique: dict[str, Candidate] = {}
    for candidate in found:
        unique.setdefault(candidate.item_id, candidate)
    return list(unique.values())


def personal_sources(user: User, state: ServingState, pool: int, trace: Trace) -> list[Candidate]:
    """The two-tower index and the neighbours of the newest items of the history."""
    model = state.model
    if model is None:
        trace.degrade(c.NO_MODEL)
        return []
    history = list(dict.fromkeys(reversed(user.history)))
    seeds = [item for item in history if model.knows(item)][:RECENT_SEEDS]
    if any(item not in state.catalogue.known and not model.knows(item) for item in history):
        trace.degrade(c.UNKNOWN_HISTORY)
    if user.rows is None or not trace.has_time():
        return []
    try:
        towers = model.retrieve(user.features, user.t_us, pool)
        near = model.similar_items(seeds, pool // 2) if seeds else []
    except MODEL_ERRORS as error:
        trace.degrade(c.RETRIEVAL_FAILED, error)
        return []
    return [
        *(Candidate(item, c.TWO_TOWER, score) for item, score in towers),
        *(Candidate(item, c.NEIGHBOURS, score) for item, score in near),
    ]


def listed(items: Iterable[str], source: str, catalogue: Catalogue) -> list[Candidate]:
    """Items of one of the catalogue's lists, scored by popularity."""
    return [Candidate(item, source, catalogue.popularity.get(item, 0.0)) for item in items]
