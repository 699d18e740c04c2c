"""How good the models are: next interaction after the cut, ranked among all items, the user's recent ones left out.

Every method answers the same requests with the same rules. `python -m training.evaluate` measures a registered bundle
again, on what has happened since its cut.
"""

import argparse
import json
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt
import polars as pl
import torch
from feast import FeatureStore
from rich.console import Console
from rich.table import Column, Table

from headrace import names
from headrace.arrays import Ints
from headrace.models import columns
from headrace.models.bundle import Bundle
from headrace.models.inputs import UserInputs
from headrace.models.preprocessing import Catalogue, Preprocessing
from headrace.models.ranker import Ranker
from headrace.models.towers import TwoTowers
from headrace.settings import Settings
from headrace.stores.feature_store import open_feature_store, quieten_feast
from headrace.stores.lake import EventLake
from headrace.stores.models import ModelRegistry, RegistryError, read_champion
from training import metrics
from training.baselines import co_occurrence_scores, neighbours, popularity
from training.config import TrainConfig
from training.dataset import (
    T_US,
    DatasetError,
    Split,
    catalogue,
    features,
    items_known_at,
    read_split,
    sample,
)
from training.job import run
from training.scoring import rank_logits, shop_vectors, user_vectors

Floats = npt.NDArray[np.float32]

SLATE = 100
CUTOFFS = (10, 20)
# Requests whose scores of all items are held at once.
_BLOCK = 256
POPULAR, CO_OCCURRENCE, TOWERS = "most popular", "co-occurrence", "two towers"
RETRIEVED, RANKED = "towers, sampled", "towers + ranker, sampled"


@dataclass(frozen=True)
class Report:
    """Metrics by method. The ranker is tried on a sample of the requests, so the towers are shown on that sample too."""

    methods: dict[str, dict[str, float]]
    outcome_auc: dict[str, float]
    """By outcome, how well the ranker tells what was taken from what was shown and left; empty without impressions."""

    def flat(self) -> dict[str, float]:
        """One name for each number, as MLflow and `bundle.json` keep them; NaN left out."""
        of_outcomes = {"ranker": {f"auc_{outcome}": value for outcome, value in self.outcome_auc.items()}}
        return {
            re.sub(r"\W+", "_", f"{method}_{name}"): value
            for method, measured in (self.methods | of_outcomes).items()
            for name, value in measured.items()
            if not np.isnan(value)
        }

    def show(self) -> None:
        console = Console()
        console.print(self._table())
        if self.outcome_auc:
            areas = ", ".join(f"{outcome} {area:.4f}" for outcome, area in self.outcome_auc.items())
            console.print(f"ranker, AUC over impressions: {areas}")

    def _table(self) -> Table:
        shown = ["recall_at_10", "ndcg_at_10", "recall_at_20", "requests"]
        table = Table(
            Column("method", no_wrap=True),
            *[name.replace("_at_", "@") for name in shown],
            title="Next item, among all items",
        )
        for method, measured in self.methods.items():
            cells = [f"{measured[name]:.0f}" if name == "requests" else f"{measured[name]:.4f}" for name in shown]
            table.add_row(method, *cells)
        return table


@dataclass(frozen=True)
class Models:
    """Trained models and the shop as it stood at the cut."""

    preprocessing: Preprocessing
    shop: Catalogue
    towers: TwoTowers
    ranker: Ranker


@dataclass(frozen=True)
class Requests:
    """Test requests: T users at a time, what they turned to next, and what they may not be shown again."""

    rows: pl.DataFrame
    users: UserInputs
    target_T: Ints  # place in the catalogue's item_ids
    history_TL: Ints  # places, -1 for none

    def take(self, count: int) -> "Requests":
        return Requests(
            self.rows.head(count), self.users.rows(torch.arange(count)), self.target_T[:count], self.history_TL[:count]
        )


