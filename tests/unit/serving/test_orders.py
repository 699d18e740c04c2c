"""The orders that candidates are taken in, in small exact cases."""

import numpy as np
import pytest

from headrace.arrays import Ints
from serving import catalogue as cat
from serving import orders
from serving.activity import Activity
from serving.catalogue import Catalogue
from serving.orders import by_id, make_orders, scores
from tests.unit.aggregates.test_batch import HOUR, MINUTE, NOON, aggregate
from tests.unit.serving.small_shop import StoredState, changes, event, item_view

WEEK = 7 * 24 * HOUR
SPEC = item_view(
    aggregate("views_1h", "view", "count", window=HOUR, hop=5 * MINUTE),
    aggregate("views_7d", "view", "count", window=WEEK, hop=6 * HOUR),
    aggregate("purchases_7d", "purchase", "count", window=WEEK, hop=6 * HOUR),
    aggregate("likes_7d", "like", "count", window=WEEK, hop=6 * HOUR),
)


def shop(items: dict[str, int], *events: tuple[str, int, str]) -> tuple[Catalogue, Activity]:
    """Items to when they were listed, and (item, hours before noon, type) of each event."""
    stored = StoredState(SPEC)
    columns, catalogue = stored.columns(), Catalogue(cat.LIVE)
    for item, listed_us in items.items():
        catalogue.put(changes(item, listed_us=listed_us))
    columns.grow(len(catalogue))
    stored.fold(*(event(item, NOON - hours * HOUR, kind) for item, hours, kind in events))
    known = sorted(stored.rows)
    columns.put(catalogue.rows(known), [stored.rows[item] for item in known], NOON)
    columns.at(np.arange(len(catalogue)), NOON + 1)
    return catalogue, columns


def named(catalogue: Catalogue, rows: Ints) -> list[str]:
    return [catalogue.item_ids[row] for row in rows.tolist()]


def test_a_purchase_counts_for_ten_views_and_the_last_hour_weighs_most_in_what_trends() -> None:
    catalogue, columns = shop(
        {"a": 3, "b": 2, "c": 1},
        *[("a", hours, "view") for hours in range(24, 28)],
        ("b", 30, "purchase"),
        ("c", 0, "view"),
    )
    overall, trend = scores(columns, 3)
    assert overall.tolist() == [4, 10, 1]
    assert trend == pytest.approx([4 / 168, 10 / 168, 1 + 1 / 168])
    made = make_orders(catalogue, columns, by_id(catalogue, len(catalogue)), NOON)
    assert named(catalogue, made.popular) == ["b", "a", "c"]
    assert named(catalogue, made.trending) == ["c", "b", "a"]
    assert named(catalogue, made.newest) == ["a", "b", "c"]
    assert (made.overall.tolist(), made.as_of_us) == ([4, 10, 1], NOON)


def test_ties_go_by_id_whatever_the_order_of_the_rows() -> None:
    for ids in (["c", "a", "b"], ["b", "c", "a"]):
        catalogue, columns = shop(dict.fromkeys(ids, 5))
        made = make_orders(catalogue, columns, by_id(catalogue, len(catalogue)), NOON)
        assert named(catalogue, made.popular) == ["a", "b", "c"]
        assert named(catalogue, made.newest) == ["a", "b", "c"]
        assert named(catalogue, made.trending) == []


def test_what_cannot_be_had_neither_trends_nor_is_new_and_keeps_its_place_among_the_popular() -> None:
    catalogue, columns = shop({"a": 1, "b": 2, "c": 3}, *[(item, 0, "view") for item in "abc"], ("b", 1, "view"))
    catalogue.put(changes("b", state=cat.UNAVAILABLE))
    catalogue.put(changes("c", state=cat.DELETED))
    made = make_orders(catalogue, columns, by_id(catalogue, len(catalogue)), NOON)
    assert named(catalogue, made.popular) == ["b", "a", "c"]
    assert (named(catalogue, made.trending), named(catalogue, made.newest)) == (["a"], ["a"])


def test_items_that_came_after_the_ids_were_ordered_wait_for_the_next_orders() -> None:
    catalogue, columns = shop({"b": 1, "a": 1})
    catalogue.put(changes("0"))
    columns.grow(3)
    known = by_id(catalogue, 2)
    made = make_orders(catalogue, columns, known, NOON)
    assert named(catalogue, made.popular) == ["a", "b"]
    assert len(made.overall) == 2


def test_what_trends_and_what_is_new_are_at_most_so_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(orders, "TOP", 2)
    catalogue, columns = shop({"a": 1, "b": 2, "c": 3}, *[(item, 0, "view") for item in "abc"])
    made = make_orders(catalogue, columns, by_id(catalogue, len(catalogue)), NOON)
    assert (len(made.popular), len(made.trending), len(made.newest)) == (3, 2, 2)


def test_an_act_that_popularity_does_not_know_and_one_that_is_not_defined_count_nothing() -> None:
    _, columns = shop({"a": 1}, ("a", 1, "like"))
    assert [column.tolist() for column in scores(columns, 1)] == [[0], [0]]


def test_without_activity_all_are_as_popular_and_none_trends() -> None:
    catalogue, _ = shop({"b": 1, "a": 2})
    made = make_orders(catalogue, None, by_id(catalogue, 2), 0)
    assert (named(catalogue, made.popular), named(catalogue, made.newest)) == (["a", "b"], ["a", "b"])
    assert (made.trending.tolist(), made.overall.tolist(), made.as_of_us) == ([], [0, 0], 0)
