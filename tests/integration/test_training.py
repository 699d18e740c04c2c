"""A whole training run through Feast: a simulated shop in a real lake, the offline store, MLflow, and the bundle it makes.

One file, since all of it looks at one run, which takes half a minute.
"""

import hashlib
import logging
import shutil
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
import torch
from mlflow.entities import Run

from headrace import names
from headrace.clock import from_micros, to_micros
from headrace.decoding import decode_payload
from headrace.events import EVENT_SCHEMA, EventIn, encode_records, to_record
from headrace.ingest.shop import ShopConfig
from headrace.ingest.simulator import simulate
from headrace.models import columns
from headrace.models.bundle import Bundle, BundleError
from headrace.models.inputs import UserInputs
from headrace.models.neighbours import Neighbours
from headrace.models.scorer import Scorer
from headrace.settings import MICROS, Settings
from headrace.stores.feature_store import open_feature_store
from headrace.stores.lake import EventLake, append_rows
from headrace.stores.models import ModelRegistry, RegistryError, read_champion
from tests.integration.conftest import feast_applied
from training import evaluate, prepare, promote, train, window
from training.baselines import neighbour_table
from training.config import TrainConfig, small
from training.dataset import DatasetError, features, read_split
from training.intervals import Estimate
from training.learn import JUDGED_BY, RANKER
from training.measures import RANKED, TOWERS
from training.rivals import CO_OCCURRENCE, POPULAR
from training.run_folder import RunError, RunFolder
from training.track import Track

SHOP = ShopConfig(users=400, items=200, categories=8, events=16_000, days=4)
CONFIG = small().changed(max_ranked_requests=200, patience=2)
STARTED_US = 1_800_000_000 * MICROS


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """A lake of simulated events beside a registry that `feast apply` has written."""
    applied = feast_applied(tmp_path_factory.mktemp("trained"))
    settings = Settings(data=applied / "var", feature_repo=applied / "feature_repo")
    fill_lake(settings, SHOP)
    return settings


def fill_lake(settings: Settings, config: ShopConfig) -> None:
    history = simulate(config)
    events = [EventIn.model_validate(event) for event in history.events]
    moments = [to_micros(event.timestamp) for event in events]
    records = [to_record(event, moment, moment) for event, moment in zip(events, moments, strict=True)]
    table, bad = decode_payload(encode_records(records))
    assert not bad
    nothing = {name: pa.nulls(table.num_rows, EVENT_SCHEMA.field(name).type) for name in EVENT_SCHEMA.names}
    given = dict(zip(table.column_names, table.columns, strict=True))
    for column, value in ((names.LOG_PARTITION, 0), (names.LOG_POSITION, 1)):
        given[column] = pa.array([value] * table.num_rows, EVENT_SCHEMA.field(column).type)
    EventLake(settings.lake_dir).append(pa.table({**nothing, **given}).select(EVENT_SCHEMA.names), {0: 1})
    append_rows(settings.lake_dir, names.ITEMS_TABLE, history.catalogue)
    append_rows(settings.lake_dir, names.PROFILES_TABLE, history.profiles)


@pytest.fixture(scope="module")
def counted() -> Iterator[dict[str, int]]:
    """By module, the newest episode that a table of neighbours was counted from."""
    newest_us: dict[str, int] = {}

    def noting(name: str) -> Callable[[pl.DataFrame, Sequence[str]], Neighbours]:
        def note(episodes: pl.DataFrame, item_ids: Sequence[str]) -> Neighbours:
            newest_us[name] = int(episodes["t_us"].max())  # type: ignore[arg-type]
            return neighbour_table(episodes, item_ids)

        return note

    with pytest.MonkeyPatch.context() as patch:
        for part in (prepare, train, window):
            patch.setattr(part, "neighbour_table", noting(part.__name__))
        yield newest_us


@pytest.fixture(scope="module")
def result(settings: Settings, counted: dict[str, int]) -> train.TrainResult:
    return train.main(CONFIG, settings, clock=lambda: STARTED_US)


@pytest.fixture(scope="module")
def bundle(result: train.TrainResult) -> Bundle:
    return Bundle.load(result.bundle_dir)