def evaluate(models: Models, split: Split, store: FeatureStore, config: TrainConfig) -> Report:
    """Most popular, co-occurrence and the two towers on up to `max_test` requests; with the ranker on some of them."""
    requests = read_requests(models, split, store, config)
    item_ids = models.shop.item_ids
    popularity_I = popularity(split.train, item_ids)
    near_IK, near_scores_IK = neighbours(split.train, item_ids, k=SLATE)
    item_ID = shop_vectors(models.towers, models.shop, config.device)
    user_TD = user_vectors(models.towers, models.shop, requests.users, config.device)

    def by_towers(block: slice) -> Floats:
        return np.asarray(user_TD[block] @ item_ID.T)

    methods: dict[str, Callable[[slice], Floats]] = {
        POPULAR: lambda block: np.tile(popularity_I, (len(requests.target_T[block]), 1)),
        CO_OCCURRENCE: lambda block: co_occurrence_scores(
            requests.history_TL[block], near_IK, near_scores_IK, popularity_I
        ),
        TOWERS: by_towers,
    }
    items = len(item_ids)
    measured = {
        name: _measure(best_places(scores, requests.history_TL, SLATE), requests, items)
        for name, scores in methods.items()
    }
    some = requests.take(min(config.max_ranked_requests, len(requests.target_T)))
    retrieved_TK = best_places(by_towers, some.history_TL, min(config.candidates, items))
    measured[RETRIEVED] = _measure(retrieved_TK, some, items)
    measured[RANKED] = _measure(rank_again(models, some, retrieved_TK, store, config), some, items)
    return Report(measured, outcome_auc(models, split, store, config))


def read_requests(models: Models, split: Split, store: FeatureStore, config: TrainConfig) -> Requests:
    """Test episodes of items that the catalogue had at the cut and that are not in the user's recent history."""
    shop = models.shop
    known = split.test.filter(pl.col(names.ITEM_ID).is_in(shop.item_ids))
    rows = sample(known, config.max_test, config.seed).sample(fraction=1.0, shuffle=True, seed=config.seed)
    table = columns.by_name(features(store, names.RETRIEVAL_SERVICE, rows))
    users = models.preprocessing.users(table, rows[T_US].to_numpy(), shop.row)
    target_T = shop.rows(rows[names.ITEM_ID].to_list()) - Catalogue.FIRST
    history_TL = np.maximum(users.items_BL.numpy() - Catalogue.FIRST, -1)
    fresh_T = np.flatnonzero((history_TL != target_T[:, None]).all(axis=1))
    if len(fresh_T) == 0:
        raise DatasetError(
            "no test interaction is with an item that is new to its user: load more, or raise test_share"
        )
    return Requests(rows[fresh_T], users.rows(torch.from_numpy(fresh_T)), target_T[fresh_T], history_TL[fresh_T])


def best_places(scores: Callable[[slice], Floats], history_TL: Ints, k: int) -> Ints:
    """Places of the k best items of each request, its history left out, ties in the catalogue's order: (T, K), -1 where
    there are fewer.

    `scores` gives a fresh (B, I) of some of the requests: all of them at once would not fit into memory.
    """
    best_TK = np.full((len(history_TL), k), -1, dtype=np.int64)
    for start in range(0, len(history_TL), _BLOCK):
        for row, score_I in enumerate(scores(slice(start, min(start + _BLOCK, len(history_TL)))), start):
            score_I[history_TL[row][history_TL[row] >= 0]] = -np.inf
            best = _best(score_I, k)
            best_TK[row, : len(best)] = best
    return best_TK


def _best(score_I: Floats, k: int) -> Ints:
    """A sort of the few that are no worse than the k-th, not of all."""
    least = np.partition(score_I, -k)[-k] if k < len(score_I) else -np.inf
    places = np.flatnonzero((score_I >= least) & ~np.isneginf(score_I))
    return places[np.argsort(-score_I[places], kind="stable")[:k]]


