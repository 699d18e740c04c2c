"""The model registry on its own SQLite file."""

import json
from pathlib import Path

import pytest

from headrace.settings import Settings
from headrace.stores.models import BundleRef, ModelRegistry, RegistryError, read_champion


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return Settings(data=tmp_path_factory.mktemp("registry"))


@pytest.fixture(scope="module")
def registry(settings: Settings) -> ModelRegistry:
    registry = ModelRegistry(settings, clock=lambda: 1_700_000_000_000_000)
    for name, ndcg in (("first", 0.25), ("second", 0.5)):
        (settings.bundles_dir / name).mkdir(parents=True)
        registry.register(settings.bundles_dir / name, {"ndcg_at_10": ndcg}, {"size": 1})
    return registry


def test_before_a_promotion_there_is_no_champion(tmp_path: Path) -> None:
    assert read_champion(Settings(data=tmp_path)) is None


def test_versions_are_counted_and_keep_what_they_measured(registry: ModelRegistry) -> None:
    assert [(known.version, known.path.name, known.metrics) for known in registry.versions()] == [
        ("1", "first", {"ndcg_at_10": 0.25}),
        ("2", "second", {"ndcg_at_10": 0.5}),
    ]


def test_a_promotion_moves_the_alias_and_the_pointer(registry: ModelRegistry, settings: Settings) -> None:
    for version, name in (("1", "first"), ("2", "second"), ("1", "first")):
        champion = registry.promote(version)
        assert champion == BundleRef(version, (settings.bundles_dir / name).resolve(), 1_700_000_000_000_000)
        assert registry.champion() == read_champion(settings) == champion
        assert [known.version for known in registry.versions() if "champion" in known.aliases] == [version]


def test_the_pointer_is_plain_json_and_no_draft_is_left(registry: ModelRegistry, settings: Settings) -> None:
    registry.promote("2")
    pointer = settings.bundles_dir / "champion.json"
    path = str((settings.bundles_dir / "second").resolve())
    assert json.loads(pointer.read_text()) == {"version": "2", "path": path, "promoted_at": 1_700_000_000_000_000}
    assert sorted(entry.name for entry in settings.bundles_dir.iterdir()) == ["champion.json", "first", "second"]


def test_an_unknown_version_is_refused_by_name(registry: ModelRegistry) -> None:
    with pytest.raises(RegistryError, match="no version '9'"):
        registry.promote("9")


def test_a_version_whose_folder_is_gone_is_refused(registry: ModelRegistry, settings: Settings) -> None:
    folder = settings.bundles_dir / "third"
    folder.mkdir()
    version = registry.register(folder, {})
    folder.rmdir()
    with pytest.raises(RegistryError, match="is gone"):
        registry.promote(version)


def test_only_a_folder_is_registered(registry: ModelRegistry, tmp_path: Path) -> None:
    with pytest.raises(RegistryError, match="is no folder"):
        registry.register(tmp_path / "nothing", {})


def test_nothing_is_written_outside_the_data_directory(
    registry: ModelRegistry, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    registry.promote("1")
    assert list(tmp_path.iterdir()) == []
    assert (settings.data / "mlflow.db").is_file()
