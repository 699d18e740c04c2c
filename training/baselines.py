"""What the models have to beat, and what retrieval borrows: popularity, popularity of late, and what goes with what.

I items of the catalogue, U users, B or T requests, K neighbours, L places of a history.
"""

from collections.abc import Callable, Sequence

import numpy as np
import polars as pl
from scipy.sparse import csr_array

from headrace import names
from headrace.arrays import Floats32, Ints, Ints32
from headrace.models.neighbours import DECAY, Neighbours
from training.dataset import T_US
from training.requests import Histories, best_of, codes

# Items whose likeness to all others is held at once: 256 x 100,000 of them are 200 MB where each is like every other.
_BLOCK = 256
_TIE = 1e-6
NEIGHBOURS = 20
"""Of each item, in a bundle and as the ranker reads them."""


def popularity(episodes: pl.DataFrame, item_ids: Sequence[str]) -> Floats32:
    """Episodes of each item. Shape (I,)."""
    items = pl.DataFrame({names.ITEM_ID: list(item_ids)})
    counts = items.join(episodes.group_by(names.ITEM_ID).len("n"), on=names.ITEM_ID, how="left", maintain_order="left")
    return counts["n"].fill_null(0).cast(pl.Float32).to_numpy()


def recent_popularity(
    episodes: pl.DataFrame, item_ids: Sequence[str], half_life_us: float
) -> Callable[[Ints], Floats32]:
    """Of times (B,), the episodes of each item before each of them, halved in weight with every half-life that has passed: (B, I)."""
    place_E = codes(episodes[names.ITEM_ID], pl.Series(list(item_ids), dtype=pl.String))
    ours = place_E >= 0
    t_E = episodes[T_US].to_numpy()[ours]
    order = np.argsort(t_E, kind="stable")
    t_E, place_E = t_E[order], place_E[ours][order]

    def scores(t_us: Ints) -> Floats32:
        scores_BI = np.zeros((len(t_us), len(item_ids)), np.float32)
        weight_I, done, at_us = np.zeros(len(item_ids)), 0, 0
        for row in np.argsort(t_us, kind="stable"):
            until = int(np.searchsorted(t_E, t_us[row]))
            weight_I *= 0.5 ** ((t_us[row] - at_us) / half_life_us) if done else 1.0
            since_us = t_us[row] - t_E[done:until]
            weight_I += np.bincount(place_E[done:until], 0.5 ** (since_us / half_life_us), len(item_ids))
            scores_BI[row] = weight_I
            done, at_us = until, int(t_us[row])
        return scores_BI

    return scores


def item_knn(episodes: pl.DataFrame, item_ids: Sequence[str], k: int) -> tuple[Ints32, Floats32]:
    """Of each item, its k nearest by cosine over the users who turned to both (Sarwar et al., WWW 2001): places and scores.

    Score: users(a and b) / sqrt(users(a) users(b)); of equals the first in the catalogue. Shapes (I, K); -1 and 0 where there are
    fewer than k.
    """
    pairs = episodes.select(names.USER_ID, names.ITEM_ID).unique(maintain_order=True)
    item_E = codes(pairs[names.ITEM_ID], pl.Series(list(item_ids), dtype=pl.String))
    user_E = codes(pairs[names.USER_ID], pairs[names.USER_ID].unique())
    user_E, item_E = user_E[item_E >= 0], item_E[item_E >= 0]
    items = len(item_ids)
    shape = (int(user_E.max(initial=-1)) + 1, items)
    users_UI = csr_array((np.ones(len(item_E), np.float32), (user_E, item_E)), shape=shape)
    users_IU = users_UI.T.tocsr()
    norm_I = np.sqrt(np.maximum(np.bincount(item_E, minlength=items), 1))
    near_IK = np.full((items, k), -1, np.int32)
    scores_IK = np.zeros((items, k), np.float32)
    for start in range(0, items, _BLOCK):
        both = users_IU[start : start + _BLOCK] @ users_UI
        both.sort_indices()
        for row, item in enumerate(range(start, min(start + _BLOCK, items))):
            own = slice(both.indptr[row], both.indptr[row + 1])
            places = both.indices[own]
            score = both.data[own] / (norm_I[item] * norm_I[places])
            score[places == item] = -np.inf
            nearest = best_of(score, k)
            near_IK[item, : len(nearest)] = places[nearest]
            scores_IK[item, : len(nearest)] = score[nearest]
    return near_IK, scores_IK