def rank_again(models: Models, requests: Requests, slates_TK: Ints, store: FeatureStore, config: TrainConfig) -> Ints:
    """The slates in the ranker's order, its item features read as of each request. Shape (T, K)."""
    shown_TK = slates_TK >= 0
    shown = slates_TK[shown_TK]
    request_R = np.repeat(np.arange(len(slates_TK)), shown_TK.sum(axis=1))
    rows = requests.rows[request_R].with_columns(
        pl.Series(names.ITEM_ID, np.asarray(models.shop.item_ids)[shown].tolist(), dtype=pl.String)
    )
    table = columns.by_name(features(store, names.RANKER_SERVICE, rows))
    items = models.preprocessing.items(table, with_activity=True)
    row_TK = np.zeros(slates_TK.shape, dtype=np.int64)
    row_TK[shown_TK] = np.arange(len(shown))
    slates = items.rows(torch.from_numpy(row_TK))
    logits_TKO = rank_logits(models.towers, models.ranker, models.shop, requests.users, slates, config.device)
    scores_TK = models.ranker.scores(logits_TKO.to(config.device)).cpu().numpy()
    scores_TK[~shown_TK] = -np.inf
    return np.take_along_axis(slates_TK, np.argsort(-scores_TK, axis=1, kind="stable"), axis=1)


def outcome_auc(models: Models, split: Split, store: FeatureStore, config: TrainConfig) -> dict[str, float]:
    """Area under the ROC curve of each outcome, over impressions after the cut. An outcome of one label is left out."""
    rows = sample(split.test_impressions, config.max_test, config.seed)
    if rows.is_empty():
        return {}
    table = columns.by_name(features(store, names.RANKER_SERVICE, rows))
    users = models.preprocessing.users(table, rows[T_US].to_numpy(), models.shop.row)
    items = models.preprocessing.items(table, with_activity=True)
    alone = items.rows(torch.arange(rows.height)[:, None])
    logits_RO = rank_logits(models.towers, models.ranker, models.shop, users, alone, config.device)[:, 0].numpy()
    areas = {name: metrics.auc(logits_RO[:, place], rows[name]) for place, name in enumerate(models.ranker.outcomes)}
    return {outcome: area for outcome, area in areas.items() if not np.isnan(area)}


def _measure(slates_TK: Ints, requests: Requests, items: int) -> dict[str, float]:
    hits_TK = slates_TK == requests.target_T[:, None]
    one_T = np.ones(len(hits_TK), dtype=np.int64)
    measured = {"mrr": metrics.mrr(hits_TK, one_T), "requests": float(len(hits_TK))}
    for k in CUTOFFS:
        measured[f"recall_at_{k}"] = metrics.recall_at(hits_TK, one_T, k)
        measured[f"hit_rate_at_{k}"] = metrics.hit_rate_at(hits_TK, one_T, k)
        measured[f"ndcg_at_{k}"] = metrics.ndcg_at(hits_TK, one_T, k)
        measured[f"coverage_at_{k}"] = metrics.coverage_at(slates_TK, items, k)
    return measured


def main(version: str | None, settings: Settings) -> Report:
    """Measure a registered version, else the champion, else the newest. Raises RegistryError, BundleError, DatasetError."""
    registered = {known.version: known.path for known in ModelRegistry(settings).versions()}
    champion = read_champion(settings)
    chosen = version or (champion.version if champion else next(reversed(registered), None))
    if chosen not in registered:
        raise RegistryError(f"no version {chosen!r}; registered are {', '.join(registered) or 'none: train first'}")
    bundle = Bundle.load(registered[chosen])
    config, cut_us = TrainConfig.from_json(bundle.manifest.config), bundle.manifest.cut_us
    store = open_feature_store(settings)
    split = read_split(EventLake(settings.lake_dir), config, cut_us)
    content = catalogue(store, items_known_at(settings.lake_dir, split, cut_us), cut_us)
    shop = Catalogue(bundle.preprocessing, columns.by_name(content))
    return evaluate(Models(bundle.preprocessing, shop, bundle.towers, bundle.ranker), split, store, config)


def command(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m training.evaluate", description=__doc__)
    parser.add_argument("version", nargs="?", help="as `headrace train` printed it; else the champion, else the newest")
    parser.add_argument("--json", action="store_true", help="print the metrics as JSON")
    options = parser.parse_args(arguments)
    quieten_feast()

    def evaluate() -> None:
        report = main(options.version, Settings())
        if options.json:
            print(json.dumps(asdict(report)))
        else:
            report.show()

    return run(evaluate)


if __name__ == "__main__":
    sys.exit(command())
