"""One training run, top to bottom: data, towers, ranker, evaluation, bundle, registry.

`python -m training.train --config small`; several processes with `torchrun --nproc-per-node=2 -m training.train`.
"""

import logging
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
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
from headrace.models.bundle import Bundle, BundleError, Items, Manifest
from headrace.models.config import CLICK
from headrace.models.index import ItemIndex
from headrace.models.preprocessing import Preprocessing
from headrace.models.snapshot import AVAILABLE, Snapshot
from headrace.settings import MICROS, Settings
from headrace.stores.feature_store import open_feature_store
from headrace.stores.lake import EventLake
from headrace.stores.models import ModelRegistry
from training.baselines import NEIGHBOURS, neighbour_table, neighbours, popularity
from training.config import TrainConfig
from training.dataset import LABELS, T_US, Split, catalogue, items_known_at, newest, read_split, views_read
from training.evaluate import Models, evaluate, header_of, page_of
from training.figures import draw
from training.learn import RANKER, TOWERS, learn_ranking, learn_retrieval, offer
from training.page import write_page
from training.prepare import ranker_lists, shop_at_cut, tower_rows, users_of
from training.processes import device_of, processes, said_by_first
from training.requests import new_to_their_users
from training.result import TrainResult
from training.run import Run, Shop
from training.run_folder import RunError, RunFolder
from training.scoring import item_vectors, window_vectors
from training.stages import aloud, silent
from training.track import Track
from training.warm_start import has_seen
from training.windows import Windows

logger = logging.getLogger(__name__)

_QUERIES = 2_000
# Requests of the validation that are asked for each list that the ranker is to learn from: some are held out, and of the rest only those
# whose item is among what they are offered become lists.
_REQUESTS_A_LIST = 4


def main(
    config: TrainConfig,
    settings: Settings,
    clock: Clock = system_clock,
    *,
    store: FeatureStore | None = None,
    progress: bool = False,
    resume: bool | str = False,
    warm_start: Path | None = None,
    keep_unfinished: bool = True,
) -> TrainResult | None:
    """Train, evaluate, save a bundle and register it, all of it recorded in MLflow; None in all processes but the first.

    With `resume` the newest run that did not end and does not run goes on, or the one of that name, by its own config and from its own
    start. With `warm_start` both models begin as those of the bundle in that folder, where their weights mean the same. A run that does
    not end stays to be resumed; without `keep_unfinished` it goes.

    Raises ArchitectureError for names that no models have, DatasetError where the lake cannot be trained on, TrainError where fitting
    cannot go on, RunError where there is nothing to resume, or not as it began, BundleError where there is nothing to begin from,
    RegistryError where MLflow cannot be written to.
    """
    started_us = clock()
    with ExitStack() as ends:
        resumed = ends.enter_context(resumed_run(settings.runs_dir, resume)) if resume else None
        if resumed is not None:
            began = resumed.began()
            config, warm_start = began.config, began.warm_start
        check_names(config.towers, config.ranker)
        champion = None if warm_start is None else start_of(warm_start, resumed)
        device = device_of(config.device)
        store = store or open_feature_store(settings)
        us = ends.enter_context(processes(device))
        track = ends.enter_context(Track(settings, clock, us.is_first))
        folder = resumed or ends.enter_context(new_run(settings.runs_dir, config, clock, warm_start, keep_unfinished))
        began = folder.began()
        track.begin(folder, config, {"used_device": device, "processes": us.count, "torch": torch.__version__})
        torch.set_num_threads(config.threads)
        say = aloud if progress and us.is_first else silent

        # Data: episodes, split by time; features of their users at their times; the catalogue when the test begins.
        say("reading events and catalogue")
        views = compile_views(store, int(settings.lateness_horizon_s * MICROS))
        read = views_read(store)
        defined = {name: spec.fingerprint for name, spec in views.items() if name in read}
        fingerprints = us.in_turn(lambda: folder.fingerprints(defined))
        split = us.in_turn(lambda: folder.split(lambda: read_split(EventLake(settings.lake_dir), config)))
        track.data(split, fingerprints)
        seen = None if champion is None else has_seen(champion, split.cut_us)
        if seen is not None:
            logger.warning("%s", seen)
            champion = None
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

        near = neighbour_table(split.before_cut, shop.catalogue.item_ids)
        models = Models(shop.preprocessing, shop.catalogue, towers, ranker, near)
        notes = [] if seen is None else [seen]
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
        manifest = Manifest(
            version=folder.name,
            created_us=began.began_us,
            model=model,
            config=config.to_json(),
            fingerprints=fingerprints,
            window_us=(split.start_us, split.end_us),
            validation_us=split.validation_us,
            cut_us=split.cut_us,
            metrics=report.flat() | index.facts.metrics(),
            code_version=installed_version(names.PROJECT),
        )
        bundle_dir = settings.bundles_dir / manifest.version
        bundle = Bundle(manifest, shop.preprocessing, towers, ranker, items, index, snapshot)
        saved = saved_before(bundle_dir) if resumed else None
        if saved is None:
            bundle.save(bundle_dir)
        metrics = (saved or bundle).manifest.metrics
        epochs = {TOWERS: tower_epochs, RANKER: ranker_epochs}
        figures = draw(report, epochs)
        track.made(bundle_dir, report.to_json(), figures)
        registry = ModelRegistry(settings, clock)
        version = registered_before(registry, bundle_dir) if resumed else None
        if version is None:
            version = registry.register(bundle_dir, metrics, run_id=track.run_id)
        page = page_of(settings, version)
        header = {"version": f"{version} ({manifest.version})", **header_of(config, split, shop.items, report)}
        write_page(page, report, {**header, "MLflow run": track.run_id}, figures)
        track.reported(page)
        folder.end()
        lists, seconds = len(learnt or ()), (clock() - started_us) / MICROS
        return TrainResult(
            version, bundle_dir, report, index.facts, windows.rows, lists, epochs, seconds, page, track.run_id
        )


