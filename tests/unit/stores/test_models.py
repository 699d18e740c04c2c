"""The model registry on its own SQLite file."""

import fcntl
import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from headrace.settings import Settings
from headrace.stores.models import (
    BundleRef,
    ChampionMovedError,
    ModelRegistry,
    RegisteredVersion,
    RegistryError,
    read_champion,
)


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
    assert sorted(entry.name for entry in settings.bundles_dir.iterdir()) == [
        "champion.json",
        "champion.lock",
        "first",
        "second",
    ]


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


@pytest.fixture(scope="module")
def three_served(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data directory in which versions 1, 2 and 3 were in service, in this order; 4 is registered."""
    settings = Settings(data=tmp_path_factory.mktemp("served"))
    registry = ModelRegistry(settings, clock=lambda: 1_700_000_000_000_000)
    for name in ("one", "two", "three", "four"):
        (settings.bundles_dir / name).mkdir(parents=True)
        version = registry.register(settings.bundles_dir / name, {})
        if name != "four":
            registry.promote(version)
    return settings.data


@pytest.fixture
def served(three_served: Path, tmp_path: Path) -> ModelRegistry:
    """Each test has a copy: to make MLflow's tables takes seconds."""
    shutil.copytree(three_served, tmp_path / "var")
    return ModelRegistry(Settings(data=tmp_path / "var"), clock=lambda: 1_700_000_000_000_000)


def aliases(registry: ModelRegistry) -> dict[str, str]:
    return {alias: known.version for known in registry.versions() for alias in known.aliases}


def test_a_version_that_is_registered_waits_as_the_challenger_until_it_is_promoted(served: ModelRegistry) -> None:
    assert aliases(served) == {"champion": "3", "previous": "2", "challenger": "4"}
    served.promote("4")
    assert aliases(served) == {"champion": "4", "previous": "3"}


def test_two_rollbacks_go_back_by_two_and_the_first_has_nothing_before_it(served: ModelRegistry) -> None:
    assert served.rollback().version == "2"
    assert aliases(served) == {"champion": "2", "previous": "1", "challenger": "4"}
    assert served.rollback().version == "1"
    assert aliases(served) == {"champion": "1", "challenger": "4"}
    with pytest.raises(RegistryError, match="no version was in service before this one"):
        served.rollback()


def test_a_rollback_to_a_version_forgets_what_was_in_service_since(served: ModelRegistry) -> None:
    assert served.rollback("1").version == "1"
    assert served.served() == ["1"]
    assert served.promote("3").version == "3"
    assert served.served() == ["1", "3"]


def test_a_version_that_was_never_in_service_is_no_target_of_a_rollback(served: ModelRegistry) -> None:
    with pytest.raises(RegistryError, match="those were 1, 2, the newest last: `headrace promote 4`"):
        served.rollback("4")
    assert served.served() == ["1", "2", "3"]


def test_to_promote_the_champion_again_is_no_step_that_a_rollback_takes_back(served: ModelRegistry) -> None:
    served.promote("3")
    assert served.rollback().version == "2"


@pytest.mark.parametrize(
    ("noted", "known"), [('["1", "2", "3", "4"]', ["1", "2", "3"]), ('["1", "2"]', ["1", "2", "3"])]
)
def test_a_process_that_died_before_it_wrote_the_pointer_loses_no_history(
    served: ModelRegistry, noted: str, known: list[str]
) -> None:
    """The first died in a promotion of 4, the second in a rollback."""
    served._client().set_registered_model_tag("headrace-recommender", "served", noted)
    assert served.served() == known


def test_a_tag_is_kept_with_its_version(served: ModelRegistry) -> None:
    served.tag("4", "gate", "failed: quality")
    assert [known.tags for known in served.versions()] == [{}, {}, {}, {"gate": "failed: quality"}]


def test_a_version_that_was_judged_against_what_is_in_service_no_more_is_not_promoted(served: ModelRegistry) -> None:
    judged_against = served.champion()
    served.rollback()
    with pytest.raises(
        ChampionMovedError, match="version 2 is in service now, by another command, and version 3 was when version 4"
    ):
        served.promote_over("4", judged_against)
    assert served.served() == ["1", "2"]
    assert served.promote_over("4", served.champion()).version == "4"


def test_a_champion_that_left_and_came_back_is_not_the_one_that_was_seen(served: ModelRegistry, tmp_path: Path) -> None:
    """What was in service between may have been what the gate compared with."""
    seen, later = served.champion(), ModelRegistry(Settings(data=tmp_path / "var"), clock=lambda: 1_700_000_000_000_001)
    later.rollback()
    later.promote("3")
    with pytest.raises(ChampionMovedError):
        served.promote_over("4", seen)


def test_two_promotions_at_once_are_both_in_the_history(served: ModelRegistry, tmp_path: Path) -> None:
    registries = {version: ModelRegistry(Settings(data=tmp_path / "var")) for version in ("1", "4")}
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda version: registries[version].promote(version), registries))
    assert served.served() in (["1", "2", "3", "1", "4"], ["1", "2", "3", "4", "1"])


def test_nobody_else_moves_the_champion_from_what_a_rollback_reads_to_what_it_writes(
    served: ModelRegistry, tmp_path: Path
) -> None:
    def is_held(target: RegisteredVersion) -> None:
        assert target.version == "2"
        with (tmp_path / "var" / "bundles" / "champion.lock").open() as lock, pytest.raises(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)

    back = served.rollback(check=is_held)
    assert (back.version, back.left) == ("2", "3")


def test_what_a_check_says_of_the_target_keeps_it_from_service(served: ModelRegistry) -> None:
    def refuse(target: RegisteredVersion) -> None:
        raise ValueError(f"{target.path.name} is damaged")

    with pytest.raises(ValueError, match="two is damaged"):
        served.rollback(check=refuse)
    assert served.served() == ["1", "2", "3"]