def test_the_towers_beat_popularity_and_co_occurrence_on_the_same_split(result: train.TrainResult) -> None:
    everywhere = {name: values["ndcg_at_20"].value for name, values in result.report.retrieval.methods.items()}
    assert everywhere[TOWERS] > 1.1 * everywhere[CO_OCCURRENCE] > 1.1 * everywhere[POPULAR]
    measured = {name: values["ndcg_at_20"].value for name, values in result.report.methods.items()}
    assert measured[RANKED] > 0.9 * measured[TOWERS]
    assert result.report.outcomes["click"].auc.value > 0.7


def test_what_goes_with_what_is_counted_from_before_that_which_it_is_to_foretell(
    settings: Settings, result: train.TrainResult, counted: dict[str, int]
) -> None:
    """The ranker's lists and the requests of the evaluation: no table has seen a pair that it is asked for."""
    evaluate.main(result.version, settings)
    split = read_split(EventLake(settings.lake_dir), CONFIG)
    assert set(counted) == {"training.prepare", "training.train", "training.window"}
    assert counted["training.prepare"] < split.validation_us <= counted["training.train"] < split.cut_us
    assert counted["training.window"] == counted["training.train"]


def test_the_bundle_says_what_it_was_trained_on_and_with(settings: Settings, bundle: Bundle) -> None:
    manifest = bundle.manifest
    assert TrainConfig.from_json(manifest.config) == CONFIG
    assert manifest.created_us == STARTED_US
    assert set(manifest.fingerprints) == {names.USER_ACTIVITY, names.ITEM_ACTIVITY}
    assert manifest.window_us[0] < manifest.cut_us < manifest.window_us[1] <= SHOP.end_us
    assert bundle.items.item_ids == bundle.snapshot.item_id
    assert len(bundle.items.item_ids) == SHOP.items
    assert bundle.items.vectors_ND.shape == (SHOP.items, CONFIG.width)
    assert any(not available for available in bundle.snapshot.available)


def test_the_index_holds_the_vectors_that_serving_computes(bundle: Bundle) -> None:
    live = bundle.scorer().item_vectors(bundle.snapshot.features)
    assert np.allclose(live, bundle.items.vectors_ND, atol=1e-5)


def test_the_bundle_says_how_well_its_index_searches(result: train.TrainResult, bundle: Bundle) -> None:
    assert bundle.index.facts == result.index
    assert (bundle.index.kind, bundle.index.recall_at_500) == ("exact", 1.0)
    assert bundle.manifest.metrics["index_recall_at_500"] == 1.0
    assert str(result.index) == f"exact, {SHOP.items} items"


def test_clicks_in_one_category_lift_it_and_leave_a_control_category(settings: Settings, bundle: Bundle) -> None:
    """What the demo shows: three clicks and views a minute ago, and the category's mean rank rises in both stages."""
    scorer, snapshot = bundle.scorer(), bundle.snapshot
    category = np.array(snapshot.features["item_catalogue__category"])
    clicked, control = sorted(set(category))[:2]  # type: ignore[type-var]
    before, items = request_at_the_end(settings, bundle)
    after = with_clicks(
        before, [item for item, kind in zip(snapshot.item_id, category, strict=True) if kind == clicked][:3]
    )
    ranks = [
        (ranks_by(scorer, before, items, snapshot.as_of_us), ranks_by(scorer, after, items, snapshot.as_of_us)),
        (ranks_by_towers(scorer, before, bundle), ranks_by_towers(scorer, after, bundle)),
    ]
    for was, now in ranks:
        lift = was[category == clicked].mean() - now[category == clicked].mean()
        assert lift > SHOP.items / 5
        assert lift > 2 * (was[category == control].mean() - now[category == control].mean())
        assert (category[np.argsort(now)[:10]] == clicked).sum() >= 8


def request_at_the_end(settings: Settings, bundle: Bundle) -> tuple[dict[str, Any], dict[str, Any]]:
    """Features of a known user without recent clicks and of all items, as of the window's end."""
    ids, t_us = bundle.snapshot.item_id, bundle.snapshot.as_of_us
    profiles = pl.read_delta(str(settings.lake_dir / names.PROFILES_TABLE))
    rows = pl.DataFrame({"user_id": [profiles["user_id"][0]] * len(ids), "item_id": ids, "t_us": [t_us] * len(ids)})
    table = columns.by_name(features(open_feature_store(settings), names.RANKER_SERVICE, rows))
    user = {name: column[0].as_py() for name, column in table.items() if name.startswith("user_")}
    return user, {name: column for name, column in table.items() if name.startswith("item_")}


