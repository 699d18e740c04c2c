"""What the ranker learns from, by hand: two requests that were offered three of four items, and slates as they were shown."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from headrace.arrays import Ints
from training.lists import ListBatch, Lists, retrieved_lists, shown_lists, together, were_offered
from training.rows import Table, UserRows

ITEMS = ["a", "b", "c", "d"]
REQUESTS = pl.DataFrame(
    {
        "user_id": ["u", "v"],
        "item_id": ["c", "a"],
        "t_us": [10, 20],
        "click": [1, 1],
        "cart": [1, 0],
        "purchase": [0, 0],
    }
)
TARGETS = np.array([2, 0])
OFFERED = np.array([[1, 2, 3], [1, 2, 3]])


def test_a_list_is_the_target_among_others_of_the_offer_and_labelled_by_what_came_of_it() -> None:
    rows = retrieved_lists(REQUESTS[:1], TARGETS[:1], OFFERED[:1], ITEMS, candidates=10, seed=0)
    assert rows.select("list", "user_id", "t_us", "item_id", "wanted", "click", "cart", "place_shown").rows() == [
        (0, "u", 10, "b", False, 0, 0, 0),
        (0, "u", 10, "c", True, 1, 1, 0),
        (0, "u", 10, "d", False, 0, 0, 0),
    ]


def test_a_request_without_its_target_among_the_offer_is_told_apart() -> None:
    assert were_offered(TARGETS, OFFERED).tolist() == [True, False]


def test_a_shorter_list_keeps_the_target() -> None:
    for seed in range(20):
        rows = retrieved_lists(REQUESTS[:1], TARGETS[:1], OFFERED[:1], ITEMS, candidates=2, seed=seed)
        assert rows["item_id"].len() == 2
        assert rows["wanted"].sum() == 1


def test_an_offer_of_fewer_items_has_no_empty_candidate() -> None:
    rows = retrieved_lists(REQUESTS[:1], TARGETS[:1], np.array([[2, -1, -1]]), ITEMS, candidates=10, seed=0)
    assert rows["item_id"].to_list() == ["c"]


def impressions(*rows: tuple[str, int, str, int, int]) -> pl.DataFrame:
    """Rows of (user, time, item, position, click)."""
    return pl.DataFrame(
        {
            "user_id": [row[0] for row in rows],
            "item_id": [row[2] for row in rows],
            "t_us": [row[1] for row in rows],
            "request_id": [f"r{row[1]}" for row in rows],
            "position": pl.Series([row[3] for row in rows], dtype=pl.Int32),
            "click": [row[4] for row in rows],
            "cart": [0 for _ in rows],
            "purchase": [0 for _ in rows],
        }
    )


def test_a_slate_is_a_list_with_positions_from_one_and_no_choice() -> None:
    shown = impressions(("u", 7, "b", 1, 1), ("u", 7, "a", 0, 0), ("v", 3, "d", 0, 0), ("v", 3, "unknown", 1, 0))
    rows = shown_lists(shown, ITEMS, longest=5)
    assert rows.select("list", "user_id", "item_id", "place_shown", "click", "wanted").rows() == [
        (0, "v", "d", 1, 0, False),
        (1, "u", "a", 1, 0, False),
        (1, "u", "b", 2, 1, False),
    ]


def test_lists_of_both_kinds_are_numbered_on() -> None:
    retrieved = retrieved_lists(REQUESTS[:1], TARGETS[:1], OFFERED[:1], ITEMS, candidates=2, seed=0)
    shown = shown_lists(impressions(("u", 7, "a", 0, 0)), ITEMS, longest=5)
    assert together([retrieved, shown])["list"].to_list() == [0, 0, 1]
    assert together([shown, retrieved])["list"].to_list() == [0, 1, 1]


def lists_of(folder: Path) -> Lists:
    """A list of two candidates, the second wanted, and a slate of one."""

    def column(*values: object, kind: type = np.int32) -> Ints:
        return np.array(values, kind)

    users = {
        "categories_BC": np.zeros((2, 0), np.int32), "numbers_BF": column([1.0], [2.0], kind=np.float32),
        "items_BL": column([0, 3], [4, 5]), "types_BL": column([0, 1], [1, 1]), "gaps_BL": column([0, 2], [3, 3]),
    }  # fmt: skip
    items = {
        "id_N": column(2, 3, 4), "categories_NC": np.zeros((3, 0), np.int32),
        "content_NF": column([0.1], [0.2], [0.3], kind=np.float32), "activity_NF": np.zeros((3, 0), np.float32),
        "lists_NA": np.zeros((3, 0), np.int32),
    }  # fmt: skip
    facts = {
        "labels_CO": column([0], [1], [0], kind=np.float32), "positions_C": column(0, 0, 4, kind=np.int64),
        "wanted_C": column(False, True, False, kind=np.bool_), "retrieved_C": column(5.0, 6.0, 7.0, kind=np.float32),
        "nearness_C": column(0.5, 0.0, 0.25, kind=np.float32),
    }  # fmt: skip
    Table.write(folder / "users", 2, [users])
    return Lists(
        UserRows.of(Table.open(folder / "users")),
        Table.write(folder / "items", 3, [items]),
        Table.write(folder / "facts", 3, [facts]),
        np.array([0, 2, 3]),
    )


def test_lists_of_a_batch_are_padded_with_candidates_that_have_no_label(tmp_path: Path) -> None:
    batch: ListBatch = lists_of(tmp_path).take(np.array([1, 0]))
    assert batch.present_BN.tolist() == [[True, False], [True, True]]
    assert batch.items.id_N[batch.present_BN].tolist() == [4, 2, 3]
    assert batch.retrieved.scores_BN[batch.present_BN].tolist() == [7.0, 5.0, 6.0]
    assert batch.retrieved.nearness_BN[batch.present_BN].tolist() == [0.25, 0.5, 0.0]
    assert batch.positions_BN[0, 0].item() == 4
    assert batch.wanted_B.tolist() == [-1, 1]
    assert batch.labels_BNO[..., 0].nan_to_num(-1).tolist() == [[0.0, -1.0], [0.0, 1.0]]
    assert batch.users.items_BL.tolist() == [[4, 5], [0, 3]]


def test_parts_are_all_lists_in_order(tmp_path: Path) -> None:
    lists = lists_of(tmp_path)
    assert lists.has_choices
    assert (lists.choices_R.tolist(), lists.labels_R.tolist()) == ([1, 0], [2, 1])
    assert torch.cat([part.wanted_B for part in lists.parts(1)]).tolist() == [1, -1]


@pytest.mark.parametrize("lists", [np.array([0]), np.array([1])])
def test_one_list_alone_has_no_padding(tmp_path: Path, lists: Ints) -> None:
    assert lists_of(tmp_path).take(lists).present_BN.all()
