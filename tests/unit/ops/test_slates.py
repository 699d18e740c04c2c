import pytest

from headrace.ops.slates import NoKindError, choose_kind, mean_rank, of_kind, rise

KINDS = {f"{kind}{number}": kind for kind in ("lamp", "shoe", "book") for number in range(10)}
LAMPS = [f"lamp{number}" for number in range(5)]
SHOES = [f"shoe{number}" for number in range(5)]
BOOKS = [f"book{number}" for number in range(10)]


def test_the_kind_with_the_most_room_to_rise_is_chosen() -> None:
    assert choose_kind([*SHOES, *BOOKS, *LAMPS], KINDS) == "lamp"


def test_a_kind_that_fills_the_slate_already_is_not_chosen() -> None:
    assert choose_kind([*LAMPS, *SHOES, *BOOKS], KINDS) == "shoe"


def test_without_a_fit_kind_the_reason_is_given() -> None:
    with pytest.raises(NoKindError, match=r"no kind holds 5 to 30% of 3 items: \{'lamp': 3\}"):
        choose_kind(LAMPS[:3], KINDS)


def test_mean_rank_counts_from_one_and_puts_the_absent_below_the_slate() -> None:
    assert mean_rank(["a", "b", "c"], ["a", "c"]) == 2.0
    assert mean_rank(["a", "b", "c"], ["a", "z"]) == 2.5


def test_rise_is_positive_when_items_move_up() -> None:
    assert rise(["a", "b", "c", "d"], ["c", "d", "a", "b"], ["c", "d"]) == 2.0
    assert rise(["a", "b", "c", "d"], ["c", "d", "a", "b"], ["a", "b"]) == -2.0


def test_items_of_a_kind_keep_the_order_of_the_slate() -> None:
    assert of_kind(["shoe1", "lamp2", "lamp1"], "lamp", KINDS) == ["lamp2", "lamp1"]
