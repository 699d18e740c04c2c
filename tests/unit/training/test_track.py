"""The record of a run on MLflow's own SQLite file, without a training."""

import logging
import shutil
import subprocess
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from headrace.ops.interrupts import Interrupted
from headrace.settings import Settings
from headrace.stores.models import ModelRegistry, RegistryError
from training.config import small
from training.fit import Epoch
from training.run_folder import RunFolder
from training.track import Track, commit_of, metrics_of

NOW_US = 1_700_000_000_000_000
FACTS = {"used_device": "cpu"}


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data directory with MLflow's tables, which take seconds to make."""
    settings = Settings(data=tmp_path_factory.mktemp("tables"))
    ModelRegistry(settings).tracking()
    return settings.data


@pytest.fixture
def settings(tables: Path, tmp_path: Path) -> Settings:
    shutil.copytree(tables, tmp_path / "var")
    return Settings(data=tmp_path / "var")


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder.begin(tmp_path / "runs", "20240101-small", small(), NOW_US)


def epoch(number: int, loss: float = 2.0, judged: float = 0.25) -> Epoch:
    return Epoch(number, float("nan") if number == 0 else loss, judged, 1.0, 1_000.0, 0.05)


def begun(settings: Settings, folder: RunFolder) -> Track:
    track = Track(settings, lambda: NOW_US).__enter__()
    track.begin(folder, small(), FACTS)
    return track


def broken_off(settings: Settings, folder: RunFolder, error: BaseException, *epochs: Epoch) -> str:
    """The id of a run that ended with an error after some epochs."""
    track = Track(settings, lambda: NOW_US)
    try:
        with track:
            track.begin(folder, small(), FACTS)
            for each in epochs:
                track.noted("towers", each)
            raise error
    except type(error):
        return track.run_id


def read(settings: Settings, run_id: str) -> Run:
    client, _ = ModelRegistry(settings).tracking()
    return client.get_run(run_id)


def steps(settings: Settings, run_id: str, key: str) -> list[tuple[int, float]]:
    client, _ = ModelRegistry(settings).tracking()
    return [(metric.step, metric.value) for metric in client.get_metric_history(run_id, key)]


def test_a_run_is_there_with_its_params_and_epochs_while_it_learns(settings: Settings, folder: RunFolder) -> None:
    track = begun(settings, folder)
    track.noted("towers", epoch(0))
    track.noted("towers", epoch(1, 1.5, 0.5))
    run = read(settings, track.run_id)
    kind = MlflowClient(settings.mlflow_uri).get_experiment(run.info.experiment_id).tags["mlflow.experimentKind"]
    assert kind == "custom_model_development"
    assert (run.info.status, run.info.run_name, run.info.start_time) == ("RUNNING", folder.name, NOW_US // 1_000)
    assert (run.data.params["batch"], run.data.params["used_device"]) == (str(small().batch), "cpu")
    assert steps(settings, track.run_id, "towers/ndcg_at_10") == [(0, 0.25), (1, 0.5)]
    assert steps(settings, track.run_id, "towers/loss") == [(1, 1.5)]
    track.__exit__(None, None, None)
    assert read(settings, track.run_id).info.status == "FINISHED"


def test_what_an_epoch_has_nothing_of_is_left_out() -> None:
    assert metrics_of("ranker", epoch(0)) == {"ranker/ndcg_at_10_less_error": 0.25}
    assert metrics_of("ranker", epoch(2, judged=float("nan"))) == {
        "ranker/loss": 2.0,
        "ranker/rows_per_second": 1_000.0,
        "ranker/input_share": 0.05,
    }


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [(ValueError("no lake"), "FAILED", "ValueError: no lake"), (Interrupted(), "KILLED", "Interrupted: ")],
)
def test_a_run_that_does_not_end_says_why(
    settings: Settings, folder: RunFolder, error: BaseException, status: str, said: str
) -> None:
    run = read(settings, broken_off(settings, folder, error))
    assert (run.info.status, run.data.tags["error"]) == (status, said)


def test_a_resumed_run_goes_on_with_its_record_and_tells_no_epoch_twice(settings: Settings, folder: RunFolder) -> None:
    first = broken_off(settings, folder, ValueError("killed"), epoch(1))
    with Track(settings, lambda: NOW_US + 5_000) as second:
        second.begin(folder, small(), {"used_device": "cuda:0"})
        again = read(settings, second.run_id)
        assert (again.info.status, "error" in again.data.tags) == ("RUNNING", False)
        for number in (1, 2):
            second.noted("towers", epoch(number))
    assert second.run_id == first
    assert steps(settings, first, "towers/loss") == [(1, 2.0), (2, 2.0)]
    run = read(settings, first)
    assert (run.data.params["used_device"], run.data.tags["resumed.used_device"]) == ("cpu", "cuda:0")
    assert (run.info.status, run.data.tags["resumed"]) == ("FINISHED", "1")


