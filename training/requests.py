"""Requests to answer: a user at a time, what the user turned to next, and what the user had turned to before.

T requests, I items of the catalogue, L places.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from headrace import names
from headrace.arrays import Ints
from training.dataset import T_US, DatasetError, sample

Scores = Callable[[slice], npt.NDArray[np.float32]]
"""Of some of the requests, a fresh score of every item: (B, I). All requests at once would not fit into memory."""

# Requests whose scores of all items are held at once.
_BLOCK = 256


@dataclass(frozen=True)
class Histories:
    """Of T requests, what each user had turned to before, as places in the catalogue, oldest first.

    Those of request r are `places[offsets[r] : offsets[r + 1]]`; an item stands there once for each of its episodes.
    """

    offsets: Ints  # (T + 1,)
    places: Ints

    def of(self, row: int) -> Ints:
        return self.places[self.offsets[row] : self.offsets[row + 1]]

    def rows(self, chosen: slice) -> "Histories":
        """Of some requests that follow one another."""
        start, stop, _ = chosen.indices(len(self))
        offsets = self.offsets[start : stop + 1]
        return Histories(offsets - offsets[0], self.places[offsets[0] : offsets[-1]])

    def take(self, chosen: Ints) -> "Histories":
        """Of the chosen requests, in their order."""
        lengths = np.diff(self.offsets)[chosen]
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        starts = np.repeat(self.offsets[chosen] - offsets[:-1], lengths)
        return Histories(offsets, self.places[starts + np.arange(offsets[-1])])

    @property
    def pairs(self) -> tuple[Ints, Ints]:
        """Number of the request and place, of every one."""
        return np.repeat(np.arange(len(self)), np.diff(self.offsets)), self.places

    def last(self, length: int) -> Ints:
        """The newest ones, the newest in the last place, -1 before. Shape (T, L)."""
        index_TL = self.offsets[1:, None] - length + np.arange(length)
        present_TL = index_TL >= self.offsets[:-1, None]
        last_TL = np.full(index_TL.shape, -1, np.int64)
        last_TL[present_TL] = self.places[index_TL[present_TL]]
        return last_TL

    def __len__(self) -> int:
        return len(self.offsets) - 1


@dataclass(frozen=True)
class Requests:
    """`rows` has the columns of episodes; `user_T` numbers the users; `target_T` and `history` are places."""

    rows: pl.DataFrame
    user_T: Ints
    target_T: Ints
    history: Histories

    def head(self, count: int) -> "Requests":
        some = slice(0, count)
        return Requests(self.rows[:count], self.user_T[some], self.target_T[some], self.history.rows(some))

    def take(self, chosen: Ints) -> "Requests":
        return Requests(self.rows[chosen], self.user_T[chosen], self.target_T[chosen], self.history.take(chosen))

    @property
    def t_us(self) -> Ints:
        return self.rows[T_US].to_numpy()

    def __len__(self) -> int:
        return len(self.target_T)


def read_requests(
    episodes: pl.DataFrame, everything: pl.DataFrame, item_ids: Sequence[str], count: int, seed: int
) -> Requests:
    """`new_to_their_users` of the test. Raises DatasetError where there is none."""
    requests = new_to_their_users(episodes, everything, item_ids, count, seed)
    if not len(requests):
        known = episodes.filter(pl.col(names.ITEM_ID).is_in(list(item_ids)))
        raise DatasetError(
            f"of {episodes.height} test interactions {known.height} are with items that the catalogue had at the cut, "
            "and none of those with an item that is new to its user: load more, or raise test_share"
        )
    return requests


def new_to_their_users(
    episodes: pl.DataFrame, everything: pl.DataFrame, item_ids: Sequence[str], count: int, seed: int
) -> Requests:
    """Of these episodes, those of the catalogue's items that are new to their user, up to `count` drawn, 0 for all; in random order."""
    known = episodes.filter(pl.col(names.ITEM_ID).is_in(list(item_ids)))
    pair = [names.USER_ID, names.ITEM_ID]
    first = everything.group_by(pair).agg(pl.col(T_US).min().alias("first_us"))
    fresh = known.join(first, on=pair, how="left", maintain_order="left").filter(pl.col(T_US) <= pl.col("first_us"))
    drawn = sample(fresh, count or fresh.height, seed).sample(fraction=1.0, shuffle=True, seed=seed)
    rows = drawn.drop("first_us")
    return Requests(
        rows,
        codes(rows[names.USER_ID], rows[names.USER_ID].unique().sort()),
        codes(rows[names.ITEM_ID], pl.Series(list(item_ids), dtype=pl.String)),
        histories(everything, rows, item_ids),
    )


def histories(episodes: pl.DataFrame, rows: pl.DataFrame, item_ids: Sequence[str]) -> Histories:
    """The catalogue's items of each row's user in episodes that began before the row's time."""
    users = episodes[names.USER_ID].unique().sort()
    place_E = codes(episodes[names.ITEM_ID], pl.Series(list(item_ids), dtype=pl.String))
    user_E, t_E = codes(episodes[names.USER_ID], users), episodes[T_US].to_numpy()
    order = np.lexsort((t_E, user_E))
    order = order[place_E[order] >= 0]
    times = np.unique(t_E)
    # User and time as one number that rises with both; ranks, since microseconds would not fit.
    span = len(times) + 1
    key_E = user_E[order] * span + np.searchsorted(times, t_E[order])
    user_T = codes(rows[names.USER_ID], users)
    start_T = np.searchsorted(key_E, user_T * span)
    stop_T = np.searchsorted(key_E, user_T * span + np.searchsorted(times, rows[T_US].to_numpy()))
    length_T = np.where(user_T >= 0, stop_T - start_T, 0)
    offsets = np.concatenate([[0], np.cumsum(length_T)]).astype(np.int64)
    within = np.arange(offsets[-1]) - np.repeat(offsets[:-1], length_T)
    return Histories(offsets, place_E[order][np.repeat(start_T, length_T) + within])


def best_places(scores: Scores, history: Histories, k: int) -> Ints:
    """Places of the k best items of each request, its history left out, ties in the catalogue's order: (T, K), -1 where
    there are fewer.
    """
    best_TK = np.full((len(history), k), -1, dtype=np.int64)
    for start in range(0, len(history), _BLOCK):
        for row, score_I in enumerate(scores(slice(start, min(start + _BLOCK, len(history)))), start):
            score_I[history.of(row)] = -np.inf
            best = best_of(score_I, k)
            best_TK[row, : len(best)] = best
    return best_TK


def best_of(score_I: npt.NDArray[np.floating[Any]], k: int) -> Ints:
    """Places of the k largest, the largest first, of equals the first; fewer where the rest is -inf.

    A sort of the few that are no worse than the k-th, not of all.
    """
    least = np.partition(score_I, -k)[-k] if k < len(score_I) else -np.inf
    places = np.flatnonzero((score_I >= least) & ~np.isneginf(score_I))
    return places[np.argsort(-score_I[places], kind="stable")[:k]]


def codes(values: pl.Series, among: pl.Series) -> Ints:
    """Place of each value in `among`, whose values are distinct; -1 where it is not there."""
    places = pl.DataFrame({"value": among}).with_row_index("place")
    joined = pl.DataFrame({"value": values}).join(places, on="value", how="left", maintain_order="left")
    return joined["place"].cast(pl.Int64).fill_null(-1).to_numpy(writable=True)
