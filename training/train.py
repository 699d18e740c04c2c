"""One training run, top to bottom: data, towers, ranker, evaluation, bundle, registry.

`python -m training.train --config small`
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from importlib.metadata import version as installed_version
from pathlib import Path

import numpy as np
import polars as pl
import torch
from feast import FeatureStore

from headrace import names
from headrace.aggregates.compile import compile_views
from headrace.clock import Clock, from_micros, system_clock
from headrace.models import columns
from headrace.models.bundle import Bundle, Items, Manifest
from headrace.models.config import CLICK
from headrace.models.index import IndexFacts, ItemIndex
from headrace.models.inputs import UserInputs
from headrace.models.preprocessing import Catalogue, Preprocessing
from headrace.models.snapshot import AVAILABLE, Snapshot
from headrace.models.towers import TwoTowers
from headrace.settings import MICROS, Settings
from headrace.stores.feature_store import open_feature_store, quieten_feast
from headrace.stores.lake import EventLake
from headrace.stores.models import ModelRegistry
from training.baselines import neighbours, popularity
from training.config import TrainConfig, by_name, parse_change
from training.dataset import (
    LABELS,
    T_US,
    DatasetError,
    Split,
    catalogue,
    features,
    items_known_at,
    newest,
    read_split,
    sample,
    with_negatives,
)
from training.evaluate import Models, Report, evaluate
from training.fit import fit_ranker, fit_towers
from training.job import run
from training.scoring import item_vectors, pair_scores, shop_vectors, user_vectors

NEIGHBOURS = 20
_FITTED_ON = 2_000
_QUERIES = 2_000
# Codes of a string feature; of items there are as many as were seen.
_MAX_VALUES = 50_000


@dataclass(frozen=True)
class TrainResult:
    """What a run made. `version` is the registry's, `bundle_dir` the folder; rows are those that the models learnt from."""

    version: str
    bundle_dir: Path
    report: Report
    index: IndexFacts
    tower_rows: int
    ranker_rows: int
    seconds: float


def main(
    config: TrainConfig,
    settings: Settings,
    clock: Clock = system_clock,
    *,
    store: FeatureStore | None = None,
    progress: bool = False,
) -> TrainResult:
    """Train, evaluate, save a bundle and register it. Raises DatasetError where the lake cannot be trained on."""
    started_us = clock()
    store = store or open_feature_store(settings)

    # Data: episodes, split by time; features of their users at their times; the catalogue at the cut.
    split = read_split(EventLake(settings.lake_dir), config)
    positives = newest(split.train, config.max_positives)
    item_ids = items_known_at(settings.lake_dir, split, split.cut_us)
    user_table = features(store, names.RETRIEVAL_SERVICE, positives)
    content = catalogue(store, item_ids, split.cut_us)
    activity = features(store, names.RANKER_SERVICE, sample(positives, _FITTED_ON, config.seed))
    seen = dict(positives[names.ITEM_ID].value_counts().iter_rows())
    preprocessing = Preprocessing.fit(
        user_table, content, activity, seen, length=config.length, max_values=max(_MAX_VALUES, len(seen))
    )
    shop = Catalogue(preprocessing, columns.by_name(content))
    users = preprocessing.users(columns.by_name(user_table), positives[T_US].to_numpy(), shop.row)
    model = config.model(outcomes_of(split, config))

    # Retrieval.
    target_B = shop.rows(positives[names.ITEM_ID].to_list())
    towers = fit_towers(preprocessing, model, users, target_B, shop, config, progress=progress)

    # Ranking, among what retrieval gives it.
    rows = ranker_rows(split, positives, users, shop, towers, config)
    table = columns.by_name(features(store, names.RANKER_SERVICE, rows))
    row_users = preprocessing.users(table, rows[T_US].to_numpy(), shop.row)
    row_items = preprocessing.items(table, with_activity=True)
    user_of_row = rows.select(pl.struct(names.USER_ID, T_US).rank("dense")).to_series().to_numpy()
    ranker = fit_ranker(
        preprocessing,
        model,
        row_users,
        row_items,
        pair_scores(towers, shop, row_users, row_items, user_of_row, config.device),
        rows.select(model.outcomes).to_numpy().astype(np.float32),
        shop,
        config,
        progress=progress,
    )

    report = evaluate(Models(preprocessing, shop, towers, ranker), split, store, config)

    # The bundle speaks of the shop as it stands at the window's end.
    everything = pl.concat([split.train, split.test])
    known = items_known_at(settings.lake_dir, split, split.end_us)
    snapshot = take_snapshot(store, preprocessing, known, everything, split.end_us)
    towers, ranker = towers.cpu(), ranker.cpu()
    items = items_of(preprocessing, towers, snapshot, everything)
    index = index_of(items, towers, shop, users, positives, config)
    metrics = report.flat() | index.facts.metrics()
    created_us = clock()
    manifest = Manifest(
        version=f"{from_micros(created_us):%Y%m%dT%H%M%S}-{created_us % MICROS:06d}-{config.name}",
        created_us=created_us,
        model=model,
        config=config.to_json(),
        services=(names.RETRIEVAL_SERVICE, names.RANKER_SERVICE),
        fingerprints={
            name: spec.fingerprint
            for name, spec in compile_views(store, int(settings.lateness_horizon_s * MICROS)).items()
        },
        window_us=(split.start_us, split.end_us),
        cut_us=split.cut_us,
        metrics=metrics,
        code_version=installed_version(names.PROJECT),
    )
    bundle_dir = settings.bundles_dir / manifest.version
    Bundle(manifest, preprocessing, towers, ranker, items, index, snapshot).save(bundle_dir)
    version = ModelRegistry(settings, clock).register(bundle_dir, metrics, config.to_json())
    seconds = (clock() - started_us) / MICROS
    return TrainResult(version, bundle_dir, report, index.facts, positives.height, rows.height, seconds)