def with_clicks(user: dict[str, Any], item_ids: list[str]) -> dict[str, Any]:
    """The user's features after a click on and a view of each item, ten seconds apart."""
    view = names.USER_ACTIVITY
    after = dict(user)
    newest_us = SHOP.end_us - 60 * MICROS
    after[f"{view}__recent_items"] = [*(user[f"{view}__recent_items"] or []), *np.repeat(item_ids, 2).tolist()]
    after[f"{view}__recent_types"] = [
        *(user[f"{view}__recent_types"] or []),
        *[names.CLICK, names.VIEW] * len(item_ids),
    ]
    after[f"{view}__recent_times"] = [
        *columns.micros(user[f"{view}__recent_times"] or []),
        *(newest_us + 10 * MICROS * turn for turn in range(2 * len(item_ids))),
    ]
    for plural in ("views", "clicks"):
        for span in ("10m", "1h", "1d", "7d"):
            after[f"{view}__{plural}_{span}"] += len(item_ids)
    return after | {f"{view}__session_count": 2 * len(item_ids), f"{view}__session_seconds": 50.0}


def ranks_by(scorer: Scorer, user: dict[str, Any], items: dict[str, Any], t_us: int) -> np.ndarray[Any, Any]:
    return np.argsort(np.argsort(-scorer.rank(user, items, t_us)))


def ranks_by_towers(scorer: Scorer, user: dict[str, Any], bundle: Bundle) -> np.ndarray[Any, Any]:
    vector = scorer.user_vector(user, bundle.snapshot.as_of_us)
    return np.argsort(np.argsort(-(bundle.items.vectors_ND @ vector)))


def test_an_item_of_a_known_category_that_training_never_saw_is_placed_near_its_kind(bundle: Bundle) -> None:
    category = np.array(bundle.snapshot.features["item_catalogue__category"])
    kind = category[0]
    row = {name: [values[0]] for name, values in bundle.snapshot.features.items()} | {"item_id": ["brand new"]}
    new = bundle.scorer().item_vectors(row)[0]
    cosine = bundle.items.vectors_ND @ new / (np.linalg.norm(bundle.items.vectors_ND, axis=1) * np.linalg.norm(new))
    assert cosine[category == kind].mean() > cosine[category != kind].mean() + 0.3


def test_a_category_that_training_never_saw_is_still_scored(bundle: Bundle) -> None:
    row = {"item_id": ["brand new"], "item_catalogue__category": ["never seen"], "item_catalogue__price": [None]}
    assert np.isfinite(bundle.scorer().item_vectors(row)).all()
    assert np.isfinite(bundle.scorer().rank({}, row, STARTED_US)).all()


def test_a_promoted_version_is_what_serving_finds(settings: Settings, result: train.TrainResult) -> None:
    promoted = promote.main(None, settings, clock=lambda: STARTED_US)
    assert promoted.version == result.version
    assert read_champion(settings) == promoted
    assert promoted.path == result.bundle_dir.resolve()


def test_measuring_a_registered_bundle_again_gives_what_training_reported(
    settings: Settings, result: train.TrainResult
) -> None:
    again = evaluate.main(result.version, settings).report
    assert again.flat() == pytest.approx(result.report.flat(), abs=1e-9)
    assert again.segments == result.report.segments


def test_metrics_are_registered_by_name(settings: Settings, result: train.TrainResult) -> None:
    (registered,) = [known for known in ModelRegistry(settings).versions() if known.version == result.version]
    assert registered.metrics["two_towers_ndcg_at_10"] == result.report.methods[TOWERS]["ndcg_at_10"].value


def recorded(settings: Settings, run_id: str) -> Run:
    client, _ = ModelRegistry(settings).tracking()
    return client.get_run(run_id)


def artifacts_of(settings: Settings, run_id: str) -> Path:
    return settings.data / "mlflow" / run_id / "artifacts"


