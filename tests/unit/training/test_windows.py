"""Rows that share a history read in it what they would have read alone."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.models import columns
from headrace.models.preprocessing import Catalogue
from headrace.models.towers import TwoTowers
from tests.unit.models import tiny_shop
from training.windows import Windows, write_windows

SECOND = 1_000_000
ITEMS = ["a", "b", "c", "d", "not in the catalogue"]
Event = tuple[int, str, str]
"""Time in seconds, item, type."""


def features(events: list[Event], t_s: int, length: int, views: int) -> dict[str, Any]:
    """What a store that keeps the last `length` events would give at t: those before it."""
    seen = [event for event in events if event[0] < t_s][-length:]
    return {
        "user_activity__views_10m": views,
        "user_activity__recent_items": [item for _, item, _ in seen],
        "user_activity__recent_types": [kind for _, _, kind in seen],
        "user_activity__recent_times": [at_s * SECOND for at_s, _, _ in seen],
        "user_profile__age": 30,
        "user_profile__country": "DE",
    }


def written(
    folder: Path, users: dict[str, list[Event]], length: int, chunk: int = 1_000
) -> tuple[Windows, pl.DataFrame, pa.Table]:
    """Windows of a row at every event's time, and the rows with their features."""
    keys = [(user, event[0]) for user, events in sorted(users.items()) for event in events]
    rows = pl.DataFrame({"user_id": [user for user, _ in keys], "t_us": [t_s * SECOND for _, t_s in keys]})
    table = pa.Table.from_pylist(
        [features(users[user], t_s, length, views) for views, (user, t_s) in enumerate(keys)],
        schema=pa.schema(
            [
                ("user_activity__views_10m", pa.int64()),
                ("user_activity__recent_items", pa.list_(pa.string())),
                ("user_activity__recent_types", pa.list_(pa.string())),
                ("user_activity__recent_times", pa.list_(pa.int64())),
                ("user_profile__age", pa.int64()),
                ("user_profile__country", pa.string()),
            ]
        ),
    )
    shop = Catalogue(tiny_shop.preprocessing(length), columns.by_name(tiny_shop.catalogue()))
    chunks = (table.slice(start, chunk) for start in range(0, table.num_rows, chunk))
    return write_windows(folder, rows, chunks, tiny_shop.preprocessing(length), shop.row), rows, table


def vectors(windows: Windows, rows: pl.DataFrame, table: pa.Table, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Of every row, within its window and alone."""
    preprocessing = tiny_shop.preprocessing(length)
    shop = Catalogue(preprocessing, columns.by_name(tiny_shop.catalogue()))
    torch.manual_seed(0)
    towers = TwoTowers(preprocessing, tiny_shop.MODEL).eval()
    with torch.inference_mode():
        for parameter in towers.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
        histories, users, window, seen = windows.take(np.arange(len(windows)))
        together = towers.users_along(histories, shop.inputs, users, window, seen)
        alone = towers.users(
            preprocessing.users(columns.by_name(table), rows["t_us"].to_numpy(), shop.row), shop.inputs
        )
    return together, alone


WALK: list[Event] = [(10, "a", "view"), (12, "b", "click"), (20, "c", "view"), (50, "d", "purchase")]


def test_a_users_rows_fall_into_one_window_where_it_holds_the_whole_history(tmp_path: Path) -> None:
    windows, rows, table = written(tmp_path, {"u": WALK, "v": WALK[:2]}, length=4)
    assert (len(windows), windows.sizes_W.tolist(), windows.lengths_W.tolist()) == (2, [4, 2], [3, 1])
    assert windows.users.columns["seen"].tolist() == [0, 1, 2, 3, 0, 1]
    together, alone = vectors(windows, rows, table, 4)
    assert torch.allclose(together, alone, atol=1e-5)


def test_a_row_that_would_see_less_than_half_of_its_history_heads_a_window_of_its_own(tmp_path: Path) -> None:
    events = [(at_s, "abcd"[at_s % 4], "view") for at_s in range(1, 12)]
    windows, _, _ = written(tmp_path, {"u": events}, length=4)
    seen = windows.users.columns["seen"]
    assert windows.rows == 11
    # The last window is the newest four events' and has rows that have seen 4, 3 and 2 of them; before the first there is nothing.
    assert [seen[start:stop].tolist() for start, stop in zip(windows.starts_W, windows.starts_W[1:], strict=False)] == [
        [0, 1, 2, 3, 4],
        [2, 3, 4],
        [2, 3, 4],
    ]


def test_a_row_whose_next_event_is_not_its_own_heads_a_window(tmp_path: Path) -> None:
    """Where rows are not at events' times a gap would be another: the input is not changed for speed's sake."""
    windows, _, _ = written(tmp_path / "own", {"u": WALK}, length=4)
    assert len(windows) == 1
    shifted = {"u": [*WALK[:2], (1_000, "c", "view"), *[(event[0] + 2_000, *event[1:]) for event in WALK[2:]]]}
    rows = pl.DataFrame({"user_id": ["u", "u"], "t_us": [13 * SECOND, 3_000 * SECOND]})
    table = pa.Table.from_pylist([features(shifted["u"], t_s, 4, 0) for t_s in (13, 3_000)])
    shop = Catalogue(tiny_shop.preprocessing(4), columns.by_name(tiny_shop.catalogue()))
    apart = write_windows(tmp_path / "other", rows, iter([table]), tiny_shop.preprocessing(4), shop.row)
    assert apart.sizes_W.tolist() == [1, 1]


def test_windows_do_not_reach_from_one_chunk_into_the_next(tmp_path: Path) -> None:
    windows, rows, table = written(tmp_path, {"u": WALK, "v": WALK}, length=4, chunk=3)
    assert windows.sizes_W.tolist() == [3, 1, 2, 2]
    together, alone = vectors(windows, rows, table, 4)
    assert torch.allclose(together, alone, atol=1e-5)


def test_some_windows_are_read_with_their_own_rows(tmp_path: Path) -> None:
    windows, _, _ = written(tmp_path, {"u": WALK, "v": WALK[:2], "w": WALK[:3]}, length=4)
    assert windows.rows_of(np.array([2, 0])).tolist() == [6, 7, 8, 0, 1, 2, 3]
    batch = windows.take(np.array([1]))
    assert batch.window_R.tolist() == [0, 0]
    assert batch.histories.items_BL.shape == (1, 1)


EVENTS = st.lists(
    st.tuples(st.integers(1, 40), st.sampled_from(ITEMS), st.sampled_from(["view", "click", "add_to_cart"])),
    min_size=1,
    max_size=12,
).map(sorted)


@settings(max_examples=60, deadline=None)
@given(users=st.dictionaries(st.sampled_from("uvw"), EVENTS, min_size=1), length=st.integers(2, 14))
def test_whatever_happened_a_row_reads_its_own_newest_events_and_all_where_they_fit(
    users: dict[str, list[Event]], length: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Ties, repeated items and unknown ones too: with all of the history in its window a row's vector is what it is alone."""
    windows, rows, table = written(tmp_path_factory.mktemp("windows"), users, length)
    together, alone = vectors(windows, rows, table, length)
    own = np.array([len(events) for events in table["user_activity__recent_items"].to_pylist()])
    seen = np.asarray(windows.users.columns["seen"])
    assert (seen <= own).all()
    assert (seen >= np.minimum(own, (length + 1) // 2)).all()
    whole = torch.from_numpy(seen == own)
    assert torch.allclose(together[whole], alone[whole], atol=1e-4)
