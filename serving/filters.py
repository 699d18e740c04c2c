"""Which candidates may be shown. A filter gives what it keeps, and what it removes with the reason."""

from collections.abc import Iterable, Sequence

from headrace.models.snapshot import AVAILABLE
from serving import candidates as c
from serving.candidates import Candidate, RecommendationRequest
from serving.catalogue import Catalogue
from serving.interfaces import Features

Removed = tuple[Candidate, str]


def split(
    found: Iterable[Candidate], request: RecommendationRequest, catalogue: Catalogue, hidden: frozenset[str]
) -> tuple[list[Candidate], list[Removed]]:
    """Kept, and removed with the reason."""
    kept: list[Candidate] = []
    removed: list[Removed] = []
    for candidate in found:
        reason = why_not(candidate.item_id, request, catalogue, hidden)
        if reason is None:
            kept.append(candidate)
        else:
            removed.append((candidate, reason))
    return kept, removed


def why_not(item_id: str, request: RecommendationRequest, catalogue: Catalogue, hidden: frozenset[str]) -> str | None:
    """Why this item is not eligible, None if it is."""
    if item_id in request.exclude:
        return c.EXCLUDED
    if item_id in catalogue.unavailable:
        return c.UNAVAILABLE
    if item_id in hidden:
        return c.HIDDEN
    return None if item_id in catalogue.known else c.UNKNOWN


def unavailable_in(kept: Sequence[Candidate], items: Features | None) -> list[Removed]:
    """What the store, fresher than this replica's catalogue, says is not available. `items` has one row a candidate."""
    available = items.get(AVAILABLE) if items else None
    if available is None:
        return []
    rows = zip(kept, available, strict=True)
    return [(candidate, c.UNAVAILABLE) for candidate, value in rows if value is not None and not value]
