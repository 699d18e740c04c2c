"""The table of ids against a plain dictionary, and how much it takes."""

import random

import numpy as np
import polars as pl
import pytest

from flows.fingerprints import Fingerprints


def seen(table: Fingerprints, ids: list[str], times: list[int]) -> list[bool]:
    return list(table.seen(pl.Series(ids, dtype=pl.String), np.array(times, np.int64)).tolist())


def test_an_id_is_seen_up_to_the_horizon_after_its_newest_time_and_not_beyond() -> None:
    table = Fingerprints(horizon_us=10)
    assert seen(table, ["a", "b", "a"], [100, 101, 105]) == [False, False, True]
    assert seen(table, ["a"], [115]) == [True]
    assert seen(table, ["a", "b"], [126, 126]) == [False, False]


@pytest.mark.parametrize("horizon", [0, 7, 400, 10**9])
def test_it_answers_as_a_dictionary_would_however_often_it_grows(horizon: int) -> None:
    rng = random.Random(horizon)
    table, plain, now = Fingerprints(horizon), {}, 1_000  # type: ignore[var-annotated]
    for _ in range(60):
        ids, times, expected = [], [], []
        for _ in range(rng.randrange(200)):
            now += rng.choice([0, 0, 1, 3])
            ids.append(f"e{rng.randrange(3_000)}")
            times.append(now)
            expected.append(ids[-1] in plain and plain[ids[-1]] >= now - horizon)
            plain[ids[-1]] = now
        assert seen(table, ids, times) == expected


def test_what_is_beyond_the_horizon_is_dropped_so_a_steady_stream_takes_steady_room() -> None:
    table = Fingerprints(horizon_us=10_000)
    sizes = []
    for start in range(0, 200_000, 1_000):
        seen(table, [f"e{n}" for n in range(start, start + 1_000)], list(range(start, start + 1_000)))
        sizes.append(table.size_bytes)
    assert max(sizes[100:]) == max(sizes[20:100])
    assert table.size_bytes / 10_000 < 100


def test_an_id_takes_less_than_fifty_bytes() -> None:
    table = Fingerprints(horizon_us=10**9)
    for start in range(0, 100_000, 10_000):
        seen(table, [f"e{n}" for n in range(start, start + 10_000)], [1] * 10_000)
    assert len(table) == 100_000
    assert table.size_bytes / 100_000 < 50


def test_a_clock_that_goes_back_makes_no_id_older_than_it_is() -> None:
    table = Fingerprints(horizon_us=10)
    assert seen(table, ["a", "a"], [100, 95]) == [False, True]
    assert seen(table, ["a"], [110]) == [True]
