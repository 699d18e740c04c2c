"""What the models have to beat, and what retrieval borrows: popularity and item-to-item co-occurrence.

I items of the catalogue, T test requests, K neighbours, L places of a history.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import polars as pl

from headrace import names
from training.dataset import T_US

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int32]


def popularity(episodes: pl.DataFrame, item_ids: Sequence[str]) -> Floats:
    """Episodes of each item. Shape (I,)."""
    items = pl.DataFrame({names.ITEM_ID: list(item_ids)})
    counts = items.join(episodes.group_by(names.ITEM_ID).len("n"), on=names.ITEM_ID, how="left", maintain_order="left")
    return counts["n"].fill_null(0).cast(pl.Float32).to_numpy()


def neighbours(episodes: pl.DataFrame, item_ids: Sequence[str], k: int, reach: int = 5) -> tuple[Ints, Floats]:
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


def co_occurrence_scores(
    history_TL: npt.NDArray[np.int64], neighbours_IK: Ints, scores_IK: Floats, popularity_I: Floats, decay: float = 0.8
) -> Floats:
    """Neighbours of each request's history (places, -1 for none), newer items more, then popularity. (T, I)."""
    requests, length = history_TL.shape
    scores_TI = np.tile(1e-6 * popularity_I / max(float(popularity_I.max()), 1.0), (requests, 1)).astype(np.float32)
    for place in range(length):
        present_R = np.flatnonzero(history_TL[:, place] >= 0)
        near_RK = neighbours_IK[history_TL[present_R, place]]
        weights_RK = scores_IK[history_TL[present_R, place]] * decay ** (length - 1 - place)
        row_RK = np.broadcast_to(present_R[:, None], near_RK.shape)
        np.add.at(scores_TI, (row_RK[near_RK >= 0], near_RK[near_RK >= 0]), weights_RK[near_RK >= 0])
    return scores_TI
