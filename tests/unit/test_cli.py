"""The `headrace` command: help for newcomers, one red line for what the user can mend."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from headrace import cli
from headrace.settings import Settings

COMMANDS = (
    "up", "down", "status", "demo", "apply", "ingest", "replay", "backfill", "train", "evaluate", "promote", "verify",
    "off-policy", "rollback", "retrain", "drift",
)  # fmt: skip


def test_help_names_every_command() -> None:
    answer = CliRunner().invoke(cli.app, ["--help"])
    assert answer.exit_code == 0
    assert [name for name in COMMANDS if f"\n  {name} " not in answer.output] == []


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str) -> None:
    answer = CliRunner().invoke(cli.app, [command, "--help"])
    assert answer.exit_code == 0
    assert answer.output.startswith(f"Usage: root {command}")


def test_what_is_asked_of_an_evaluation_reaches_it(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []
    monkeypatch.setattr(cli, "_job", lambda *arguments: asked.append(arguments))
    options = ["--staleness=0s,1h", "--report", "x.html", "--set", "max_test=0", "--set", "seed=1", "--json"]
    assert CliRunner().invoke(cli.app, ["evaluate", "3", *options]).exit_code == 0
    assert CliRunner().invoke(cli.app, ["evaluate"]).exit_code == 0
    assert asked == [("training.evaluate", ["3", *options[:-1]], True), ("training.evaluate", [], False)]


def test_what_is_asked_of_an_off_policy_estimate_reaches_it_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []
    monkeypatch.setattr(cli, "_job", lambda *arguments: asked.append(arguments))
    assert CliRunner().invoke(cli.app, ["off-policy", "lake", "x", "--share", "0", "--target", "bts"]).exit_code == 0
    assert CliRunner().invoke(cli.app, ["off-policy"]).exit_code == 0
    given = ["lake", "x", "--share=0.0", "--target=bts"]
    assert asked == [("training.off_policy", given, False), ("training.off_policy", ["lake"], False)]


def test_what_is_asked_of_a_training_reaches_it(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []
    monkeypatch.setattr(cli, "_become", lambda *arguments: asked.append(arguments))
    options = [
        "--config",
        "my_configs:decayed",
        "--set",
        "seed=1",
        "--set",
        "batch=64",
        "--resume",
        "--warm-start",
        "--json",
    ]
    assert CliRunner().invoke(cli.app, ["train", *options]).exit_code == 0
    assert CliRunner().invoke(cli.app, ["train"]).exit_code == 0
    assert CliRunner().invoke(cli.app, ["train", "--resume", "20240101-small"]).exit_code == 0
    assert asked == [
        ("training.train_command", options[:-1], True),
        ("training.train_command", [], False),
        ("training.train_command", ["--resume", "20240101-small"], False),
    ]


def test_a_run_that_is_named_and_not_resumed_is_told_how(capsys: pytest.CaptureFixture[str]) -> None:
    assert "write `headrace train --resume 20240101-small`" in failure(capsys, "train", "20240101-small")


def failure(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What the user reads when the command fails: one line, exit code 1."""
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert ended.value.code == 1
    said, _, message = capsys.readouterr().err.strip().partition(": ")
    assert said == "error"
    assert "\n" not in message
    return message


def test_a_wrong_setting_names_its_variable(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HEADRACE_HTTP_PORT", "eighty")
    assert failure(capsys, "status").startswith("HEADRACE_HTTP_PORT is 'eighty': input should be a valid integer")


def test_a_time_without_zone_is_refused_with_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    message = failure(capsys, "verify", "--as-of", "2019-10-01T00:00:00")
    assert message == (
        "--as-of '2019-10-01T00:00:00' is no time with a time zone: write it like 2019-10-01T00:00:00+00:00"
    )


def test_without_a_store_the_remedy_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HEADRACE_DATA", str(tmp_path))
    assert "run `headrace up` or set the URL" in failure(capsys, "verify")


def test_a_store_that_does_not_answer_is_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HEADRACE_DATA", str(tmp_path))
    monkeypatch.setenv("HEADRACE_REDIS_URL", "redis://127.0.0.1:1/0")
    assert failure(capsys, "verify").startswith("the store does not answer: Error 111 connecting to 127.0.0.1:1.")


def test_a_loader_that_does_not_exist_is_refused_with_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    assert "no loader is called 'netflix': choose one of simulator, rees46" in failure(
        capsys, "ingest", "netflix", "/tmp"
    )


def test_settings_carry_the_keys_that_the_stack_made(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "keys.env").write_text("HEADRACE_EVENT_KEYS=one\nHEADRACE_READ_KEYS=two\n")
    monkeypatch.setenv("HEADRACE_DATA", str(tmp_path))
    assert cli.read_settings() == Settings(data=tmp_path, event_keys="one", read_keys="two")
