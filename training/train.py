"""One training run, top to bottom: data, towers, ranker, evaluation, bundle, registry.

`python -m training.train --config small`; several processes with `torchrun --nproc-per-node=2 -m training.train`.
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from importlib.metadata import version as installed_version
from pathlib import Path

import numpy as np
import polars as pl
import torch
from feast import FeatureStore

from headrace import names
from headrace.aggregates.compile import compile_views
from headrace.arrays import Floats32
from headrace.clock import Clock, from_micros, system_clock
from headrace.models import columns
from headrace.models.architectures import check_names
from headrace.models.base import Towers
from headrace.models.bundle import Bundle, Items, Manifest
from headrace.models.config import CLICK
from headrace.models.index import ItemIndex
from headrace.models.preprocessing import Preprocessing
from headrace.models.snapshot import AVAILABLE, Snapshot
from headrace.ops.interrupts import Interrupted, Interrupts
from headrace.settings import MICROS, Settings
from headrace.stores.feature_store import open_feature_store, quieten_feast
from headrace.stores.lake import EventLake
from headrace.stores.models import ModelRegistry
from training.baselines import neighbours, popularity
from training.changes import parse_changes
from training.config import TrainConfig, by_name
from training.dataset import LABELS, T_US, Split, catalogue, items_known_at, newest, read_split
from training.evaluate import Models, evaluate, header_of, page_of
from training.figures import draw
from training.fit import TrainError
from training.job import run as run_job
from training.learn import RANKER, TOWERS, learn_ranking, learn_retrieval, offer
from training.page import write_page
from training.prepare import ranker_lists, shop_at_cut, tower_rows, users_of
from training.processes import device_of, processes
from training.requests import new_to_their_users
from training.result import TrainResult
from training.run import Run, Shop
from training.run_folder import RunFolder
from training.scoring import item_vectors, window_vectors
from training.stages import aloud, silent
from training.track import Track, how_to_look
from training.warm_start import champion_folder
from training.warm_start import remarks as warm_start_remarks
from training.windows import Windows

NEIGHBOURS = 20
_QUERIES = 2_000
# Requests of the validation that are kept for each list that the ranker is to learn from: not every one becomes a list.
_REQUESTS_A_LIST = 4


def main(
    config: TrainConfig,
    settings: Settings,
    clock: Clock = system_clock,
    *,
    store: FeatureStore | None = None,
    progress: bool = False,
    resume: bool = False,
    warm_start: Path | None = None,
) -> TrainResult | None:
    """Train, evaluate, save a bundle and register it, all of it recorded in MLflow; None in all processes but the first.

    With `resume` the newest run that did not end goes on, by its own config and from its own start. With `warm_start` both models begin as
    those of the bundle in that folder, where their weights mean the same. Raises ArchitectureError for names that no models have,
    DatasetError where the lake cannot be trained on, TrainError where fitting cannot go on, RunError where there is nothing to resume,
    BundleError where there is nothing to begin from, RegistryError where MLflow cannot be written to.
    """
    started_us = clock()
    resumed = RunFolder.unfinished(settings.runs_dir) if resume else None
    config = config if resumed is None else resumed.began().config
    check_names(config.towers, config.ranker)
    store = store or open_feature_store(settings)
    with processes(device_of(config.device)) as us, Track(settings, clock, us.is_first) as track:
        folder = resumed or us.in_turn(lambda: open_run(settings, config, clock, warm_start))
        began = folder.began()
        config, device = began.config, device_of(began.config.device)
        champion = None if began.warm_start is None else Bundle.load(began.warm_start)
        track.begin(folder, config, {"used_device": device, "processes": us.count, "torch": torch.__version__})
        torch.set_num_threads(config.threads)
        say = aloud if progress and us.is_first else silent

        # Data: episodes, split by time; features of their users at their times; the catalogue when the test begins.
        say("reading events and catalogue")
        split = us.in_turn(lambda: folder.split(lambda: read_split(EventLake(settings.lake_dir), config)))
        fingerprints = {
            name: spec.fingerprint
            for name, spec in compile_views(store, int(settings.lateness_horizon_s * MICROS)).items()
        }
        track.data(split, fingerprints)
        shop = us.in_turn(lambda: shop_at_cut(folder.path, split, store, settings.lake_dir, config))
        positives = newest(split.train, config.max_positives).sort(names.USER_ID, T_US, maintain_order=True)
        say(f"reading features of {positives.height:,} rows for the towers")
        windows = us.in_turn(lambda: tower_rows(folder.path, positives, shop, store))
        most = _REQUESTS_A_LIST * config.max_lists
        asked = new_to_their_users(split.validation, split.everything, shop.catalogue.item_ids, most, config.seed)
        users = users_of(asked, shop, store)
        model = config.model(outcomes_of(split, config))
        run = Run(folder, config, model, split, shop, us, device, track.noted, progress, champion)

        # Retrieval, judged by what users turned to next among all items.
        towers, tower_epochs = learn_retrieval(run, windows, positives, asked, users)

        # Ranking, of what retrieval offers users that it has not learnt from.
        say("reading features of the lists for the ranker")
        offered_TK = offer(run, towers, asked, users)
        learnt, held = us.in_turn(lambda: ranker_lists(run, towers, asked, offered_TK, store))
        ranker, ranker_epochs = learn_ranking(run, towers, learnt, held)
        if not us.is_first:
            return None

        models = Models(shop.preprocessing, shop.catalogue, towers, ranker)
        notes = warm_start_remarks(champion, split.cut_us)
        report = evaluate(models, split, store, config.changed(device=device), notes=notes, say=say)

        say("bundle, index and report")
        # The bundle speaks of the shop as it stands at the window's end.
        known = items_known_at(settings.lake_dir, split, split.end_us)
        snapshot = take_snapshot(store, shop.preprocessing, known, split.everything, split.end_us)
        towers, ranker = towers.cpu(), ranker.cpu()
        items = items_of(shop.preprocessing, towers, snapshot, split.everything)
        index = ItemIndex.build(
            items.vectors_ND,
            queries(towers, shop, windows, config),
            exact_below=config.exact_below,
            recall_target=config.index_recall,
            seed=config.seed,
        )
        metrics = report.flat() | index.facts.metrics()
        manifest = Manifest(
            version=folder.name,
            created_us=began.began_us,
            model=model,
            config=config.to_json(),
            services=(names.RETRIEVAL_SERVICE, names.RANKER_SERVICE),
            fingerprints=fingerprints,
            window_us=(split.start_us, split.end_us),
            validation_us=split.validation_us,
            cut_us=split.cut_us,
            metrics=metrics,
            code_version=installed_version(names.PROJECT),
        )
        bundle_dir = settings.bundles_dir / manifest.version
        Bundle(manifest, shop.preprocessing, towers, ranker, items, index, snapshot).save(bundle_dir)
        epochs = {TOWERS: tower_epochs, RANKER: ranker_epochs}
        figures = draw(report, epochs)
        track.made(bundle_dir, report.to_json(), figures)
        version = ModelRegistry(settings, clock).register(bundle_dir, metrics, run_id=track.run_id)
        folder.end()
        page = page_of(settings, version)
        header = {"version": f"{version} ({manifest.version})", **header_of(config, split, shop.items, report)}
        write_page(page, report, {**header, "MLflow run": track.run_id}, figures)
        track.reported(page)
        lists, seconds = len(learnt or ()), (clock() - started_us) / MICROS
        return TrainResult(
            version, bundle_dir, report, index.facts, windows.rows, lists, epochs, seconds, page, track.run_id
        )


def open_run(settings: Settings, config: TrainConfig, clock: Clock, warm_start: Path | None) -> RunFolder:
    """A new run."""
    if int(os.environ.get("RANK", "0")) > 0:  # the first process has begun it
        return RunFolder.unfinished(settings.runs_dir)
    now_us = clock()
    name = f"{from_micros(now_us):%Y%m%dT%H%M%S}-{now_us % MICROS:06d}-{config.name}"
    return RunFolder.begin(settings.runs_dir, name, config, now_us, warm_start)


def queries(towers: Towers, shop: Shop, windows: Windows, config: TrainConfig) -> Floats32:
    """Vectors of some users of the window as they last stood, by which the index is measured. Shape (Q, D)."""
    count = min(len(windows), _QUERIES)
    chosen = np.sort(np.random.default_rng(config.seed).choice(len(windows), count, replace=False))
    vectors_QD: Floats32 = window_vectors(towers, shop.catalogue, windows, chosen)
    return vectors_QD


def outcomes_of(split: Split, config: TrainConfig) -> tuple[str, ...]:
    """Click, and those of cart and purchase that the data has at least `min_outcomes` of."""
    return tuple(label for label in LABELS if label == CLICK or int(split.train[label].sum()) >= config.min_outcomes)


def take_snapshot(
    store: FeatureStore, preprocessing: Preprocessing, item_ids: Sequence[str], episodes: pl.DataFrame, t_us: int
) -> Snapshot:
    """What the models and the filter read of the catalogue, at one time, most popular items first."""
    order = np.argsort(-popularity(episodes, item_ids), kind="stable")
    table = columns.by_name(catalogue(store, [item_ids[place] for place in order], t_us))
    kept = (names.ITEM_ID, *preprocessing.content_features, AVAILABLE)
    return Snapshot(t_us, {name: table[name].to_pylist() for name in kept if name in table})


def items_of(preprocessing: Preprocessing, towers: Towers, snapshot: Snapshot, episodes: pl.DataFrame) -> Items:
    """Vectors and neighbours of the snapshot's items."""
    inputs = preprocessing.items(snapshot.features, with_activity=False)
    near_IK, scores_IK = neighbours(episodes, snapshot.item_id, NEIGHBOURS)
    return Items(snapshot.item_id, item_vectors(towers, inputs, "cpu"), near_IK, scores_IK)


