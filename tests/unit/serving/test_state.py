"""What a user's features say of items: history, what is hidden, what was begun and not ended."""

from typing import Any

import pytest

from headrace import names
from serving.state import User


def user(*acts: tuple[str | None, str]) -> User:
    items, types = [item for item, _ in acts], [kind for _, kind in acts]
    return User(None, 1, {names.RECENT_ITEMS: [items], names.RECENT_TYPES: [types]})


def test_the_history_is_all_items_oldest_first() -> None:
    assert user(("a", "view"), (None, "search"), ("b", "click"), ("a", "view")).history == ["a", "b", "a"]


def test_hidden_is_what_was_hidden_or_disliked_ever() -> None:
    assert user(("a", "hide"), ("b", "dislike"), ("c", "like"), ("a", "view")).hidden == {"a", "b"}


@pytest.mark.parametrize(
    ("acts", "expected"),
    [
        ([("a", "add_to_cart"), ("b", "add_to_cart")], ["b", "a"]),
        ([("a", "add_to_cart"), ("b", "add_to_cart"), ("a", "add_to_cart")], ["a", "b"]),
        ([("a", "add_to_cart"), ("a", "purchase")], []),
        ([("a", "add_to_cart"), ("a", "remove_from_cart"), ("b", "view")], []),
        ([("a", "purchase"), ("a", "add_to_cart")], ["a"]),
        ([("a", "add_to_cart"), ("b", "purchase"), ("a", "view")], ["a"]),
        ([], []),
    ],
)
def test_unfinished_is_what_lies_in_the_cart_newest_first(acts: list[tuple[str, str]], expected: list[str]) -> None:
    assert user(*acts).unfinished == expected


def test_where_the_lists_are_not_as_long_their_newest_belong_together() -> None:
    acts: dict[str, Any] = {names.RECENT_ITEMS: [["a", "b", "c"]], names.RECENT_TYPES: [["add_to_cart", "hide"]]}
    found = User(None, 1, acts)
    assert (found.history, found.unfinished, found.hidden) == (["a", "b", "c"], ["b"], {"c"})


@pytest.mark.parametrize(
    "features", [{}, {names.RECENT_ITEMS: [None]}, {names.RECENT_ITEMS: []}, {names.RECENT_ITEMS: [["a"]]}]
)
def test_features_that_are_missing_say_nothing(features: dict[str, Any]) -> None:
    found = User(None, 1, features)
    assert (found.hidden, found.unfinished) == (frozenset(), [])
    assert found.history == (["a"] if features.get(names.RECENT_ITEMS) == [["a"]] else [])