def test_a_record_that_is_gone_is_begun_anew(settings: Settings, folder: RunFolder) -> None:
    folder.track_as("0" * 32)
    assert begun(settings, folder).run_id not in ("", "0" * 32)


def test_processes_but_the_first_tell_mlflow_nothing(tmp_path: Path, folder: RunFolder) -> None:
    with Track(Settings(data=tmp_path / "var"), lambda: NOW_US, is_first=False) as track:
        track.begin(folder, small(), FACTS)
        track.noted("towers", epoch(1))
        track.made(tmp_path / "bundle", {}, {})
        track.reported(tmp_path / "report.html")
    assert track.run_id == ""
    assert folder.tracked_as() is None
    assert not (tmp_path / "var").exists()


def test_an_mlflow_that_cannot_be_written_to_is_an_error_before_anything_else(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_text("this is no database")
    with (
        pytest.raises(RegistryError, match="MLflow cannot be written to"),
        Track(Settings(data=tmp_path), lambda: NOW_US),
    ):
        pytest.fail("it went on")


def test_an_epoch_that_mlflow_does_not_take_is_told_with_the_next(
    settings: Settings, folder: RunFolder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    track, answers = begun(settings, folder), iter([MlflowException("database is locked"), None])
    log_batch = MlflowClient.log_batch

    def sometimes(*arguments: object, **more: object) -> None:
        answer = next(answers)
        if answer is not None:
            raise answer
        log_batch(*arguments, **more)

    monkeypatch.setattr(MlflowClient, "log_batch", sometimes)
    with caplog.at_level(logging.WARNING):
        track.noted("towers", epoch(1))
    assert "epoch 1 of the towers now: database is locked" in caplog.text
    track.noted("towers", epoch(2))
    assert steps(settings, track.run_id, "towers/loss") == [(1, 2.0), (2, 2.0)]


LOCKED = MlflowException("(sqlite3.OperationalError) database is locked\n[SQL: INSERT INTO tags]")
IS_SAID = (
    r"^MLflow does not take {what} \(\(sqlite3.OperationalError\) database is locked\): see whether sqlite:.*; "
    r"what `headrace train` began goes on with --resume then$"
)


def refused(*_: object, **__: object) -> None:
    raise LOCKED


@pytest.mark.parametrize("method", ["create_run", "log_batch"])
def test_a_run_that_mlflow_does_not_take_as_it_begins_is_an_error_with_the_remedy(
    settings: Settings, folder: RunFolder, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    monkeypatch.setattr(MlflowClient, method, refused)
    what = "that a run begins" if method == "create_run" else "what a run begins with"
    with pytest.raises(RegistryError, match=IS_SAID.format(what=what)):
        begun(settings, folder)


def test_what_mlflow_does_not_take_at_the_end_of_a_run_is_an_error_with_the_remedy_and_the_run_can_go_on(
    settings: Settings, folder: RunFolder, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "bundle.json").write_text("{}")
    page = tmp_path / "report.html"
    page.write_text("a page")
    track, bundle = begun(settings, folder), tmp_path / "tmp"
    bundle.mkdir()
    with monkeypatch.context() as locked:
        for method in ("log_text", "set_tag", "log_batch"):
            locked.setattr(MlflowClient, method, refused)
        with pytest.raises(RegistryError, match=IS_SAID.format(what="what came of a run")):
            track.made(tmp_path, {}, {})
        with pytest.raises(RegistryError, match=IS_SAID.format(what="the report of a run")):
            track.reported(page)
        with pytest.raises(RegistryError, match=IS_SAID.format(what="bundle tmp")):
            ModelRegistry(settings).register(bundle, {"ndcg_at_10": 0.5}, run_id=track.run_id)
    track.made(tmp_path, {}, {})
    track.reported(page)
    assert read(settings, track.run_id).data.tags["bundle"] == str(tmp_path.resolve())


def test_a_run_whose_end_mlflow_does_not_take_has_ended_all_the_same(
    settings: Settings, folder: RunFolder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(MlflowClient, "set_terminated", refused)
    with Track(settings, lambda: NOW_US) as track:
        track.begin(folder, small(), FACTS)
    said = f"MLflow does not know that run {track.run_id} has ended: (sqlite3.OperationalError) database is locked"
    assert caplog.messages[-1] == said


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    who = ["-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init", "-q"], [*who, "commit", "-q", "--allow-empty", "-m", "first"]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    return tmp_path


def test_the_commit_of_a_checkout_is_known_and_elsewhere_there_is_none(checkout: Path) -> None:
    commit = commit_of(checkout)
    assert commit is not None
    assert len(commit) == 40
    (checkout / "inside").mkdir()
    assert commit_of(checkout / "inside") is None
