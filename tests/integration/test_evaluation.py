"""`headrace evaluate` on a trained model of the simulated shop: the report, its JSON and its page."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from headrace import names
from headrace.ingest.shop import ShopConfig
from headrace.models.bundle import Bundle, BundleError
from headrace.models.neighbours import Neighbours
from headrace.settings import MICROS, Settings
from headrace.stores.feature_store import open_feature_store
from headrace.stores.lake import EventLake
from headrace.stores.models import BundleRef, ModelRegistry, read_pointer, write_pointer
from tests.integration.conftest import feast_applied
from tests.integration.test_training import fill_lake
from training import evaluate, promote, train
from training.champion import InService, NoChampion, Why, champion_of, check_features, read_in_service
from training.config import small
from training.dataset import catalogue, items_known_at
from training.evaluate import Evaluation
from training.measures import CHAMPION, RANKED, TOWERS
from training.requests import read_requests
from training.rivals import RIVALS
from training.staleness import parse_lags

SHOP = ShopConfig(users=300, items=150, categories=6, events=9_000, days=3)
CONFIG = small().changed(max_lists=1_000, patience=2, max_ranked_requests=150, max_test=400, resamples=200)
STARTED_US = 1_800_000_000 * MICROS


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """A shop of its own, since evaluations ask which versions there are and which one is in service."""
    directory = feast_applied(tmp_path_factory.mktemp("evaluated"))
    settings = Settings(data=directory / "var", feature_repo=directory / "feature_repo")
    fill_lake(settings, SHOP)
    return settings


@pytest.fixture(scope="module")
def result(settings: Settings) -> train.TrainResult:
    return train.main(CONFIG, settings, clock=lambda: STARTED_US)


@pytest.fixture(scope="module")
def stale(settings: Settings, result: train.TrainResult) -> Evaluation:
    return evaluate.main(result.version, settings, lags=parse_lags("0s,1h,1d"))


def test_the_fresh_point_is_the_plain_evaluation_and_loses_nothing(stale: Evaluation) -> None:
    fresh = stale.report.staleness[0]
    for method in (TOWERS, RANKED):
        plain = {name: each for name, each in stale.report.methods[method].items() if name in fresh.methods[method]}
        assert fresh.methods[method] == plain
        assert (fresh.loss[method].value, fresh.loss[method].low, fresh.loss[method].high) == (0, 0, 0)


def test_older_features_serve_worse(stale: Evaluation) -> None:
    """Visitors of the simulated shop stay in a category: what they did in the last hour says what comes next."""
    fresh, hour, day = stale.report.staleness
    assert [point.lag for point in stale.report.staleness] == ["0s", "1h", "1d"]
    for method in (TOWERS, RANKED):
        value = [point.methods[method]["ndcg_at_10"].value for point in (fresh, hour, day)]
        assert value[0] > 1.5 * value[1]
        assert hour.loss[method].is_clear
        assert day.loss[method].value == pytest.approx(value[2] - value[0])


def test_a_gain_is_the_difference_of_the_two_means(stale: Evaluation) -> None:
    methods = {name: each["ndcg_at_10"].value for name, each in stale.report.methods.items()}
    assert set(stale.report.gains) == {TOWERS, *RIVALS}
    for name, gain in stale.report.gains.items():
        assert gain.value == pytest.approx(methods[RANKED] - methods[name])


def test_segments_of_one_kind_have_all_requests_together(stale: Evaluation) -> None:
    for kind in {group.of for group in stale.report.segments}:
        assert sum(group.requests for group in stale.report.segments if group.of == kind) == stale.report.requests


def test_no_request_is_for_an_item_that_its_user_knows(settings: Settings, result: train.TrainResult) -> None:
    split = train.read_split(EventLake(settings.lake_dir), CONFIG)
    item_ids = items_known_at(settings.lake_dir, split, split.cut_us)
    requests = read_requests(split.test, split.everything, item_ids, 0, 0)
    for row, target in enumerate(requests.target_T):
        assert target not in requests.history.of(row)
    before = requests.rows.join(split.everything, on=["user_id", "item_id"], suffix="_before")
    assert before.filter(pl.col("t_us_before") < pl.col("t_us")).is_empty()
    assert result.report.retrieval.requests == min(CONFIG.max_test, len(requests))


def test_a_version_of_other_feature_definitions_is_refused(settings: Settings, result: train.TrainResult) -> None:
    bundle = Bundle.load(result.bundle_dir)
    check_features(bundle.manifest, settings)
    other = replace(bundle, manifest=replace(bundle.manifest, fingerprints={names.USER_ACTIVITY: 1}))
    with pytest.raises(BundleError, match="trained on another definition of view user_activity"):
        check_features(other.manifest, settings)


class Links(HTMLParser):
    """What a page would load, and the tags that it has."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href", "data")]


