"""A feature store over an empty lake: definitions applied once for all tests, each of which begins with the registry as it was then."""

import importlib.util
import shutil
import warnings
from pathlib import Path
from types import ModuleType

import pytest
from feast import Entity, FeatureService, FeatureStore, FeatureView

from headrace.settings import Settings
from headrace.stores.feature_store import open_feature_store
from tests.conftest import ROOT


@pytest.fixture(scope="session")
def applied_definitions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a copy of the feature repository that needs no online server, its data directory, and the registry as applied."""
    folder = tmp_path_factory.mktemp("offline")
    repo = folder / "feature_repo"
    shutil.copytree(ROOT / "feature_repo", repo, ignore=shutil.ignore_patterns("__pycache__"))
    yaml = (repo / "feature_store.yaml").read_text()
    online = "type: headrace.stores.online.PackedRedisOnlineStore"
    assert online in yaml
    (repo / "feature_store.yaml").write_text(
        yaml.replace(online, f"type: sqlite\n  path: {folder / 'var' / 'online.db'}")
    )
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        patch.setenv("HEADRACE_DATA", str(folder / "var"))
        warnings.simplefilter("ignore", RuntimeWarning)
        definitions = _load(repo)
        kinds = (Entity, FeatureView, FeatureService)
        open_feature_store(Settings(feature_repo=repo)).apply(
            [v for v in vars(definitions).values() if isinstance(v, kinds)]
        )
    shutil.copytree(folder / "var", folder / "as_applied")
    return folder


@pytest.fixture
def settings(applied_definitions: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Settings over a data directory that holds the applied registry and nothing else."""
    data = applied_definitions / "var"
    shutil.rmtree(data)
    shutil.copytree(applied_definitions / "as_applied", data)
    monkeypatch.setenv("HEADRACE_DATA", str(data))
    return Settings(feature_repo=applied_definitions / "feature_repo")


@pytest.fixture
def store(settings: Settings) -> FeatureStore:
    return open_feature_store(settings)


def _load(repo: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("features_under_test", repo / "features.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
