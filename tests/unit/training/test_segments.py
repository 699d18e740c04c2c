import numpy as np
import polars as pl

from training.requests import Histories, Requests
from training.segments import ITEM, SEEN, USER, head, segments

TRAINED = np.array([6, 3, 2, 1, 0], dtype=np.float32)


def test_the_head_is_the_fewest_items_with_half_of_the_episodes() -> None:
    assert head(TRAINED).tolist() == [True, False, False, False, False]
    assert head(np.array([2, 3, 3, 1], dtype=np.float32)).tolist() == [False, True, True, False]
    assert head(np.zeros(2, np.float32)).tolist() == [False, False]


def test_requests_fall_into_their_segments_and_empty_ones_are_left_out() -> None:
    rows = pl.DataFrame({"user_id": ["u", "new", "u", "v"]})
    nothing = Histories(np.zeros(5, np.int64), np.zeros(0, np.int64))
    requests = Requests(rows, np.array([0, 1, 0, 2]), np.array([0, 1, 4, 3]), nothing)
    found = segments(requests, pl.DataFrame({"user_id": ["u", "v", "v"]}), TRAINED)
    assert [(part.of, part.name, np.flatnonzero(part.member_T).tolist()) for part in found] == [
        (USER, "new", [1]),
        (USER, "returning", [0, 2, 3]),
        (ITEM, "head", [0]),
        (ITEM, "tail", [1, 3]),
        (ITEM, "cold", [2]),
        (SEEN, "0 times", [2]),
        (SEEN, "1 to 9 times", [0, 1, 3]),
    ]