def test_the_command_prints_one_object_and_writes_a_page_that_needs_nothing_else(
    settings: Settings, result: train.TrainResult, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HEADRACE_DATA", str(settings.data))
    monkeypatch.setenv("HEADRACE_FEATURE_REPO", str(settings.feature_repo))
    learnt = result.page.read_text()
    changes = ["--set", "max_ranked_requests=20", "--set", "resamples=100"]
    code = evaluate.command(["--staleness", "0s,1h", *changes, "--json"])
    assert code == 0
    printed = capsys.readouterr()
    told = json.loads(printed.out)
    assert "... " not in printed.err
    assert (told["version"], told["requests"]) == (result.version, 20)
    assert set(told["methods"]) == {RANKED, TOWERS, *RIVALS}
    assert [point["lag"] for point in told["staleness"]] == ["0s", "1h"]
    assert set(told["methods"][RANKED]["ndcg_at_10"]) == {"value", "low", "high"}

    page = Path(told["page"])
    assert page == settings.data / "reports" / f"{result.version}-evaluation.html"
    assert result.page.read_text() == learnt  # the training's report keeps how the version learnt
    assert "<h2>Learning" in learnt
    text = page.read_text()
    read = Links()
    read.feed(text)
    assert "script" not in read.tags
    assert "link" not in read.tags
    assert all(link.startswith(("#", "data:")) for link in read.links)
    assert "url(http" not in text
    assert "@import" not in text
    assert len(re.findall("<svg", text)) == 7
    for said in ("--staleness 0s,1h", CONFIG.name, "What real time is worth", "no version is in service"):
        assert said in text


def test_a_command_that_cannot_be_done_is_one_line(
    settings: Settings, result: train.TrainResult, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HEADRACE_DATA", str(settings.data))
    monkeypatch.setenv("HEADRACE_FEATURE_REPO", str(settings.feature_repo))
    for arguments, said in (
        (["--staleness", "soon"], "write lags like 0s,1m,1h,1d"),
        (["--set", "width=8"], "width was settled by the training"),
        (["9"], "no version '9'"),
    ):
        assert evaluate.command(arguments) == 1
        assert said in capsys.readouterr().err
    assert result.version == "1"


def test_the_champion_is_measured_on_the_same_requests_and_not_beside_itself(
    settings: Settings, result: train.TrainResult
) -> None:
    assert promote.main(result.version, settings, clock=lambda: STARTED_US).version == result.version
    itself = evaluate.main(result.version, settings).report
    assert CHAMPION not in itself.methods
    assert f"no champion: version {result.version} itself is in service" in itself.notes

    again = ModelRegistry(settings).register(result.bundle_dir, {})
    stages: list[str] = []
    other = evaluate.main(again, settings, say=stages.append).report
    assert "evaluation: 150 requests by the champion" in stages
    assert other.methods[CHAMPION] == other.methods[RANKED]  # the same bundle under another number
    assert (other.gains[CHAMPION].value, other.gains[CHAMPION].high) == (0, 0)


def test_a_champion_says_what_it_has_seen_and_one_that_does_not_fit_says_why(
    settings: Settings, result: train.TrainResult, tmp_path: Path
) -> None:
    store, pointer = open_feature_store(settings), settings.bundles_dir / "champion.json"
    cut_us = Bundle.load(result.bundle_dir).manifest.cut_us
    content, nobodys = (
        catalogue(store, ["item-0"], cut_us),
        Neighbours.of_items(np.full((1, 1), -1, np.int32), np.zeros((1, 1), np.float32)),
    )
    promote.main(result.version, settings, clock=lambda: STARTED_US)
    found = read_in_service(settings)
    assert isinstance(found, InService)
    assert champion_of(found, content, nobodys, cut_us).note is None
    note = champion_of(found, content, nobodys, cut_us - 1).note
    assert note is not None
    assert "has seen part of the test" in note

    champion = read_pointer(pointer)
    assert champion is not None
    write_pointer(pointer, BundleRef(champion.version, tmp_path / "gone", champion.promoted_at))
    refused = read_in_service(settings)
    unread = evaluate.main(ModelRegistry(settings).register(result.bundle_dir, {}), settings).report
    write_pointer(pointer, champion)
    assert isinstance(refused, NoChampion)
    assert refused.why is Why.DAMAGED
    assert "is missing: train again or promote another version" in refused.said
    assert f"no champion: {refused.said}" in unread.notes
