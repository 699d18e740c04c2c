"""Scores of many rows by trained models, a batch at a time. T requests, K candidates, I items of the catalogue, R rows."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import polars as pl
import pyarrow as pa
import torch
from feast import FeatureStore
from torch import Tensor

from headrace import names
from headrace.arrays import Floats32, Ints
from headrace.models import columns
from headrace.models.base import RankingModel, Towers
from headrace.models.inputs import ItemInputs, Retrieved, UserInputs
from headrace.models.neighbours import Neighbours
from headrace.models.preprocessing import Catalogue, Preprocessing
from training.config import TrainConfig
from training.dataset import T_US, features, item_activity
from training.measures import DEPTH
from training.processes import device_of
from training.ranks import check_finite
from training.requests import Requests, best_places
from training.rows import UserRows
from training.windows import Windows

_BATCH = 512
# Requests whose candidates' features are read at once.
_RANKED_AT_ONCE = 2_000


@dataclass(frozen=True)
class Models:
    """Trained models and the shop as it stood at the cut."""

    preprocessing: Preprocessing
    shop: Catalogue
    towers: Towers
    ranker: RankingModel
    neighbours: Neighbours
    """Of the shop's items, by what happened before the cut."""


@dataclass(frozen=True)
class Slates:
    """What models answer to T requests, and to the first R of them with the ranker: places in the catalogue, -1 for an empty one;
    and the items' vectors.
    """

    retrieved_TK: Ints
    ranked_RK: Ints
    item_ID: Floats32


def answer(
    models: Models, requests: Requests, ranked: int, store: FeatureStore, config: TrainConfig, *, lag_us: int = 0
) -> Slates:
    """The towers' best DEPTH items of each request; for the first `ranked`, the best `candidates` in the ranker's order.

    Features are read as they stood `lag_us` before each request. What is computed from them is computed at the request: an event of
    the history is as old as it is then. Raises TrainError for vectors or scores that are not finite.
    """
    device = device_of(config.device)
    stale = requests.rows.with_columns(pl.col(T_US) - lag_us)
    table = columns.by_name(features(store, names.RETRIEVAL_SERVICE, stale))
    users = models.preprocessing.users(table, requests.t_us, models.shop.row)
    candidates = min(config.candidates, len(models.shop.item_ids))
    item_ID = shop_vectors(models.towers, models.shop, device)
    user_TD = user_vectors(models.towers, models.shop, users, device)
    for vectors in (item_ID, user_TD):
        check_finite(torch.from_numpy(vectors), "towers")
    retrieved_TK = best_places(
        lambda some: np.asarray(user_TD[some] @ item_ID.T), requests.history, max(DEPTH, candidates)
    )
    offered_RK = retrieved_TK[:ranked, :candidates]
    parts = [
        rank_again(models, stale[some], users.rows(torch.arange(ranked)[some]), offered_RK[some], store, device)
        for some in (slice(start, min(start + _RANKED_AT_ONCE, ranked)) for start in range(0, ranked, _RANKED_AT_ONCE))
    ]
    return Slates(retrieved_TK[:, :DEPTH], np.concatenate(parts)[:, :DEPTH], item_ID)


def rank_again(
    models: Models, rows: pl.DataFrame, users: UserInputs, slates_RK: Ints, store: FeatureStore, device: str
) -> Ints:
    """The slates in the ranker's order, the items' activity read at the rows' times. Shape (R, K). Raises TrainError for scores that are
    not finite.
    """
    shown_RK = slates_RK >= 0
    shown = slates_RK[shown_RK]
    asked = rows[np.repeat(np.arange(len(slates_RK)), shown_RK.sum(axis=1))].with_columns(
        pl.Series(names.ITEM_ID, np.asarray(models.shop.item_ids)[shown].tolist(), dtype=pl.String)
    )
    items = items_of(models.preprocessing, models.shop, shown, item_activity(store, asked))
    row_RK = np.zeros(slates_RK.shape, dtype=np.int64)
    row_RK[shown_RK] = np.arange(len(shown))
    candidates_RK = np.where(shown_RK, slates_RK + Catalogue.FIRST, 0)
    logits_RKO = rank_logits(models, users, items.rows(torch.from_numpy(row_RK)), candidates_RK, device)
    scores = models.ranker.scores(logits_RKO.to(device)).cpu()
    check_finite(scores, "ranker")
    scores_RK = scores.numpy()
    scores_RK[~shown_RK] = -np.inf
    return np.take_along_axis(slates_RK, np.argsort(-scores_RK, axis=1, kind="stable"), axis=1)