def test_mlflow_has_the_config_the_window_and_what_the_features_were(
    settings: Settings, result: train.TrainResult, bundle: Bundle
) -> None:
    run, manifest = recorded(settings, result.run_id), bundle.manifest
    assert run.info.status == "FINISHED"
    params = run.data.params
    assert {key: params[key] for key in CONFIG.to_json()} == {
        key: str(value) for key, value in CONFIG.to_json().items()
    }
    assert (params["used_device"], params["code_version"]) == ("cpu", manifest.code_version)
    moments = [params[key] for key in ("window_start", "cut", "window_end")]
    assert moments == [
        from_micros(us).isoformat() for us in (manifest.window_us[0], manifest.cut_us, manifest.window_us[1])
    ]
    begins = datetime.fromisoformat(params["validation_start"])
    assert manifest.window_us[0] < to_micros(begins) < manifest.cut_us
    assert params["services"] == f"{names.RETRIEVAL_SERVICE}, {names.RANKER_SERVICE}"
    assert {key: params[f"fingerprint_{key}"] for key in manifest.fingerprints} == {
        view: str(fingerprint) for view, fingerprint in manifest.fingerprints.items()
    }


def test_mlflow_has_every_epoch_of_both_models(settings: Settings, result: train.TrainResult) -> None:
    client, _ = ModelRegistry(settings).tracking()
    for name, epochs in result.epochs.items():
        assert len(epochs) > 1
        judged = JUDGED_BY[name]
        for key, value in (("loss", "loss"), (judged, "judged"), ("rows_per_second", "rows_per_second")):
            told = {each.step: each.value for each in client.get_metric_history(result.run_id, f"{name}/{key}")}
            expected = {epoch.number: getattr(epoch, value) for epoch in epochs if epoch.number or key == judged}
            assert told == expected


def test_mlflow_has_the_plots_the_report_and_where_the_bundle_is(settings: Settings, result: train.TrainResult) -> None:
    run, folder = recorded(settings, result.run_id), artifacts_of(settings, result.run_id)
    assert {file.stem for file in (folder / "plots").glob("*.svg")} == {
        "learning", "methods", "gains", "calibration", "recall_by_popularity", "exposure", "embedding_map",
    }  # fmt: skip
    assert (folder / "report.json").is_file()
    assert run.data.tags["bundle"] == str(result.bundle_dir.resolve())
    written = (result.bundle_dir / "bundle.json").read_bytes()
    assert run.data.tags["bundle_sha256"] == hashlib.sha256(written).hexdigest()
    assert (folder / "bundle.json").read_bytes() == written
    assert result.page == settings.data / "reports" / f"{result.version}.html"
    page = result.page.read_text()
    assert page == (folder / "report.html").read_text()
    assert (page.count("<svg"), f"Evaluation of version {result.version} (" in page) == (7, True)


QUICK = CONFIG.changed(
    max_positives=500,
    max_lists=100,
    max_ranked_requests=20,
    tower_epochs=1,
    ranker_epochs=1,
)


def test_a_catalogue_above_the_bound_gets_inverted_lists_of_measured_recall(settings: Settings) -> None:
    result = train.main(QUICK.changed(exact_below=100), settings, clock=lambda: STARTED_US + 3)
    index = Bundle.load(result.bundle_dir).index
    assert index.facts == result.index
    assert (index.kind, index.facts.nlist) == ("ivf", round(4 * SHOP.items**0.5))
    assert index.recall_at_500 >= 0.97
    (registered,) = [known for known in ModelRegistry(settings).versions() if known.version == result.version]
    assert registered.metrics["index_recall_at_500"] == index.recall_at_500
    assert registered.metrics["index_nprobe"] == index.nprobe


def test_one_seed_gives_one_report(settings: Settings) -> None:
    first, again = (
        train.main(QUICK, settings, clock=lambda at=at: at).report for at in (STARTED_US + 1, STARTED_US + 2)
    )  # type: ignore[misc]
    assert first == again


