"""The model registry on its own SQLite file."""

import fcntl
import json
import shutil
import sqlite3
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from headrace.ops.versions import as_table, versions
from headrace.settings import Settings
from headrace.stores.models import (
    BundleRef,
    ChampionMovedError,
    ModelRegistry,
    RegistryError,
    read_champion,
    write_pointer,
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
    registry.promote("1")
    registry.promote("2")
    pointer = settings.bundles_dir / "champion.json"
    first, second = (str((settings.bundles_dir / name).resolve()) for name in ("first", "second"))
    state = json.loads(pointer.read_text())
    assert state.pop("before")[-1] == {"version": "1", "path": first}
    assert state == {"version": "2", "path": second, "promoted_at": 1_700_000_000_000_000}
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
    served.rollback("1")
    with pytest.raises(
        RegistryError, match="version 4 was not in service before this one; none was: `headrace promote 4`"
    ):
        served.rollback("4")


def test_a_version_goes_by_the_name_of_its_bundle_too(served: ModelRegistry) -> None:
    assert served.version("four").version == "4"
    assert served.rollback("one").version == "1"
    with pytest.raises(RegistryError, match="version 1 is in service already"):
        served.rollback("one")


def test_versions_are_listed_with_what_they_measured_and_what_the_gate_said(served: ModelRegistry) -> None:
    (served._settings.bundles_dir / "five").mkdir()
    number = served.register(served._settings.bundles_dir / "five", {"towers_ranker_ndcg_at_10": 0.25})
    served.tag(number, "gate", "failed: latency")
    *_, third, fourth, fifth = versions(served._settings)
    assert (third.aliases, fourth.aliases, fifth.aliases) == (("champion",), (), ("challenger",))
    assert (fifth.version, fifth.bundle, fifth.ndcg_at_10, fifth.gate) == ("5", "five", 0.25, "failed: latency")
    assert third.ndcg_at_10 is None
    assert [str(cell) for cell in as_table([third, fifth]).columns[3].cells] == ["", "0.2500"]


def test_to_promote_the_champion_again_is_no_step_that_a_rollback_takes_back(served: ModelRegistry) -> None:
    served.promote("3")
    assert served.rollback().version == "2"


def test_a_process_that_died_before_it_told_mlflow_has_promoted_and_the_next_one_tells_it(
    served: ModelRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as killed:
        killed.setattr(served, "_note_in_mlflow", lambda *_: None)
        served.promote("4")
    assert served.served() == ["1", "2", "3", "4"]
    assert aliases(served) == {"champion": "3", "previous": "2", "challenger": "4"}
    served.rollback()
    assert aliases(served) == {"champion": "3", "previous": "2", "challenger": "4"}


def test_a_pointer_that_does_not_know_what_was_before_has_nothing_before_it(
    served: ModelRegistry, tmp_path: Path
) -> None:
    write_pointer(tmp_path / "var" / "bundles" / "champion.json", BundleRef("3", tmp_path, 1))
    assert served.served() == ["3"]


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"{}", b"\xff", b'{"version": 3, "path": "x"}', b'{"version": "3", "path": 3}']
)
def test_a_damaged_pointer_is_named_with_the_remedy_and_whoever_reads_it_says_so(
    served: ModelRegistry, tmp_path: Path, content: bytes
) -> None:
    (tmp_path / "var" / "bundles" / "champion.json").write_bytes(content)
    for read in (served.champion, served.served, served.rollback, lambda: served.promote("4")):
        with pytest.raises(
            RegistryError, match=r"champion\.json is damaged .*: delete it, then `headrace promote VERSION`"
        ):
            read()
    with pytest.raises(ValueError, match="is damaged"):  # what a replica goes on after
        served.champion()


def test_a_version_whose_run_is_gone_has_no_metrics_and_is_put_in_service(
    served: ModelRegistry, tmp_path: Path
) -> None:
    """As `mlflow gc` leaves it: the rows of the run are deleted, those of the version are not."""
    run = served._client().get_model_version("headrace-recommender", "4").run_id
    with closing(sqlite3.connect(tmp_path / "var" / "mlflow.db")) as database, database:
        for table in ("tags", "params", "metrics", "latest_metrics", "runs"):
            database.execute(f"DELETE FROM {table} WHERE run_uuid = ?", [run])
    again = ModelRegistry(Settings(data=tmp_path / "var"))
    assert [(known.version, known.metrics) for known in again.versions()][-1] == ("4", {})
    assert again.promote("4").version == "4"


def test_a_rollback_needs_no_mlflow_and_says_that_it_was_not_told(
    served: ModelRegistry, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "var" / "mlflow.db").write_bytes(b"garbage" * 1_000)
    broken = ModelRegistry(Settings(data=tmp_path / "var"))
    assert (broken.rollback().version, broken.rollback().version, broken.served()) == ("2", "1", ["1"])
    assert "MLflow does not know that version 2 is in service: " in caplog.text
    with pytest.raises(
        RegistryError, match=r"mlflow\.db cannot be read as MLflow's database \(file is not a database\)"
    ):
        broken.promote("4")


def test_a_rollback_to_a_folder_that_is_gone_is_refused(served: ModelRegistry, tmp_path: Path) -> None:
    (tmp_path / "moved").mkdir()
    pointer = tmp_path / "var" / "bundles" / "champion.json"
    write_pointer(pointer, BundleRef("3", tmp_path, 1), [BundleRef("2", tmp_path / "gone")])
    with pytest.raises(RegistryError, match=r"version 2 lay in .*gone, which is gone"):
        served.rollback()
    assert served.served() == ["2", "3"]


def test_a_version_that_there_is_not_is_no_target_of_a_rollback_and_those_that_there_are_are_named(
    served: ModelRegistry,
) -> None:
    with pytest.raises(RegistryError, match=r"no version '9'; registered are 1, 2, 3, 4$"):
        served.rollback("9")


def test_two_that_begin_at_once_in_a_fresh_data_directory_find_one_mlflow(tmp_path: Path) -> None:
    begin = (
        "import sys; from pathlib import Path; from headrace.settings import Settings; from headrace.stores.models import *; "
        "print(ModelRegistry(Settings(data=Path(sys.argv[1]))).tracking()[1])"
    )
    command = [sys.executable, "-c", begin, str(tmp_path / "var")]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    told = [each.communicate(timeout=120) for each in both]
    assert [each.returncode for each in both] == [0, 0], told
    assert told[0][0] == told[1][0]


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
    def is_held(target: BundleRef) -> None:
        assert target.version == "2"
        with (tmp_path / "var" / "bundles" / "champion.lock").open() as lock, pytest.raises(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)

    back = served.rollback(check=is_held)
    assert (back.version, back.left) == ("2", "3")


def test_what_a_check_says_of_the_target_keeps_it_from_service(served: ModelRegistry) -> None:
    def refuse(target: BundleRef) -> None:
        raise ValueError(f"{target.path.name} is damaged")

    with pytest.raises(ValueError, match="two is damaged"):
        served.rollback(check=refuse)
    assert served.served() == ["1", "2", "3"]
