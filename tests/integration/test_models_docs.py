"""docs/models.md: the architecture that it adds trains by its command, is promoted, and is served as it scores.

And what it says of architectures in general, of a ranker that begins where the last one of its class ended.
"""

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headrace.clock import system_clock
from headrace.ingest.shop import ShopConfig
from headrace.models.bundle import Bundle, BundleError
from headrace.models.modules import Modules
from headrace.settings import Settings
from headrace.stores.feature_store import open_feature_store
from serving import catalogue as cat
from serving.catalogue import Catalogue
from serving.model import BundleModel
from serving.replica import missing_items
from tests.conftest import ROOT
from tests.integration.conftest import feast_applied
from tests.integration.test_training import fill_lake
from training import train
from training.config import small
from training.gate_measures import differences, shelf_of
from training.learn import RANKER
from training.made_up import made_up

PAGE = (ROOT / "docs" / "models.md").read_text()
SECTION = PAGE.partition("## Add an architecture\n")[2].partition("\n## ")[0]
FILES = ("decayed_mean.py", "my_configs.py")
SHOP = ShopConfig(users=150, items=80, categories=6, events=4_000, days=3)
FEW = {"batch": 64, "max_lists": 200, "tower_epochs": 6, "ranker_epochs": 3, "max_ranked_requests": 50}


