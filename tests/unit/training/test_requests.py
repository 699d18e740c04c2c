import numpy as np
import polars as pl
import pytest

from training import requests
from training.dataset import DatasetError
from training.requests import Histories, best_places, histories, read_requests

ITEMS = ["a", "b", "c", "d"]


def episodes(*rows: tuple[str, str, int]) -> pl.DataFrame:
    return pl.DataFrame(rows, schema={"user_id": pl.String, "item_id": pl.String, "t_us": pl.Int64}, orient="row")


PAST = episodes(("u", "b", 3), ("v", "d", 2), ("u", "a", 1), ("u", "gone", 2), ("u", "b", 5), ("u", "c", 7))
HISTORY = Histories(np.array([0, 2, 2, 5]), np.array([0, 1, 3, 2, 3]))


def test_a_history_is_all_that_began_before_the_request_oldest_first_and_only_of_the_catalogue() -> None:
    asked = episodes(("u", "c", 7), ("w", "a", 9), ("v", "a", 2), ("v", "a", 3), ("u", "a", 0), ("u", "d", 99))
    found = histories(PAST, asked, ITEMS)
    assert [found.of(row).tolist() for row in range(6)] == [[0, 1, 1], [], [], [3], [], [0, 1, 1, 2]]


def test_some_rows_of_histories_are_histories() -> None:
    some = HISTORY.rows(slice(1, 3))
    assert (some.offsets.tolist(), some.places.tolist()) == ([0, 0, 3], [3, 2, 3])
    assert len(HISTORY.rows(slice(3, 9))) == 0


def test_the_last_places_are_padded_before_them() -> None:
    assert HISTORY.last(2).tolist() == [[0, 1], [-1, -1], [2, 3]]
    assert HISTORY.last(4).tolist() == [[-1, -1, 0, 1], [-1, -1, -1, -1], [-1, 3, 2, 3]]


def test_requests_are_first_meetings_with_items_of_the_catalogue() -> None:
    test = episodes(("u", "b", 5), ("u", "c", 7), ("v", "new", 8), ("v", "a", 9))
    found = read_requests(test, pl.concat([PAST, episodes(("v", "a", 9))]), ITEMS, count=0, seed=0)
    assert sorted(found.rows.rows()) == [("u", "c", 7), ("v", "a", 9)]
    by_user = dict(zip(found.rows["user_id"], range(2), strict=True))
    assert found.target_T[[by_user["u"], by_user["v"]]].tolist() == [2, 0]
    assert found.history.of(by_user["u"]).tolist() == [0, 1, 1]
    assert found.history.of(by_user["v"]).tolist() == [3]


def test_a_count_draws_so_many_and_zero_takes_all() -> None:
    test = episodes(*[(f"u{number}", "a", number) for number in range(9)])
    drawn, again = (read_requests(test, test, ITEMS, count=4, seed=1) for _ in range(2))
    assert len(drawn) == 4
    assert drawn.rows.equals(again.rows)
    assert len(read_requests(test, test, ITEMS, count=0, seed=1)) == 9
    assert drawn.head(2).rows.equals(drawn.rows.head(2))


def test_a_test_of_nothing_new_is_refused_with_what_was_found() -> None:
    test = episodes(("u", "b", 5), ("u", "new", 6))
    with pytest.raises(DatasetError, match="of 2 test interactions 1 are with items that the catalogue had at the cut"):
        read_requests(test, pl.concat([PAST, test]), ITEMS, count=0, seed=0)


def test_the_best_items_come_first_ties_in_the_catalogues_order_and_the_history_not_at_all() -> None:
    scores = np.array([[0.1, 0.9, 0.5, 0.5], [0.3, 0.3, 0.3, 0.3]], dtype=np.float32)
    history = Histories(np.array([0, 1, 4]), np.array([1, 0, 2, 0]))
    assert best_places(lambda some: scores[some].copy(), history, 2).tolist() == [[2, 3], [1, 3]]
    assert best_places(lambda some: scores[some].copy(), history, 5).tolist() == [
        [2, 3, 0, -1, -1],
        [1, 3, -1, -1, -1],
    ]


def test_requests_are_scored_a_block_at_a_time_and_none_is_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requests, "_BLOCK", 2)
    scores = np.random.default_rng(0).random((5, 50)).astype(np.float32)
    blocks: list[slice] = []

    def of(block: slice) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
        blocks.append(block)
        return scores[block].copy()

    best = best_places(of, Histories(np.zeros(6, np.int64), np.zeros(0, np.int64)), 7)
    assert np.array_equal(best, np.argsort(-scores, axis=1)[:, :7])
    assert blocks == [slice(0, 2), slice(2, 4), slice(4, 5)]
