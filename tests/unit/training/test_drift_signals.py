"""The population stability index and its bins, by hand."""

import re
from typing import Any

import numpy as np
import pytest

from training.changes import parse_change, parse_changes
from training.drift_signals import DriftConfig, in_bins, of_histogram, of_numbers, of_rates, popularity_deciles, psi


def test_the_index_of_halves_that_became_four_fifths_and_one_fifth() -> None:
    """Half an event more in each bin: shares 1/2 and 1/2, then 80.5/101 and 20.5/101."""
    shares = 80.5 / 101, 20.5 / 101
    by_hand = (shares[0] - 0.5) * np.log(shares[0] / 0.5) + (shares[1] - 0.5) * np.log(shares[1] / 0.5)
    assert psi(np.array([50, 50]), np.array([80, 20])) == pytest.approx(by_hand) == pytest.approx(0.4063, abs=1e-4)


def test_equal_histograms_have_none_and_an_empty_bin_has_a_finite_one() -> None:
    assert psi(np.array([10, 30]), np.array([10, 30])) == 0
    assert psi(np.array([0, 100]), np.array([100, 0])) == pytest.approx(2 * 100 / 101 * np.log(201), abs=1e-9)


def test_deciles_hold_a_tenth_of_the_events_each_as_near_as_items_allow() -> None:
    assert popularity_deciles({"a": 50, "b": 30, "c": 10, "d": 10}) == {"a": 0, "b": 5, "c": 8, "d": 9}


def test_the_bins_of_numbers_are_the_deciles_and_those_that_coincide_are_one() -> None:
    """Nine of ten are 0, one is 5: there is the one edge 0, and a bin for nulls."""
    before = np.array([0.0] * 9 + [5.0])
    now = np.array([0.0, 5.0, 7.0, np.nan])
    counts = in_bins(before, now)
    assert [side.tolist() for side in counts] == [[9, 1, 0], [1, 2, 1]]


def test_the_nineteen_most_frequent_values_have_bins_and_the_rest_one() -> None:
    before = {f"c{number:02}": 100 - number for number in range(30)}
    signal = of_histogram("category", before, before, DriftConfig())
    assert (signal.value, signal.drifted) == (0, False)
    moved = of_histogram("category", before, {"c29": 1_000}, DriftConfig())
    assert moved.drifted
    rest = sum(100 - number for number in range(19, 30)) / sum(before.values())
    assert moved.said == f"all others: {rest:.1%}, now 100.0%"


def test_a_rate_has_drifted_where_it_lost_enough_and_more_than_chance_takes() -> None:
    alike = of_rates("click rate lost", (30, 1_000), (20, 1_000), 0.3)
    assert (alike.drifted, round(alike.value, 3)) == (False, 0.333)
    assert alike.said == "3.00% [2.11%, 4.25%], now 2.00% [1.30%, 3.07%]"
    assert of_rates("click rate lost", (300, 10_000), (200, 10_000), 0.3).drifted
    assert not of_rates("click rate lost", (300, 10_000), (200, 10_000), 0.4).drifted
    assert not of_rates("click rate lost", (300, 10_000), (600, 10_000), 0.3).drifted


def test_a_value_that_is_new_counts_as_one() -> None:
    signal = of_histogram("types", {"view": 100}, {"view": 50, "like": 50}, DriftConfig())
    p, q = np.array([100.5, 0.5]) / 101, np.array([50.5, 50.5]) / 101
    assert signal.value == pytest.approx(float(((q - p) * np.log(q / p)).sum()))
    assert signal.said == "view: 100.0%, now 50.0%"


def test_the_bound_itself_is_no_drift() -> None:
    before, now = np.array([1.0, 2.0, 3.0]), np.array([3.0, 3.0, 3.0])
    value = of_numbers("views", before, now, DriftConfig()).value
    assert not of_numbers("views", before, now, DriftConfig(psi=value)).drifted
    assert of_numbers("views", before, now, DriftConfig(psi=value - 1e-9)).drifted
    assert of_numbers("views", before, now, DriftConfig()).said == "mean 2, now 3"
    assert of_numbers("views", before, np.full(3, np.nan), DriftConfig()).said == "mean 2, now none"


def test_a_bound_is_read_from_a_command_line() -> None:
    changes = parse_changes(["psi=0.3", "min_events=5"], DriftConfig)
    assert DriftConfig().changed(**changes) == DriftConfig(psi=0.3, min_events=5)
    with pytest.raises(ValueError, match="there is no setting 'hue': known are calibration, click_drop"):
        parse_change("hue=1", DriftConfig)
    with pytest.raises(ValueError, match="min_users is 'few': write min_users=VALUE with a whole number"):
        parse_change("min_users=few", DriftConfig)
    with pytest.raises(ValueError, match="unknown setting of drift speed=1; known are calibration"):
        DriftConfig().changed(speed=1)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"min_events": 0}, "min_events of drift is 0; it must be at least 1: of nothing nothing can be said"),
        ({"min_users": 0}, "min_users of drift is 0; it must be at least 1"),
        ({"min_impressions": -1}, "min_impressions of drift is -1; it must be at least 1"),
        ({"min_clicks": 0}, "min_clicks of drift is 0; it must be at least 1"),
        ({"sample": 0}, "sample of drift is 0; it must be at least 1"),
        ({"psi": -0.1}, "psi of drift is -0.1; it must be 0 or more, and finite"),
        ({"psi": float("nan")}, "psi of drift is nan; it must be 0 or more, and finite"),
        ({"unknown_share": 1.5}, "unknown_share of drift is 1.5; it must be a share from 0 to 1"),
        ({"click_drop": -0.5}, "click_drop of drift is -0.5; it must be a share from 0 to 1"),
        ({"calibration": 0.5}, "calibration of drift is 0.5; it must be 1 or more, and finite"),
        ({"seed": -1}, "seed of drift is -1; it must be 0 or more"),
    ],
)
def test_a_bound_out_of_range_is_refused_by_name(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(said)}"):
        DriftConfig().changed(**change)