def start_of(folder: Path, resumed: RunFolder | None) -> Bundle:
    """The bundle whose weights a run begins with. Read before there is a run, which would be met by `--resume` and fail again. Raises
    BundleError, and RunError for a run that has begun.
    """
    try:
        return Bundle.load(folder)
    except BundleError as error:
        if resumed is None:
            raise BundleError(
                f"there are no weights to begin with ({error}): leave --warm-start out, or promote a version that can be read"
            ) from error
        raise RunError(
            f"run {resumed.name} began with weights that cannot be read any more ({error}): put that bundle back, or delete "
            f"{resumed.path} and start anew with `headrace train`"
        ) from error


@contextmanager
def new_run(
    runs: Path, config: TrainConfig, clock: Clock, warm_start: Path | None, keep_unfinished: bool
) -> Iterator[RunFolder]:
    """A new run, held by the first process."""
    with ExitStack() as ends:

        def begin() -> str:
            now_us = clock()
            name = f"{from_micros(now_us):%Y%m%dT%H%M%S}-{now_us % MICROS:06d}-{config.name}"
            folder = RunFolder.begin(runs, name, config, now_us, warm_start)
            ends.enter_context(folder.held())
            ends.enter_context(
                folder.gone_where_it_would_fail_again() if keep_unfinished else folder.gone_unless_done()
            )
            return name

        yield RunFolder(runs / said_by_first(begin))


@contextmanager
def resumed_run(runs: Path, which: bool | str) -> Iterator[RunFolder]:
    """The newest unfinished run or the one of that name, held by the first process."""
    with ExitStack() as ends:

        def take() -> str:
            return ends.enter_context(RunFolder.unfinished(runs, which if isinstance(which, str) else None)).name

        yield RunFolder(runs / said_by_first(take))


def saved_before(bundle_dir: Path) -> Bundle | None:
    """What this run saved before it was killed. What is not whole, and so could not serve, goes: it is written again."""
    if not bundle_dir.exists():
        return None
    try:
        return Bundle.load(bundle_dir)
    except BundleError as error:
        logger.warning("%s; this run writes it again", error)
        shutil.rmtree(bundle_dir)
        return None


def registered_before(registry: ModelRegistry, bundle_dir: Path) -> str | None:
    """The version that this run registered before it was killed: the challenger, as one that was registered whole."""
    versions = registry.versions()
    own = next((known for known in versions if known.path == bundle_dir.resolve()), None)
    if own is None:
        return None
    # A version that was at the gate has a tag that says what came of it.
    if own is versions[-1] and not own.aliases and not own.tags:
        registry.challenge(own.version)
    return own.version


def queries(towers: Towers, shop: Shop, windows: Windows, config: TrainConfig) -> Floats32:
    """Vectors of some windows' users as they last stood, by which the index is measured. Shape (Q, D)."""
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


if __name__ == "__main__":
    from training.train_command import command

    sys.exit(command())
