"""Which candidates may be shown. A filter gives what it keeps, and what it removes by reason."""

from collections.abc import Collection
from typing import Final

import numpy as np

from headrace.arrays import Ints, Mask
from serving import candidates as c
from serving import catalogue as cat
from serving.candidates import Candidates, RecommendationRequest
from serving.catalogue import Catalogue

_PLACE: Final = {reason: place for place, reason in enumerate(c.REASONS)}


def split(
    found: Candidates, request: RecommendationRequest, catalogue: Catalogue, hidden: Collection[str]
) -> tuple[Candidates, dict[str, Candidates]]:
    """Kept, and removed by reason."""
    reasons = why_not(found.rows, request, catalogue, hidden)
    is_kept = reasons < 0
    if is_kept.all():
        return found, {}
    removed = {c.REASONS[code]: found.take(reasons == code) for code in np.unique(reasons[~is_kept]).tolist()}
    return found.take(is_kept), removed


def why_not(rows: Ints, request: RecommendationRequest, catalogue: Catalogue, hidden: Collection[str]) -> Ints:
    """For each row the place in REASONS of why it is not eligible, -1 if it is. The first reason counts."""
    state, never = catalogue.state.take(rows), request.never_shown
    reasons = np.full(len(rows), -1, np.int64)
    if request.wanted.narrows:  # from the last reason to the first, which is the one that stands
        reasons[catalogue.outside(request.wanted, rows)] = _PLACE[c.FILTERED]
    if hidden:
        reasons[np.isin(rows, catalogue.rows([*hidden]))] = _PLACE[c.HIDDEN]
    if not request.wanted.include_unavailable:
        reasons[state == cat.UNAVAILABLE] = _PLACE[c.UNAVAILABLE]
    reasons[state == cat.DELETED] = _PLACE[c.DELETED]
    if never:
        reasons[np.isin(rows, catalogue.rows([*never]))] = _PLACE[c.EXCLUDED]
    return reasons


def allowed(request: RecommendationRequest, catalogue: Catalogue) -> Mask | None:
    """Rows that retrieval should look among, where the caller's filter leaves so few that it would else find none of them."""
    if not request.wanted.narrows:
        return None
    shown = (cat.AVAILABLE, cat.UNAVAILABLE) if request.wanted.include_unavailable else (cat.AVAILABLE,)
    return ~catalogue.outside(request.wanted) & np.isin(catalogue.state, shown)
