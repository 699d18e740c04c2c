"""Where candidates come from: each source's own, each item once, with all who found it."""

import numpy as np
import pytest

from headrace import names
from headrace.arrays import Floats, Ints
from serving import candidates as c
from serving.candidates import RecommendationRequest, Trace
from serving.catalogue import Catalogue
from serving.sources import by_popularity, gather, listed, retrieve, trending_like
from serving.state import ServingState, User
from tests.unit.serving.small_shop import catalogue, changes


def found(*rows: int) -> tuple[Ints, Floats]:
    return np.array(rows, np.int64), np.array(rows, np.float64) / 10


def fail() -> tuple[Ints, Floats]:
    raise RuntimeError("broken")


def test_each_item_is_kept_once_by_the_first_that_found_it_with_all_that_did() -> None:
    trace = Trace(100_000)
    sources = [(c.TWO_TOWER, lambda: found(3, 1)), (c.NEIGHBOURS, lambda: found(1, 2)), (c.NEW, lambda: found(2, 3, 9))]
    every = gather(sources, trace)
    assert every.rows.tolist() == [3, 1, 2, 9]
    assert [c.sources_of(bits) for bits in every.found_by.tolist()] == [
        ["two_tower", "new"],
        ["two_tower", "neighbours"],
        ["neighbours", "new"],
        ["new"],
    ]
    assert [c.first_source(bits) for bits in every.found_by.tolist()] == ["two_tower", "two_tower", "neighbours", "new"]
    assert every.scores.tolist() == [0.3, 0.1, 0.2, 0.9]
    assert [(source.name, source.count) for source in trace.sources] == [
        ("two_tower", 2),
        ("neighbours", 2),
        ("new", 3),
    ]


def test_a_source_that_fails_is_named_and_the_others_answer() -> None:
    trace = Trace(100_000)
    every = gather([(c.TWO_TOWER, fail), (c.NEW, lambda: found(2))], trace)
    assert every.rows.tolist() == [2]
    assert trace.degraded == ["retrieval: failed"]
    assert [(source.name, source.count) for source in trace.sources] == [("two_tower", 0), ("new", 1)]


def test_a_fault_that_no_model_may_raise_is_not_taken_for_one() -> None:
    def fault() -> tuple[Ints, Floats]:
        raise AssertionError("a fault of ours")

    with pytest.raises(AssertionError, match="a fault of ours"):
        gather([(c.TWO_TOWER, fault)], Trace(100_000))


def test_no_source_gives_no_candidates() -> None:
    assert len(gather([], Trace(100))) == 0


def shop() -> Catalogue:
    made = catalogue(*"abcde", trending=["c", "a", "e", "d"], newest=["d", "b"])
    made.put(changes("none", category=[None]))
    return made


def test_the_main_category_is_the_one_that_most_of_the_items_are_of() -> None:
    items = shop()
    assert trending_like(items.rows(["a", "c", "d"]), items).tolist() == items.rows(["c", "d"]).tolist()
    assert trending_like(items.rows(["none", "a"]), items).tolist() == items.rows(["a", "e"]).tolist()
    assert trending_like(items.rows(["none"]), items).tolist() == []
    assert trending_like(items.rows([]), items).tolist() == []


def test_an_order_is_cut_after_what_is_not_allowed_was_left_out() -> None:
    order = np.array([2, 0, 1, 3])
    assert listed(order, 2, None).tolist() == [2, 0]
    assert listed(order, 2, np.array([False, True, False, True])).tolist() == [1, 3]


def test_an_item_that_came_after_the_orders_has_no_popularity_yet() -> None:
    rows, scores = by_popularity(np.array([5, 0]), shop())
    assert (rows.tolist(), scores.tolist()) == ([5, 0], [0.0, 5.0])


def test_unfinished_business_comes_before_what_trends_newest_first() -> None:
    acts = {"b": "add_to_cart", "d": "add_to_cart", "a": "view", "never": "add_to_cart"}
    user = User(None, 1, {names.RECENT_ITEMS: [list(acts)], names.RECENT_TYPES: [list(acts.values())]})
    trace = Trace(100_000)
    every = retrieve(user, None, RecommendationRequest("u", 3), ServingState(None, shop()), None, trace)
    first = [
        (shop().item_ids[row], c.first_source(bits))
        for row, bits in zip(every.rows, every.found_by.tolist(), strict=True)
    ]
    assert first[:2] == [("d", "unfinished"), ("b", "unfinished")]
    assert [source.name for source in trace.sources] == ["unfinished", "category_trending", "trending", "new"]