def outcomes_of(split: Split, config: TrainConfig) -> tuple[str, ...]:
    """Click, and those of cart and purchase that the data has at least `min_outcomes` of."""
    return tuple(label for label in LABELS if label == CLICK or int(split.train[label].sum()) >= config.min_outcomes)


def ranker_rows(
    split: Split,
    positives: pl.DataFrame,
    users: UserInputs,
    shop: Catalogue,
    towers: TwoTowers,
    config: TrainConfig,
) -> pl.DataFrame:
    """Rows with labels: the newest positives, each with `negatives` sampled at its time, and the newest impressions.

    Half of the negatives are ones that retrieval would have offered, the rest are drawn by popularity ^ 0.75. A positive
    that answers an impression is left to the impression. Raises DatasetError where all labels are positive.
    """
    count = min(config.max_ranker_positives, positives.height)
    shown = split.impressions.select("request_id", names.ITEM_ID)
    chosen = positives.tail(count)
    newest_rows = torch.arange(positives.height - count, positives.height)
    item_ID = shop_vectors(towers, shop, config.device)
    user_TD = user_vectors(towers, shop, users.rows(newest_rows), config.device)
    every_item = ItemIndex.build(item_ID, user_TD, exact_below=len(item_ID) + 1)
    offered_TK, _ = every_item.search(user_TD, min(config.candidates, len(item_ID)))
    rng = np.random.default_rng(config.seed)
    weight_I = popularity(split.train, shop.item_ids).astype(np.float64) ** 0.75
    hard = config.negatives // 2
    drawn_TK = np.concatenate(
        [
            np.take_along_axis(offered_TK, rng.integers(0, offered_TK.shape[1], (count, hard)), axis=1),
            rng.choice(len(weight_I), (count, config.negatives - hard), p=weight_I / weight_I.sum()),
        ],
        axis=1,
    )
    own = (
        chosen.select(~pl.struct("request_id", names.ITEM_ID).is_in(shown.to_struct().implode())).to_series().to_numpy()
    )
    sampled = with_negatives(chosen.filter(own), drawn_TK[own], shop.item_ids, split.train)
    impressions = newest(split.impressions, config.max_ranker_positives * (1 + config.negatives))
    rows = pl.concat([sampled, impressions.select(sampled.columns)])
    if rows[CLICK].min() == 1:
        raise DatasetError(
            "every label is positive: users have met every item there is, so there is nothing to tell apart; "
            "add catalogue items or impressions"
        )
    return rows


def take_snapshot(
    store: FeatureStore, preprocessing: Preprocessing, item_ids: Sequence[str], episodes: pl.DataFrame, t_us: int
) -> Snapshot:
    """What the models and the filter read of the catalogue, at one time, most popular items first."""
    order = np.argsort(-popularity(episodes, item_ids), kind="stable")
    table = columns.by_name(catalogue(store, [item_ids[place] for place in order], t_us))
    kept = (names.ITEM_ID, *preprocessing.content_features, AVAILABLE)
    return Snapshot(t_us, {name: table[name].to_pylist() for name in kept if name in table})


def items_of(preprocessing: Preprocessing, towers: TwoTowers, snapshot: Snapshot, episodes: pl.DataFrame) -> Items:
    """Vectors and neighbours of the snapshot's items."""
    inputs = preprocessing.items(snapshot.features, with_activity=False)
    near_IK, scores_IK = neighbours(episodes, snapshot.item_id, NEIGHBOURS)
    return Items(snapshot.item_id, item_vectors(towers, inputs, "cpu"), near_IK, scores_IK)


def index_of(
    items: Items,
    towers: TwoTowers,
    shop: Catalogue,
    users: UserInputs,
    positives: pl.DataFrame,
    config: TrainConfig,
) -> ItemIndex:
    """The retrieval index, its recall measured on users of the window as they last stood. `users` are those of the rows."""
    last = positives.with_row_index("row").unique(names.USER_ID, keep="last", maintain_order=True)
    rows = torch.from_numpy(sample(last, _QUERIES, config.seed)["row"].to_numpy().astype(np.int64))
    return ItemIndex.build(
        items.vectors_ND,
        user_vectors(towers, shop, users.rows(rows), "cpu"),
        exact_below=config.exact_below,
        recall_target=config.index_recall,
        seed=config.seed,
    )


def command(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m training.train", description=__doc__)
    parser.add_argument("--config", default="default", help="small, default or large")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="change one setting; repeatable"
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    options = parser.parse_args(arguments)
    quieten_feast()

    def train() -> None:
        config = by_name(options.config).changed(**dict(parse_change(text) for text in options.set))
        result = main(config, Settings(), progress=not options.json)
        if options.json:
            state = {field.name: getattr(result, field.name) for field in fields(result)}
            told = {
                "bundle_dir": str(result.bundle_dir),
                "report": result.report.to_json(),
                "index": asdict(result.index),
            }
            print(json.dumps(state | told))
            return
        result.report.show()
        print(f"index: {result.index}")
        print(
            f"version {result.version} in {result.bundle_dir}: {result.tower_rows} rows for the towers, "
            f"{result.ranker_rows} for the ranker, {result.seconds:.1f} s"
        )

    return run(train)


if __name__ == "__main__":
    sys.exit(command())
