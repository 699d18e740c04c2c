"""Why an item is not shown: the first reason counts, and what is kept and removed is all there was."""

import numpy as np

from serving import candidates as c
from serving import catalogue as cat
from serving.candidates import SIMILAR, Candidates, Filter, RecommendationRequest
from serving.catalogue import Catalogue
from serving.filters import allowed, split, why_not
from tests.unit.serving.small_shop import catalogue, changes

BOOKS = Filter(category=frozenset({"books"}))


def shop() -> Catalogue:
    return catalogue(*"abcde", unavailable=["b"], deleted=["c"])


def ask(**options: object) -> RecommendationRequest:
    return RecommendationRequest("u", 5, **options)  # type: ignore[arg-type]


def reasons(request: RecommendationRequest, *hidden: str) -> list[str | None]:
    found = why_not(np.arange(5), request, shop(), hidden).tolist()
    return [None if place < 0 else c.REASONS[place] for place in found]


def test_each_reason_removes_its_own_items() -> None:
    assert reasons(ask()) == [None, "unavailable", "deleted", None, None]
    assert reasons(ask(exclude=frozenset("a"))) == ["excluded", "unavailable", "deleted", None, None]
    assert reasons(ask(), "e", "never") == [None, "unavailable", "deleted", None, "hidden"]
    assert reasons(ask(wanted=BOOKS)) == ["filtered", "unavailable", "deleted", None, "filtered"]
    assert reasons(ask(wanted=Filter(include_unavailable=True))) == [None, None, "deleted", None, None]
    assert reasons(ask(kind=SIMILAR, items=("d",), exclude=frozenset("a")))[3] == "excluded"


def test_the_first_reason_counts() -> None:
    everything = ask(exclude=frozenset("ab"), wanted=BOOKS)
    assert reasons(everything, "a", "b", "c", "e") == ["excluded", "excluded", "deleted", None, "hidden"]


def test_what_is_kept_and_what_is_removed_are_all_in_their_order() -> None:
    found = Candidates(np.array([4, 1, 3, 2, 0]), np.arange(1, 6), np.arange(5.0))
    kept, removed = split(found, ask(exclude=frozenset("e")), shop(), ())
    assert (kept.rows.tolist(), kept.found_by.tolist(), kept.scores.tolist()) == ([3, 0], [3, 5], [2.0, 4.0])
    assert {reason: each.rows.tolist() for reason, each in removed.items()} == {
        "excluded": [4],
        "unavailable": [1],
        "deleted": [2],
    }
    kept, removed = split(Candidates.none(), ask(), shop(), ())
    assert (len(kept), removed) == (0, {})


def test_retrieval_looks_among_what_a_filter_leaves_and_everywhere_without_one() -> None:
    assert allowed(ask(exclude=frozenset("a")), shop()) is None
    assert allowed(ask(wanted=Filter(include_unavailable=True)), shop()) is None
    items = shop()
    items.put(changes("b", state=cat.UNAVAILABLE, category=["books"]))
    both = Filter(category=BOOKS.category, include_unavailable=True)
    assert np.flatnonzero(allowed(ask(wanted=BOOKS), items)).tolist() == [3]
    assert np.flatnonzero(allowed(ask(wanted=both), items)).tolist() == [1, 3]