def items_of(preprocessing: Preprocessing, shop: Catalogue, place_N: Ints, activity: pa.Table) -> ItemInputs:
    """Items as the shop has them, at those places, and what their users did as of some time (docs/adr/0023)."""
    items = shop.inputs.rows(torch.from_numpy(place_N + Catalogue.FIRST))
    scaled_NF = preprocessing.activity.of(columns.by_name(activity), len(place_N))
    return items._replace(activity_NF=torch.from_numpy(scaled_NF))


@torch.inference_mode()  # type: ignore[untyped-decorator]
def user_vectors(towers: Towers, shop: Catalogue, users: UserInputs, device: str) -> Floats32:
    """Shape (T, D)."""
    table = shop.inputs.to(device)
    return _joined(towers.users(users.rows(batch).to(device), table) for batch in _batches(len(users.items_BL)))


@torch.inference_mode()  # type: ignore[untyped-decorator]
def vectors_of(towers: Towers, shop: Catalogue, rows: UserRows, device: str) -> Floats32:
    """Of users whose rows lie on disk. Shape (R, D)."""
    table = shop.inputs.to(device)
    batches = (rows.take(batch.numpy()).to(device) for batch in _batches(len(rows)))
    none = torch.zeros(0, towers.width)
    return np.asarray(torch.cat([none, *(towers.users(batch, table).cpu() for batch in batches)]).numpy())


@torch.inference_mode()  # type: ignore[untyped-decorator]
def window_vectors(towers: Towers, shop: Catalogue, windows: Windows, chosen: Ints) -> Floats32:
    """Users at the last row of each of these windows. Shape (len(chosen), D)."""
    parts = []
    for some in np.split(chosen, range(_BATCH, len(chosen), _BATCH)):
        histories, users, window_R, seen_R = windows.take(some)
        last_W = torch.from_numpy(np.cumsum(windows.sizes_W[some]) - 1)
        parts.append(towers.users_along(histories, shop.inputs, users.rows(last_W), window_R[last_W], seen_R[last_W]))
    return _joined(iter(parts))


@torch.inference_mode()  # type: ignore[untyped-decorator]
def item_vectors(towers: Towers, items: ItemInputs, device: str) -> Floats32:
    """Shape (N, D)."""
    return _joined(towers.items(items.rows(batch).to(device)) for batch in _batches(len(items.id_N)))


def shop_vectors(towers: Towers, shop: Catalogue, device: str) -> Floats32:
    """Vectors of the catalogue's items, its special rows left out. Shape (I, D)."""
    every_ID: Floats32 = item_vectors(towers, shop.inputs, device)
    return every_ID[Catalogue.FIRST :]


@torch.inference_mode()  # type: ignore[untyped-decorator]
def rank_logits(models: Models, users: UserInputs, items: ItemInputs, rows_TK: Ints, device: str) -> Tensor:
    """The ranker's logits for T users, each with candidates of leading shape (T, K), that stand in these rows of the shop's table.
    Shape (T, K, O), on the CPU.
    """
    table = models.shop.inputs.to(device)
    users_count, candidates = items.id_N.shape
    nearness_TK = torch.from_numpy(models.neighbours.nearness(users.items_BL.numpy(), rows_TK))
    parts = []
    for batch in torch.arange(users_count).split(max(1, _BATCH // candidates)):
        user, item = users.rows(batch).to(device), items.rows(batch).to(device)
        retrieved = Retrieved(models.towers.scores(user, item, table), nearness_TK[batch].to(device))
        parts.append(models.ranker(user, item, retrieved, table).cpu())
    return torch.cat(parts)


def _batches(rows: int) -> Iterator[Tensor]:
    yield from torch.arange(rows).split(_BATCH)


def _joined(parts: Iterator[Tensor]) -> Floats32:
    return np.asarray(torch.cat(list(parts)).cpu().numpy())
