import numpy as np
import pytest

from training import evaluate
from training.evaluate import best_places


def test_the_best_items_come_first_ties_in_the_catalogues_order_and_the_history_not_at_all() -> None:
    scores = np.array([[0.1, 0.9, 0.5, 0.5], [0.3, 0.3, 0.3, 0.3]], dtype=np.float32)
    history = np.array([[-1, 1], [0, 2]])
    assert best_places(lambda block: scores[block].copy(), history, 2).tolist() == [[2, 3], [1, 3]]
    assert best_places(lambda block: scores[block].copy(), history, 5).tolist() == [
        [2, 3, 0, -1, -1],
        [1, 3, -1, -1, -1],
    ]


def test_requests_are_scored_a_block_at_a_time_and_none_is_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate, "_BLOCK", 2)
    scores = np.random.default_rng(0).random((5, 50)).astype(np.float32)
    blocks: list[slice] = []

    def of(block: slice) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
        blocks.append(block)
        return scores[block].copy()

    best = best_places(of, np.full((5, 1), -1), 7)
    assert np.array_equal(best, np.argsort(-scores, axis=1)[:, :7])
    assert blocks == [slice(0, 2), slice(2, 4), slice(4, 5)]
