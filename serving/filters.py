"""Which candidates may be shown. A filter gives what it keeps, and what it removes by reason."""

from collections.abc import Collection

import numpy as np

from headrace.arrays import Ints, Mask
from serving import candidates as c
from serving import catalogue as cat
from serving.candidates import Candidates, RecommendationRequest
from serving.catalogue import Catalogue


def split(
    found: Candidates, request: RecommendationRequest, catalogue: Catalogue, hidden: Collection[str]
) -> tuple[Candidates, dict[str, Candidates]]:
    """Kept, and removed by reason."""
    reasons = why_not(found.rows, request, catalogue, hidden)
    removed = {c.REASONS[code]: found.take(reasons == code) for code in np.unique(reasons[reasons >= 0]).tolist()}
    return found.take(reasons < 0), removed


def why_not(rows: Ints, request: RecommendationRequest, catalogue: Catalogue, hidden: Collection[str]) -> Ints:
    """For each row the place in REASONS of why it is not eligible, -1 if it is. The first reason counts."""
    state, never = catalogue.state[rows], request.never_shown
    masks: dict[str, Mask] = {
        c.EXCLUDED: np.isin(rows, catalogue.rows([*never])) if never else _nowhere(rows),
        c.DELETED: state == cat.DELETED,
        c.UNAVAILABLE: _nowhere(rows) if request.wanted.include_unavailable else state == cat.UNAVAILABLE,
        c.HIDDEN: np.isin(rows, catalogue.rows([*hidden])) if hidden else _nowhere(rows),
        c.FILTERED: catalogue.outside(request.wanted, rows) if request.wanted.narrows else _nowhere(rows),
    }
    reasons = np.full(len(rows), -1, np.int64)
    for place, reason in reversed(list(enumerate(c.REASONS))):
        reasons[masks[reason]] = place
    return reasons


def allowed(request: RecommendationRequest, catalogue: Catalogue) -> Mask | None:
    """Rows that retrieval should look among, where the caller's filter leaves so few that it would else find none of them."""
    if not request.wanted.narrows:
        return None
    shown = (cat.AVAILABLE, cat.UNAVAILABLE) if request.wanted.include_unavailable else (cat.AVAILABLE,)
    return ~catalogue.outside(request.wanted) & np.isin(catalogue.state, shown)


def _nowhere(rows: Ints) -> Mask:
    return np.zeros(len(rows), np.bool_)
