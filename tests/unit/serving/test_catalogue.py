"""Items as columns: what is put in comes out, filters compare codes and prices, rows stay what they are."""

import numpy as np
import pytest

from serving import catalogue as cat
from serving.candidates import EVERYTHING, Filter
from serving.catalogue import BRAND, CATEGORY, PRICE, Catalogue
from tests.unit.serving.small_shop import changes

COLOUR = "item_catalogue__colour"


def shop() -> Catalogue:
    made = Catalogue(cat.LIVE)
    made.put(changes("a", "b", "c", category=["shoes", "books", None], brand=["x", None, "y"], price=[1.0, 2.0, None]))
    return made


def ids(catalogue: Catalogue, wanted: Filter) -> list[str]:
    inside = np.flatnonzero(~catalogue.outside(wanted))
    return [catalogue.item_ids[row] for row in inside]


def test_items_get_rows_in_the_order_in_which_they_come_and_keep_them() -> None:
    made = shop()
    assert made.put(changes("d", "a")).tolist() == [3, 0]
    assert made.item_ids == ["a", "b", "c", "d"]
    assert made.rows(["c", "never", "a"]).tolist() == [2, 0]
    assert (len(made), made.row_of["d"]) == (4, 3)


def test_a_change_replaces_what_was_known_and_not_when_an_item_was_first_heard_of() -> None:
    made = Catalogue()
    made.put(changes("a", listed_us=5, price=[1.0]))
    made.put(changes("b", "a", state=cat.UNAVAILABLE, listed_us=9, category=["toys", "toys"], price=[None, 3.0]))
    assert made.content_of(np.array([0, 1]), [CATEGORY, BRAND, PRICE]) == {
        "item_id": ["a", "b"],
        CATEGORY: ["toys", "toys"],
        BRAND: [None, None],
        PRICE: [3.0, None],
    }
    assert made.listed_us.tolist() == [5, 9]
    assert made.state.tolist() == [cat.UNAVAILABLE, cat.UNAVAILABLE]


def test_content_that_comes_later_is_null_for_items_without_it() -> None:
    made = shop()
    made.put(changes("d", **{COLOUR: ["red"]}))
    made.put(changes("e"))
    rows = np.array([4, 3, 0])
    assert made.content_of(rows, [COLOUR, "item_catalogue__never"]) == {
        "item_id": ["e", "d", "a"],
        COLOUR: [None, "red", None],
        "item_catalogue__never": [None, None, None],
    }


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        (EVERYTHING, "abc"),
        (Filter(category=frozenset({"shoes"})), "a"),
        (Filter(category=frozenset({"shoes", "books", "never"})), "ab"),
        (Filter(category=frozenset()), ""),
        (Filter(brand=frozenset({"y"})), "c"),
        (Filter(min_price=1.0), "ab"),
        (Filter(min_price=1.0000001), "b"),
        (Filter(max_price=1.0), "a"),
        (Filter(min_price=0.0, max_price=0.5), ""),
        (Filter(category=frozenset({"books"}), min_price=2.0, max_price=2.0), "b"),
        (Filter(category=frozenset({"books"}), brand=frozenset({"x"})), ""),
    ],
)
def test_a_filter_takes_what_is_known_to_be_wanted_alone(wanted: Filter, expected: str) -> None:
    made = shop()
    assert ids(made, wanted) == list(expected)
    assert made.outside(wanted, np.array([2, 0])).tolist() == [item not in expected for item in "ca"]


def test_a_changed_item_is_filtered_by_what_it_is_now() -> None:
    made = shop()
    made.put(changes("a", category=["toys"], price=[5.0]))
    assert ids(made, Filter(category=frozenset({"toys"}), min_price=4.0)) == ["a"]
    assert ids(made, Filter(category=frozenset({"shoes"}))) == []


def test_thousands_of_items_keep_their_columns() -> None:
    made = shop()
    many = [f"i{number}" for number in range(3_000)]
    made.put(changes(*many, price=[float(number) for number in range(3_000)], category=["all"] * 3_000))
    assert len(made.state) == len(made.category) == len(made.listed_us) == 3_003
    assert ids(made, Filter(min_price=2_998.0)) == ["i2998", "i2999"]
    assert made.category[2] < 0 <= made.category[3]


def test_new_items_are_the_newest_at_once_and_those_that_cannot_be_had_are_not() -> None:
    made = shop()
    made.announce(made.put(changes("d", "e")))
    made.announce(made.put(changes("f", state=cat.UNAVAILABLE)))
    made.announce(made.put(changes("g")))
    assert made.orders.newest.tolist() == [6, 4, 3]


def test_what_came_since_the_orders_were_made_is_the_least_popular() -> None:
    made = shop()
    made.orders = made.orders._replace(popular=np.array([2, 0, 1]))
    assert made.most_popular_first().tolist() == [2, 0, 1]
    made.put(changes("d"))
    assert made.most_popular_first().tolist() == [2, 0, 1, 3]


def test_an_empty_catalogue_knows_nothing() -> None:
    made = Catalogue()
    assert (len(made), made.origin, made.rows(["a"]).tolist()) == (0, cat.NONE, [])
    assert made.outside(Filter(category=frozenset({"a"}))).tolist() == []
    assert made.put(changes()).tolist() == []
