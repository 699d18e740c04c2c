"""Clicks since the champion's window, by hand: three items were shown before its end, and three after it."""

import io
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from rich.console import Console

from headrace.models.bundle import Bundle
from headrace.settings import HOUR_US
from tests.unit.models import tiny_shop
from tests.unit.training.test_dataset import events
from training import drift
from training.config import small
from training.drift import Drift
from training.drift_signals import DriftConfig, Signal

BOUNDS = DriftConfig(min_impressions=1, min_clicks=1)
WINDOW_END_US = 100 * HOUR_US
SHOWN = {"early": 10.0, "sooner": 20.0, "late": 99.5, "new": 101.0, "newer": 120.0, "newest": 160.5}
"""By request, the hour."""
CLICKED = {"early": 10.5, "late": 99.9, "new": 106.0, "newer": 120.5}


def log() -> pl.DataFrame:
    rows = [("u", "a", "impression", hour) for hour in SHOWN.values()]
    rows += [("u", "a", "click", hour) for hour in CLICKED.values()]
    return events(*rows, request_id=[*SHOWN, *CLICKED])


def champion(outcome_hours: float) -> Bundle:
    bundle = tiny_shop.bundle()
    config = small().changed(outcome_hours=outcome_hours).to_json()
    return replace(bundle, manifest=replace(bundle.manifest, config=config))


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """Hours at which what the ranker was asked of was shown. It says 0.25 of every click."""
    hours: list[list[int]] = []

    def probabilities(
        models: object, rows: pl.DataFrame, *_: object
    ) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
        hours.append([t_us // HOUR_US for t_us in rows["t_us"]])
        return np.full((rows.height, 2), 0.25)

    monkeypatch.setattr(drift, "probabilities", probabilities)
    return hours


def test_the_click_rate_is_of_clicks_within_the_hour_and_leaves_out_the_last_hour_of_both_sides() -> None:
    """Before: one of two. Since: of the first the click came too late, the second's came, the last one's may still come."""
    end_us = 161 * HOUR_US
    [lost] = drift.of_click_rate(log(), WINDOW_END_US, end_us, champion(24.0), BOUNDS).signals
    assert (lost.value, lost.said) == (0.0, "50.00% [9.45%, 90.55%], now 50.00% [9.45%, 90.55%]")


def test_probabilities_are_held_against_clicks_within_the_hours_that_they_speak_of(asked: list[list[int]]) -> None:
    end_us = 161 * HOUR_US
    [found] = drift.of_calibration(log(), WINDOW_END_US, end_us, champion(24.0), None, BOUNDS).signals  # type: ignore[arg-type]
    assert asked == [[101, 120]]
    assert (found.value, found.said) == (2 / 0.5, "0 clicks predicted, 2 came")
    [within_the_hour] = drift.of_calibration(log(), WINDOW_END_US, end_us, champion(1.0), None, BOUNDS).signals  # type: ignore[arg-type]
    assert (within_the_hour.value, within_the_hour.said) == (1 / 0.5, "0 clicks predicted, 1 came")


def test_what_was_shown_in_the_last_outcome_hours_is_not_held_against_the_ranker(asked: list[list[int]]) -> None:
    end_us = 126 * HOUR_US
    [found] = drift.of_calibration(log(), WINDOW_END_US, end_us, champion(24.0), None, BOUNDS).signals  # type: ignore[arg-type]
    assert asked == [[101]]
    assert found.said == "0 clicks predicted, 1 came"
    few = DriftConfig(min_impressions=2, min_clicks=1)
    assert drift.of_calibration(log(), WINDOW_END_US, end_us, champion(24.0), None, few).note == (  # type: ignore[arg-type]
        "clicks are not held against their probabilities: that takes 2 impressions and 1 clicks since, 24 hours old, "
        "and there are 1 and 1"
    )
    assert drift.of_click_rate(log(), WINDOW_END_US, end_us, champion(24.0), replace(few, min_impressions=3)).note == (
        "click rates are not compared: that takes 3 impressions on both sides and 1 clicks before, and there are 2 before and 2 since, "
        "and 1 clicks"
    )


def by_chance(
    rng: np.random.Generator, chance_I: np.ndarray[tuple[int], np.dtype[np.float64]], count: int
) -> pl.DataFrame:
    """Events on items, of whichever users."""
    items = rng.choice(len(chance_I), count, p=chance_I)
    users = rng.integers(300, size=count)
    return pl.DataFrame({"user_id": [f"u{user}" for user in users], "item_id": [f"i{item}" for item in items]})


@pytest.mark.parametrize(
    "chance_I", [np.full(1_000, 1 / 1_000), 1 / np.arange(1, 1_001) / (1 / np.arange(1, 1_001)).sum()]
)
def test_of_items_whose_popularity_stays_nothing_drifts_and_of_others_it_does(
    chance_I: np.ndarray[tuple[int], np.dtype[np.float64]],
) -> None:
    """1,000 events on each side, drawn twenty times."""
    for seed in range(20):
        rng = np.random.default_rng(seed)
        before = by_chance(rng, chance_I, 2_000)
        [stays] = drift.of_popularity(before, by_chance(rng, chance_I, 1_000), DriftConfig()).signals
        assert not stays.drifted
    steep = np.sort(chance_I * np.linspace(1, 0, 1_000) ** 4)[::-1]
    before, moved = (by_chance(rng, chances / steep.sum(), 2_000) for chances in (steep, np.roll(steep, 500)))
    [moves] = drift.of_popularity(before, moved, DriftConfig()).signals
    assert moves.drifted


def test_of_a_single_user_no_popularity_is_compared() -> None:
    rows = pl.DataFrame({"user_id": ["u"] * 2_000, "item_id": ["i"] * 2_000})
    found = drift.of_popularity(rows, rows, DriftConfig())
    assert found.signals == ()
    assert found.note.startswith(
        "popularity is not compared: that takes 250 events of both halves of the users, and there are "
    )


def test_users_are_not_compared_over_part_of_a_day() -> None:
    rows = events(("u", "a", "click", 0.0), ("u", "a", "click", 11.5))
    found = drift.of_users(tiny_shop.bundle(), rows, rows, None, DriftConfig())  # type: ignore[arg-type]
    assert found.note == "users' features are not compared: that takes 12 hours of new events, and there are 11.5"


def test_a_table_names_every_feature_whole_and_says_of_what_a_value_was() -> None:
    long = "user_activity__a_number_whose_name_is_longer_than_any_screen_that_people_have_is_wide"
    signal = Signal(long, 0.5, 0.2, True, "tenth 10 of popularity: 10.0%, now 26.2%")
    found = Drift("3", "b", (0, HOUR_US), 2 * HOUR_US, 1_234, (signal,))
    console = Console(width=80, file=io.StringIO())
    console.print(drift.as_table(found))
    printed = console.file.getvalue()  # type: ignore[attr-defined]
    told = "".join(line.split("│")[1].strip() for line in printed.splitlines() if line.startswith("│"))
    assert told == long
    assert " ".join(printed.split("┏")[0].split()) == (
        "version 3 (bundle b): what it learnt from, 1970-01-01 00:00 to 1970-01-01 01:00, beside the 1,234 interactions since, "
        "up to 1970-01-01 02:00 (UTC)"
    )