@dataclass(frozen=True)
class Shop:
    settings: Settings
    environment: dict[str, str]


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    directory = feast_applied(tmp_path_factory.mktemp("shop"))
    settings = Settings(data=directory / "var", feature_repo=directory / "feature_repo")
    fill_lake(settings, SHOP)
    own = {"HEADRACE_DATA": str(settings.data), "HEADRACE_FEATURE_REPO": str(settings.feature_repo)}
    # The models' part of a request on a machine that does other things at the same time.
    return Shop(settings, {**os.environ, **own, "PYTHONPATH": str(ROOT), "HEADRACE_DEADLINE_MS": "5000"})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the files of the walk-through lie."""
    folder = tmp_path_factory.mktemp("walk-through")
    blocks = re.findall(r"^```python\n(.*?)^```$", SECTION, re.MULTILINE | re.DOTALL)
    for name, code in zip(FILES, blocks, strict=True):
        (folder / name).write_text(code)
    return folder


def headrace(shop: Shop, folder: Path, *arguments: str) -> dict[str, Any]:
    """What the command says in JSON, run in that folder."""
    command = [sys.executable, "-c", "from headrace.cli import main; main()", *arguments, "--json"]
    done = subprocess.run(command, cwd=folder, env=shop.environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    said: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return said


@pytest.fixture(scope="module")
def trained(shop: Shop, folder: Path) -> dict[str, Any]:
    changes = [part for key, value in FEW.items() for part in ("--set", f"{key}={value}")]
    return headrace(shop, folder, "train", "--config", "my_configs:decayed", *changes)


@pytest.fixture
def bundle(trained: dict[str, Any], folder: Path, monkeypatch: pytest.MonkeyPatch) -> Bundle:
    monkeypatch.syspath_prepend(folder)
    return Bundle.load(Path(trained["bundle_dir"]))


def test_it_learns_and_its_report_has_it_among_the_others(trained: dict[str, Any]) -> None:
    epochs = trained["epochs"]["towers"]
    assert max(epoch["judged"] for epoch in epochs[1:]) > 1.5 * epochs[0]["judged"]
    [sentence] = re.findall(r"`train` prints .*?\.", SECTION, re.DOTALL)
    assert set(re.findall(r"`([a-z][a-zA-Z+ -]+)`", sentence)) - {"train"} == set(trained["report"]["methods"])


def test_its_bundle_names_the_class_and_serving_gives_what_the_modules_give(bundle: Bundle) -> None:
    assert bundle.manifest.model.towers == "decayed_mean:DecayedMean"
    assert type(bundle.towers).__name__ == "DecayedMean"
    shelf = shelf_of(bundle)
    assert isinstance(shelf._models, Modules)
    found = differences(bundle, shelf)
    assert max(found.scores, found.users, found.items) < 1e-5
    assert found.requests > 0


def test_a_replica_serves_its_scores(bundle: Bundle) -> None:
    catalogue = Catalogue(cat.LIVE)
    catalogue.put(missing_items(bundle, catalogue))
    model, scorer = BundleModel(bundle, catalogue), bundle.scorer()
    model.warm_up(bundle.snapshot.as_of_us)
    for asked in made_up(bundle, 5, 30):
        user = model.read_user({name: [value] for name, value in asked.user.items()}, asked.t_us)
        rows, scores = model.retrieve(user, 20, None)
        best = scorer.item_vectors(bundle.snapshot.features) @ scorer.user_vector(asked.user, asked.t_us)
        assert scores[0] == pytest.approx(best.max(), abs=1e-4)
        ids = [catalogue.item_ids[row] for row in rows]
        places = [bundle.snapshot.item_id.index(item) for item in ids]
        features = {name: [column[place] for place in places] for name, column in bundle.snapshot.features.items()}
        activity = np.full((len(rows), len(model.activity_features)), np.nan)
        expected = scorer.rank(asked.user, features, asked.t_us)
        assert np.allclose(model.rank(user, rows, activity), expected, atol=1e-4)


def test_it_is_promoted_by_its_command_and_a_replica_without_the_module_says_so(
    shop: Shop, folder: Path, trained: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    said = headrace(shop, folder, "promote", trained["version"])
    assert said["promoted"]
    assert [check["passed"] for check in said["checks"]] == [True] * 6
    # Who has followed the walk-through may have its files in the checkout.
    monkeypatch.setattr(sys, "path", [place for place in sys.path if not (Path(place) / "decayed_mean.py").exists()])
    sys.modules.pop("decayed_mean", None)
    with pytest.raises(
        BundleError, match="no towers 'decayed_mean:DecayedMean': module decayed_mean cannot be imported"
    ):
        Bundle.load(Path(trained["bundle_dir"]))


def test_it_is_measured_again_by_its_command(shop: Shop, folder: Path, trained: dict[str, Any]) -> None:
    said = headrace(shop, folder, "evaluate", trained["version"], "--report", str(folder / "report.html"))
    assert "two towers" in json.dumps(said)
    assert "decayed" in (folder / "report.html").read_text()


def test_a_ranker_of_ones_own_trains_is_settled_and_goes_on_from_itself(shop: Shop) -> None:
    """So few lists teach a line nothing that a test could see, but how likely clicks are, and with that it goes on."""
    config = small().changed(**FEW, name="line", ranker="tests.unit.models.foreign:Line")
    store = open_feature_store(shop.settings)
    now = system_clock()
    first = train.main(config, shop.settings, clock=lambda: now, store=store)
    assert first is not None
    bundle = Bundle.load(first.bundle_dir)
    state = bundle.ranker.state_dict()
    assert (state["slope_O"] > 0).all()
    assert not bool((state["shift_O"] == 0).all())
    found = differences(bundle, shelf_of(bundle))
    assert max(found.scores, found.users, found.items) < 1e-5
    again = train.main(config, shop.settings, clock=lambda: now + 1, store=store, warm_start=first.bundle_dir)
    assert again is not None
    assert again.epochs[RANKER][1].loss < 0.95 * first.epochs[RANKER][1].loss


def test_an_architecture_that_there_is_not_ends_a_run_before_it_reads_anything(shop: Shop) -> None:
    with pytest.raises(ValueError, match=r"no towers 'casual': .*; choose from causal"):
        train.main(small().changed(towers="casual"), shop.settings, clock=lambda: 1)
    assert list(shop.settings.runs_dir.glob("*")) == []