def test_as_many_lists_are_learnt_from_as_asked_for_whatever_else_the_towers_offer(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 240 requests with 60 of 200 items offered each, most are of an item that is not among these."""
    chosen = []

    def counting(*given: Any) -> Any:
        learnt, held = prepare.ranker_lists(*given)
        assert learnt is not None
        chosen.append(int(learnt.choices_R.sum()))
        return learnt, held

    monkeypatch.setattr(train, "ranker_lists", counting)
    train.main(QUICK.changed(max_lists=60, candidates=60), settings, clock=lambda: STARTED_US + 31)
    assert chosen == [60]


def test_users_of_requests_are_the_same_however_many_are_read_at_once(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def twice(*given: Any) -> UserInputs:
        together = prepare.users_of(*given)
        with monkeypatch.context() as patch:
            patch.setattr(prepare, "USER_CHUNK", 7)
            parts = prepare.users_of(*given)
        assert len(together.items_BL) > 7
        assert all(torch.equal(whole, part) for whole, part in zip(together, parts, strict=True))
        return together

    monkeypatch.setattr(train, "users_of", twice)
    train.main(QUICK, settings, clock=lambda: STARTED_US + 32)


def killed_at(at: tuple[object, str], settings: Settings, began_us: int, warm_start: Path | None = None) -> RunFolder:
    """The run that is interrupted there, so that nothing is tidied up."""

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(*at, interrupted)
        with pytest.raises(KeyboardInterrupt):
            train.main(QUICK, settings, clock=lambda: began_us, warm_start=warm_start)
    with RunFolder.unfinished(settings.runs_dir) as folder:
        return folder


def test_a_run_that_was_interrupted_is_killed_in_mlflow_and_goes_on_there_when_it_is_resumed(
    settings: Settings,
) -> None:
    client, experiment = ModelRegistry(settings).tracking()
    run_id = killed_at((train, "ranker_lists"), settings, STARTED_US + 4).tracked_as()
    assert run_id is not None
    assert recorded(settings, run_id).info.status == "KILLED"
    assert [each.step for each in client.get_metric_history(run_id, "towers/ndcg_at_10")] == [0, 1]

    runs = len(client.search_runs([experiment]))
    result = train.main(QUICK, settings, clock=lambda: STARTED_US + 5, resume=True)
    assert (result.run_id, recorded(settings, run_id).info.status) == (run_id, "FINISHED")
    assert [each.step for each in client.get_metric_history(run_id, "towers/ndcg_at_10")] == [0, 1]
    assert [each.step for each in client.get_metric_history(run_id, "ranker/loss")] == [1]
    assert len(client.search_runs([experiment])) == runs


@pytest.mark.parametrize(("at", "begins_us"), [("tower_rows", STARTED_US + 6), ("ranker_lists", STARTED_US + 7)])
def test_a_run_that_began_with_another_ones_weights_does_so_when_it_is_resumed(
    settings: Settings,
    result: train.TrainResult,
    caplog: pytest.LogCaptureFixture,
    at: str,
    begins_us: int,
) -> None:
    """Interrupted before the towers learn, or after; by its own config too, whatever the command says then."""
    killed_at((train, at), settings, begins_us, result.bundle_dir)
    caplog.clear()
    with caplog.at_level(logging.INFO, "training.warm_start"):
        resumed = train.main(
            QUICK.changed(towers="casual", device="nowhere"), settings, clock=lambda: STARTED_US + 8, resume=True
        )
    assert resumed is not None
    for kind in ("TwoTowers", "Ranker"):
        [said] = [line for line in caplog.messages if line.startswith(f"{kind}: ")]
        assert said.endswith(f"tensors begin as those of bundle {result.bundle_dir.name}")
    assert Bundle.load(resumed.bundle_dir).manifest.config == QUICK.to_json()


def with_mlflow(settings: Settings, data: Path) -> Settings:
    """Settings of a data directory in which MLflow has its tables, which take seconds to make."""
    data.mkdir(exist_ok=True)
    shutil.copyfile(settings.data / "mlflow.db", data / "mlflow.db")
    return Settings(data=data, feature_repo=settings.feature_repo)


def aliases_of(settings: Settings, version: str) -> tuple[str, ...]:
    return next(known.aliases for known in ModelRegistry(settings).versions() if known.version == version)


@pytest.mark.parametrize(
    ("at", "began_us", "whole", "registered"),
    [
        ((Track, "made"), STARTED_US + 10, True, False),
        ((Track, "made"), STARTED_US + 11, False, False),
        ((ModelRegistry, "challenge"), STARTED_US + 12, True, True),
        ((train, "write_page"), STARTED_US + 13, True, True),
        ((RunFolder, "end"), STARTED_US + 14, True, True),
    ],
)
def test_a_run_that_was_killed_after_its_bundle_ends_with_that_one_registered_once(
    settings: Settings, result: train.TrainResult, at: tuple[object, str], began_us: int, whole: bool, registered: bool
) -> None:
    before = len(ModelRegistry(settings).versions())
    bundle_dir = settings.bundles_dir / killed_at(at, settings, began_us).name
    weights = bundle_dir / "weights.pt"
    if not whole:
        weights.write_bytes(b"cut short")
    written_ns = weights.stat().st_mtime_ns
    assert len(ModelRegistry(settings).versions()) == before + registered

    resumed = train.main(QUICK, settings, clock=lambda: STARTED_US + 20, resume=bundle_dir.name)
    assert resumed.bundle_dir == bundle_dir
    assert Bundle.load(bundle_dir).version == bundle_dir.name
    assert (weights.stat().st_mtime_ns == written_ns) == whole
    versions = ModelRegistry(settings).versions()
    assert [known.version for known in versions if known.path == bundle_dir.resolve()] == [resumed.version]
    assert len(versions) == before + 1
    assert aliases_of(settings, resumed.version) == (names.CHALLENGER,)
    assert resumed.page.is_file()
    assert recorded(settings, resumed.run_id).info.status == "FINISHED"
    assert list(settings.runs_dir.iterdir()) == []


def test_a_run_whose_features_were_defined_anew_does_not_go_on(
    settings: Settings, result: train.TrainResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed_at((train, "ranker_lists"), settings, STARTED_US + 21)
    compiled = train.compile_views

    def anew(*arguments: Any) -> Any:
        views = compiled(*arguments)
        return {**views, names.ITEM_ACTIVITY: views[names.USER_ACTIVITY]}

    with monkeypatch.context() as patch:
        patch.setattr(train, "compile_views", anew)
        with pytest.raises(RunError, match=f"began with another definition of view {names.ITEM_ACTIVITY} "):
            train.main(QUICK, settings, clock=lambda: STARTED_US + 22, resume=True)
    monkeypatch.setattr(train, "compile_views", lambda *them: {**compiled(*them), "of no service": None})
    resumed = train.main(QUICK, settings, clock=lambda: STARTED_US + 23, resume=True)
    assert Bundle.load(resumed.bundle_dir).manifest.fingerprints == Bundle.load(result.bundle_dir).manifest.fingerprints


def test_a_run_whose_start_cannot_be_read_does_not_begin_and_one_that_has_begun_says_so(
    settings: Settings, result: train.TrainResult, tmp_path: Path
) -> None:
    start = tmp_path / "start"
    shutil.copytree(result.bundle_dir, start)
    path = killed_at((train, "learn_retrieval"), settings, STARTED_US + 26, start).path
    (start / "weights.pt").write_bytes(b"")
    with pytest.raises(
        RunError,
        match=rf"run {path.name} began with weights .*weights\.pt is damaged.*: put that bundle back, or delete {path}",
    ):
        train.main(QUICK, settings, clock=lambda: STARTED_US + 27, resume=True)
    shutil.rmtree(path)
    with pytest.raises(
        BundleError, match=r"^there are no weights to begin with \(.*weights\.pt is damaged.*\): leave --warm-start out"
    ):
        train.main(QUICK, settings, clock=lambda: STARTED_US + 28, warm_start=start)
    assert list(settings.runs_dir.iterdir()) == []


def test_rows_that_were_cut_short_are_named_with_the_remedy(settings: Settings, result: train.TrainResult) -> None:
    path = killed_at((train, "learn_retrieval"), settings, STARTED_US + 24).path
    for damaged in (next((path / "rows").rglob("*.npy")), path / "content.parquet"):
        damaged.write_bytes(damaged.read_bytes()[:-9])
        with pytest.raises(
            RunError, match=rf"(rows|content\.parquet) cannot be read \(.*\): mend it, or delete {path}"
        ):
            train.main(QUICK, settings, clock=lambda: STARTED_US + 25, resume=True)
    shutil.rmtree(path)


def test_an_empty_lake_is_refused_with_the_remedy_and_the_run_has_failed(
    settings: Settings, result: train.TrainResult, tmp_path: Path
) -> None:
    empty = with_mlflow(settings, tmp_path)
    with pytest.raises(DatasetError, match="run `headrace ingest` first"):
        train.main(CONFIG, empty, store=open_feature_store(settings))
    client, experiment = ModelRegistry(empty).tracking()
    run = client.search_runs([experiment], order_by=["attributes.start_time DESC"], max_results=1)[0]
    assert run.info.status == "FAILED"
    assert run.data.tags["error"].startswith(f"DatasetError: the event lake {empty.lake_dir}")
    assert list(empty.runs_dir.iterdir()) == [], "it would fail again, and stand before a run that can go on"


def test_a_training_that_mlflow_cannot_record_does_not_begin(settings: Settings, tmp_path: Path) -> None:
    blocked = Settings(data=tmp_path, feature_repo=settings.feature_repo)
    (tmp_path / "mlflow.db").write_text("this is no database")
    with pytest.raises(RegistryError, match="MLflow cannot be written to"):
        train.main(CONFIG, blocked, store=open_feature_store(settings))
    assert not blocked.runs_dir.exists()


def test_one_user_trains_while_one_without_anything_new_and_a_single_item_are_refused(
    settings: Settings, result: train.TrainResult, tmp_path: Path
) -> None:
    """Features are those of the big shop's store, where this user is a stranger: keys alone come from the small lake."""
    store, hour_us = open_feature_store(settings), 3_600 * MICROS
    quick = CONFIG.changed(tower_epochs=1, ranker_epochs=1, test_share=0.5)
    two = with_mlflow(settings, tmp_path / "two")
    visits = [("a", 0), ("b", 1), ("a", 26), ("b", 27), ("a", 53), ("b", 54)]
    append_views(two, [(item, SHOP.start_us + hours * hour_us) for item, hours in visits])
    with pytest.raises(DatasetError, match="none of those with an item that is new to its user"):
        train.main(quick, two, store=store)

    three = with_mlflow(settings, tmp_path / "three")
    append_views(three, [(item, SHOP.start_us + hours * hour_us) for item, hours in [*visits, ("c", 60)]])
    listed = pa.table({"item_id": ["c"], "event_timestamp": pa.array([SHOP.start_us], pa.timestamp("us", "UTC"))})
    append_rows(three.lake_dir, names.ITEMS_TABLE, listed)
    trained = train.main(quick, three, store=store)
    assert (trained.ranker_lists, trained.epochs[RANKER]) == (0, [])
    assert (trained.report.requests, trained.report.users) == (1, 1)
    assert trained.report.outcomes == {}
    assert [note.split(":")[0] for note in trained.report.notes] == [
        "no AUC, log loss and calibration",
        "the baselines' half-life and number of neighbours are defaults",
    ]
    # All that is left to rank is c, and one user has no interval.
    assert trained.report.methods[TOWERS]["recall_at_10"] == Estimate(1.0)
    assert sorted(Bundle.load(trained.bundle_dir).snapshot.item_id) == ["a", "b", "c"]

    one = with_mlflow(settings, tmp_path / "one")
    append_views(one, [("a", SHOP.start_us + hours * hour_us) for hours in (0, 26, 53)])
    with pytest.raises(DatasetError, match="the catalogue holds 1 item"):
        train.main(quick.changed(validation_share=0.0), one, store=store)


def append_views(settings: Settings, visits: list[tuple[str, int]]) -> None:
    rows = [
        {"event_id": f"e{number}", "type": names.VIEW, "user_key": "u", "item_id": item, "timestamp": at_us,
         "received_at": at_us, "ingested_at": at_us,
         "log_partition": 0, "log_position": 1}
        for number, (item, at_us) in enumerate(visits)
    ]  # fmt: skip
    EventLake(settings.lake_dir).append(pa.Table.from_pylist(rows, schema=EVENT_SCHEMA), {0: 1})
