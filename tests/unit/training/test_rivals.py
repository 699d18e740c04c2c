"""Baselines choose by validation: a shop whose fashion turned just before the cut."""

import polars as pl

from training.config import small
from training.dataset import Split
from training.requests import best_places, read_requests
from training.rivals import HALF_LIFE_SHARES, POPULAR, RECENT, choose_knobs, rivals

ITEMS = ["new", "old", "rare"]


def episodes(item: str, times: range) -> pl.DataFrame:
    """Of a user who is never seen again."""
    return pl.DataFrame(
        {"user_id": [f"{item} {t}" for t in times], "item_id": [item] * len(times), "t_us": list(times)},
        schema={"user_id": pl.String, "item_id": pl.String, "t_us": pl.Int64},
    )


NONE = episodes("old", range(0))


def split_of(train: pl.DataFrame, validation: pl.DataFrame, test: pl.DataFrame) -> Split:
    return Split(train, validation, test, NONE, NONE, start_us=0, validation_us=1_024, cut_us=1_280, end_us=2_000)


TURNED = split_of(
    train=pl.concat([episodes("old", range(0, 1_000)), episodes("new", range(1_000, 1_024))]),
    validation=episodes("new", range(1_024, 1_100)),
    test=episodes("new", range(1_300, 1_310)),
)


def test_the_half_life_is_the_one_that_was_best_on_the_validation_part() -> None:
    knobs = choose_knobs(TURNED, ITEMS, small())
    assert knobs.validated
    assert knobs.half_life_share == 1 / 64  # the longest that forgets the old fashion by then
    assert knobs.half_life_share in HALF_LIFE_SHARES


def test_without_validation_the_defaults_hold_and_say_so() -> None:
    knobs = choose_knobs(split_of(TURNED.train, NONE, TURNED.test), ITEMS, small())
    assert (knobs.half_life_share, knobs.neighbours, knobs.validated) == (1 / 16, 50, False)


def test_baselines_answer_the_same_requests_each_in_its_way() -> None:
    requests = read_requests(TURNED.test, TURNED.everything, ITEMS, 0, 0)
    scores = rivals(requests, TURNED, ITEMS, choose_knobs(TURNED, ITEMS, small()))
    first = {name: set(best_places(score, requests.history, 1)[:, 0].tolist()) for name, score in scores.items()}
    assert first[POPULAR] == {ITEMS.index("old")}
    assert first[RECENT] == {ITEMS.index("new")}