def item_knn_scores(
    history: Histories, near_IK: Ints32, scores_IK: Floats32, popularity_I: Floats32
) -> Callable[[slice], Floats32]:
    """Of some of the requests, likeness to the items of each history, summed, each item once; then popularity: (B, I)."""
    items = len(near_IK)
    there_IK = near_IK >= 0
    offsets = np.concatenate([[0], np.cumsum(there_IK.sum(axis=1))])
    near_II = csr_array((scores_IK[there_IK], near_IK[there_IK], offsets), shape=(items, items))
    ties_I = _ties(popularity_I)

    def scores(some: slice) -> Floats32:
        asked = history.rows(some)
        cells = np.ones(len(asked.places), np.float32), asked.places, asked.offsets
        history_BI = csr_array(cells, shape=(len(asked), items), copy=True)  # summing sorts in place
        history_BI.sum_duplicates()
        history_BI.data[:] = 1.0
        scores_BI: Floats32 = (history_BI @ near_II).toarray() + ties_I
        return scores_BI

    return scores


def neighbours(episodes: pl.DataFrame, item_ids: Sequence[str], k: int, reach: int = 5) -> tuple[Ints32, Floats32]:
    """Of each item, the k items that users most turn to within `reach` episodes of it: places in `item_ids` and scores.

    Score: pairs(a, b) / sqrt(pairs(a) pairs(b)). Shapes (I, K); -1 and 0 where there are fewer than k.
    """
    places = pl.DataFrame({names.ITEM_ID: list(item_ids)}).with_row_index("a")
    walk = episodes.sort(names.USER_ID, T_US, maintain_order=True).join(places, on=names.ITEM_ID, maintain_order="left")
    pairs = pl.concat(
        [walk.select("a", pl.col("a").shift(-step).over(names.USER_ID).alias("b")) for step in range(1, reach + 1)]
    ).filter(pl.col("b").is_not_null() & (pl.col("a") != pl.col("b")))
    both = pl.concat([pairs, pairs.select(pl.col("b").alias("a"), pl.col("a").alias("b"))])
    total = both.group_by("a").len("n")
    scored = (
        both.group_by("a", "b")
        .len("n")
        .join(total.rename({"n": "n_a"}), on="a")
        .join(total.rename({"a": "b", "n": "n_b"}), on="b")
        .with_columns((pl.col("n") / (pl.col("n_a").cast(pl.Float64) * pl.col("n_b")).sqrt()).alias("score"))
        .sort(["a", "score", "b"], descending=[False, True, False])
        .with_columns(pl.int_range(pl.len()).over("a").alias("rank"))
        .filter(pl.col("rank") < k)
    )
    neighbours_IK = np.full((len(item_ids), k), -1, dtype=np.int32)
    scores_IK = np.zeros((len(item_ids), k), dtype=np.float32)
    cell = scored["a"].to_numpy(), scored["rank"].to_numpy()
    neighbours_IK[cell] = scored["b"].to_numpy()
    scores_IK[cell] = scored["score"].to_numpy()
    return neighbours_IK, scores_IK


def neighbour_table(episodes: pl.DataFrame, item_ids: Sequence[str]) -> Neighbours:
    """By rows of a catalogue of these items: what the ranker reads, counted from the episodes."""
    return Neighbours.of_items(*neighbours(episodes, item_ids, NEIGHBOURS))


def co_occurrence_scores(
    history_TL: Ints,
    neighbours_IK: Ints32,
    scores_IK: Floats32,
    popularity_I: Floats32,
    decay: float = DECAY,
) -> Floats32:
    """Neighbours of each request's history (places, -1 for none), newer items more, then popularity. (T, I)."""
    requests, length = history_TL.shape
    scores_TI = np.tile(_ties(popularity_I), (requests, 1))
    for place in range(length):
        present_R = np.flatnonzero(history_TL[:, place] >= 0)
        near_RK = neighbours_IK[history_TL[present_R, place]]
        weights_RK = scores_IK[history_TL[present_R, place]] * decay ** (length - 1 - place)
        row_RK = np.broadcast_to(present_R[:, None], near_RK.shape)
        np.add.at(scores_TI, (row_RK[near_RK >= 0], near_RK[near_RK >= 0]), weights_RK[near_RK >= 0])
    return scores_TI


def _ties(popularity_I: Floats32) -> Floats32:
    """So little that it only settles ties."""
    return (_TIE * popularity_I / max(float(popularity_I.max()), 1.0)).astype(np.float32)