def command(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m training.train", description=__doc__)
    parser.add_argument(
        "--config", default="default", help="small, default, large, or your own function as module:function"
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="change one setting; repeatable"
    )
    parser.add_argument(
        "--resume", action="store_true", help="go on with the newest run that did not end, as it was begun"
    )
    parser.add_argument(
        "--warm-start",
        action="store_true",
        help="begin with the weights of the version in service where they mean the same",
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    options = parser.parse_args(arguments)
    quieten_feast()

    def train() -> None:
        config = by_name(options.config).changed(**parse_changes(options.set, TrainConfig))
        settings = Settings()
        champion = champion_folder(settings) if options.warm_start and not options.resume else None
        if not options.json and os.environ.get("RANK", "0") == "0":
            print(f"what it learns shows as it learns: {how_to_look(settings)}", file=sys.stderr)
        try:
            with Interrupts().installed():
                result = main(config, settings, progress=not options.json, resume=options.resume, warm_start=champion)
        except Interrupted as error:
            raise TrainError("interrupted; `headrace train --resume` goes on after the last whole epoch") from error
        if result is None:  # one of the other processes
            return
        if options.json:
            print(json.dumps(result.to_json()))
            return
        result.show()
        print(f"report: {result.page}; MLflow run: {result.run_id}")

    return run_job(train)


if __name__ == "__main__":
    sys.exit(command())
