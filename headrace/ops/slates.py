"""What the demo measures on slates: which kind of item to click, and how far that kind rose. Plain functions of item ids."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from statistics import mean

MIN_OF_A_KIND = 5
DOMINANT = 0.3


class NoKindError(ValueError):
    """No kind of item in the slate is fit to be clicked."""


def choose_kind(slate: Sequence[str], kind_of: Mapping[str, str]) -> str:
    """The kind with the most room to rise: at least 5 items of the slate, at most 3 in 10 of it, the worst mean rank.

    Raises NoKindError if there is none.
    """
    counts = Counter(kind_of[item] for item in slate if item in kind_of)
    fit = [kind for kind, count in counts.items() if MIN_OF_A_KIND <= count <= DOMINANT * len(slate)]
    if not fit:
        raise NoKindError(f"no kind holds {MIN_OF_A_KIND} to {DOMINANT:.0%} of {len(slate)} items: {dict(counts)}")
    return max(sorted(fit), key=lambda kind: mean_rank(slate, of_kind(slate, kind, kind_of)))


def of_kind(slate: Sequence[str], kind: str, kind_of: Mapping[str, str]) -> list[str]:
    """The slate's items of one kind, in its order."""
    return [item for item in slate if kind_of.get(item) == kind]


def mean_rank(slate: Sequence[str], items: Collection[str]) -> float:
    """Mean place of `items`, 1 the best; an item that is not in the slate stands just below it."""
    place = {item: rank for rank, item in enumerate(slate, start=1)}
    return mean(place.get(item, len(slate) + 1) for item in items)


def rise(before: Sequence[str], after: Sequence[str], items: Collection[str]) -> float:
    """By how many places `items` moved up on average; negative if down."""
    return mean_rank(before, items) - mean_rank(after, items)
