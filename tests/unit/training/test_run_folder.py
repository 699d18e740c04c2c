"""What the folder of a run says of how it began."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

from training.config import default, small
from training.dataset import Split
from training.fit import TrainError
from training.run_folder import RunError, RunFolder


@pytest.mark.parametrize("warm_start", [None, Path("bundles/first")])
def test_a_run_knows_its_config_when_it_began_and_what_with(tmp_path: Path, warm_start: Path | None) -> None:
    RunFolder.begin(tmp_path, "20240101-default", default(), 7, warm_start)
    with RunFolder.unfinished(tmp_path) as folder:
        began = folder.began()
    assert (began.config, began.began_us) == (default(), 7)
    assert began.warm_start == (None if warm_start is None else warm_start.resolve())
    assert began.warm_start is None or began.warm_start.is_absolute(), "it may be resumed in another directory"


def test_a_run_that_does_not_say_what_it_began_with_began_with_nothing(tmp_path: Path) -> None:
    folder = RunFolder.begin(tmp_path, "older", small(), 7)
    file = folder.path / "config.json"
    file.write_text(json.dumps({"config": small().to_json(), "began_us": 7}))
    assert folder.began().warm_start is None


def resumed(runs: Path, name: str | None = None) -> str:
    with RunFolder.unfinished(runs, name) as folder:
        return folder.name


def test_the_newest_run_goes_on_and_without_any_the_remedy_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"no unfinished run in .*: start one with `headrace train`"):
        resumed(tmp_path)
    with pytest.raises(RunError, match=r"no unfinished run 'x' in .*, and no other: start one"):
        resumed(tmp_path, "x")
    for name in ("20240102-small", "20240101-small"):
        RunFolder.begin(tmp_path, name, small(), 7)
    assert resumed(tmp_path) == "20240102-small"


def test_a_run_goes_on_by_its_name_and_one_that_is_not_there_is_told_with_those_that_are(tmp_path: Path) -> None:
    for name in ("20240102-small", "20240101-small"):
        RunFolder.begin(tmp_path, name, small(), 7)
    assert resumed(tmp_path, "20240101-small") == "20240101-small"
    with pytest.raises(RunError, match=r"no unfinished run 'x' in .*; there are 20240101-small, 20240102-small"):
        resumed(tmp_path, "x")


def test_a_run_that_is_alive_is_passed_over_and_if_all_are_it_is_said(tmp_path: Path) -> None:
    older, newer = (RunFolder.begin(tmp_path, name, small(), 7) for name in ("20240101-small", "20240102-small"))
    with newer.held():
        assert resumed(tmp_path) == older.name
        with pytest.raises(RunError, match=r"still runs: 20240102-small; wait for it, or start another run"):
            resumed(tmp_path, newer.name)
        with older.held(), pytest.raises(RunError, match="still runs: 20240101-small, 20240102-small"):
            resumed(tmp_path)
        with pytest.raises(RunError, match=r"20240102-small is another process's"), newer.held():
            pytest.fail("it is held twice")
    assert resumed(tmp_path) == newer.name


_HOLDS = """
import sys
from pathlib import Path
from training.run_folder import RunFolder
with RunFolder(Path(sys.argv[1])).held():
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_killed_process_leaves_its_run_to_go_on(tmp_path: Path) -> None:
    run = RunFolder.begin(tmp_path, "20240101-small", small(), 7)
    command = [sys.executable, "-c", _HOLDS, str(run.path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        with pytest.raises(RunError, match="still runs"):
            resumed(tmp_path)
        process.kill()
        process.wait()
    assert resumed(tmp_path) == run.name


def test_a_run_that_ended_is_none_to_go_on_with(tmp_path: Path) -> None:
    run = RunFolder.begin(tmp_path, "20240101-small", small(), 7)
    with run.held():
        run.end()
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(RunError, match="is another process's"), run.held():
        pytest.fail("it has ended")


def test_what_a_kill_left_of_an_ended_run_goes_when_the_next_one_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = RunFolder.begin(tmp_path, "first", small(), 7)
    with monkeypatch.context() as killed:
        killed.setattr(shutil, "rmtree", lambda *_, **__: sys.exit("killed"))
        with pytest.raises(SystemExit):
            folder.end()
    assert len(list(tmp_path.iterdir())) == 1
    RunFolder.begin(tmp_path, "second", small(), 8)
    assert [left.name for left in tmp_path.iterdir()] == ["second"]


def test_a_run_that_would_fail_again_goes_and_what_was_learnt_or_interrupted_stays(tmp_path: Path) -> None:
    def failing(name: str, error: BaseException, learnt: bool = False) -> bool:
        """Whether the run is still there."""
        run = RunFolder.begin(tmp_path, name, small(), 7)
        if learnt:
            (run.path / "towers.pt").touch()
        with pytest.raises(type(error)), run.gone_where_it_would_fail_again():
            raise error
        return run.path.exists()

    assert not failing("a", ValueError("no events"))
    assert failing("b", ValueError("no events"), learnt=True)
    assert failing("c", KeyboardInterrupt())
    assert failing("d", OSError("full"))
    assert failing("e", TrainError("the loss is nan"))


@pytest.mark.parametrize("error", [ValueError("no events"), OSError("full"), KeyboardInterrupt()])
def test_a_run_that_nobody_will_resume_goes_whatever_ends_it(tmp_path: Path, error: BaseException) -> None:
    other, run = (RunFolder.begin(tmp_path, name, small(), 7) for name in ("other", "own"))
    (run.path / "towers.pt").touch()
    with pytest.raises(type(error)), run.gone_unless_done():
        raise error
    assert list(tmp_path.iterdir()) == [other.path]


def test_a_run_that_cannot_be_taken_away_is_named_and_hides_no_other_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def stuck(run: RunFolder) -> None:
        raise PermissionError(13, "Permission denied", str(run.path / "rows"))

    monkeypatch.setattr(RunFolder, "end", stuck)
    run = RunFolder.begin(tmp_path, "own", small(), 7)
    with pytest.raises(ValueError, match="the lake is empty"), run.gone_unless_done():
        raise ValueError("the lake is empty")
    assert "own is left of a run that did not end ([Errno 13] Permission denied:" in caplog.text


def test_the_definitions_of_a_run_are_those_it_began_with(tmp_path: Path) -> None:
    run = RunFolder.begin(tmp_path, "20240101-small", small(), 7)
    began = {"users": 2**63 + 1, "items": 2}
    assert run.fingerprints(began) == began
    assert run.fingerprints({**began, "sessions": 3}) == began, "a view that came since is none of its own"
    with pytest.raises(
        RunError, match=r"another definition of view items \(fingerprint 2, now 3\): apply the features"
    ):
        run.fingerprints({**began, "items": 3})
    with pytest.raises(RunError, match=r"view users \(fingerprint \d+, now there is none\): .* or delete .*-small and"):
        run.fingerprints({"items": 2})


@pytest.mark.parametrize("content", ["", "{}", "[1]", '{"config": {"name": "x", "seize": 1}, "began_us": 7}'])
def test_a_run_whose_config_is_damaged_names_it_with_the_remedy(tmp_path: Path, content: str) -> None:
    run = RunFolder.begin(tmp_path, "20240101-small", small(), 7)
    (run.path / "config.json").write_text(content)
    with pytest.raises(
        RunError, match=r"config.json cannot be read \(.*\): mend it, or delete .*-small and start anew"
    ):
        run.began()


def test_a_split_that_was_cut_short_is_named_with_the_remedy(tmp_path: Path) -> None:
    run = RunFolder.begin(tmp_path, "20240101-small", small(), 7)
    frame = pl.DataFrame({"t_us": [1, 2]})
    split = Split(frame, frame, frame, frame, frame, 0, 1, 2, 3)
    assert run.split(lambda: split).train.equals(frame)
    file = run.path / "split" / "train.parquet"
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(RunError, match=r"split cannot be read \(.*train.parquet.*\): mend it, or delete"):
        run.split(lambda: split)


def test_a_record_that_was_never_written_counts_as_none(tmp_path: Path) -> None:
    run = RunFolder.begin(tmp_path, "20240101-small", small(), 7)
    (run.path / "mlflow_run").touch()
    assert run.tracked_as() is None
    run.track_as("abc")
    assert run.tracked_as() == "abc"
