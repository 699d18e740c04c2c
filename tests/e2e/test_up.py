"""`headrace up`: one stack a data directory, nothing left behind, whatever way it ends."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil
import pytest

from headrace.ops.api import Api
from headrace.ops.keys import with_kept_keys
from headrace.ops.ports import free_port, is_free
from headrace.ops.processes import ProcessRef, holder, marked, read_record, running, with_descendants
from headrace.ops.stack import down
from headrace.settings import Settings
from tests.conftest import ROOT, wait_until

READY_S = 120.0


@pytest.fixture
def stack_settings(tmp_path: Path) -> Iterator[Settings]:
    settings = Settings(data=tmp_path / "var", feature_repo=ROOT / "feature_repo", http_port=free_port())
    yield settings
    down(settings)


def headrace(settings: Settings, *arguments: str) -> "subprocess.Popen[str]":
    environment = os.environ | {
        "HEADRACE_DATA": str(settings.data),
        "HEADRACE_FEATURE_REPO": str(settings.feature_repo),
        "HEADRACE_HTTP_PORT": str(settings.http_port),
    }
    command = [sys.executable, "-m", "headrace.cli", *arguments]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def run(settings: Settings, *arguments: str) -> tuple[int, str]:
    process = headrace(settings, *arguments)
    output, _ = process.communicate(timeout=READY_S)
    return process.returncode, " ".join(output.split())


def is_ready(settings: Settings) -> bool:
    with Api(settings) as api:
        return api.is_ready()


def all_of(settings: Settings) -> Sequence[ProcessRef]:
    record = read_record(settings.data / "run")
    return [] if record is None else with_descendants([record.supervisor, *record.processes])


def end_gently(process: "subprocess.Popen[str]") -> str:
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 0, output
    return output


def test_a_second_up_names_the_holder_a_killed_one_is_cleaned_up_and_ctrl_c_leaves_nothing(
    stack_settings: Settings,
) -> None:
    settings = stack_settings
    first = headrace(settings, "up")
    wait_until(lambda: is_ready(settings), READY_S)

    code, output = run(settings, "up")
    assert code == 1
    assert f"a stack already runs in {settings.data} (pid {first.pid}, since " in output
    assert "Traceback" not in output

    code, output = run(settings, "status", "--json")
    assert code == 0
    assert json.loads(output)["supervisor"]["pid"] == first.pid

    with Api(with_kept_keys(settings)) as api:
        answer = api.recommend({"user_id": "nobody-yet", "n": 5})
    assert "retrieval: no model" in answer["degraded"]

    left = all_of(settings)
    assert {ref.name.split("/")[0] for ref in left} == {"supervisor", "valkey", "flow-features", "flow-lake", "serving"}
    first.kill()
    first.communicate()
    assert holder(settings.run_dir) is None
    assert not is_free(settings.http_port)

    second = headrace(settings, "up")
    wait_until(
        lambda: is_ready(settings) and (owner := holder(settings.run_dir)) is not None and owner.pid == second.pid,
        READY_S,
    )
    assert [ref for ref in left if running(ref)] == []

    mine = all_of(settings)
    output = end_gently(second)
    assert "left behind by a stack that was killed" in output
    assert [ref for ref in mine if running(ref)] == []
    assert is_free(settings.http_port)
    assert not any(
        str(settings.data) in " ".join(process.info["cmdline"] or []) for process in psutil.process_iter(["cmdline"])
    )


def test_down_ends_what_a_killed_up_left(stack_settings: Settings) -> None:
    settings = stack_settings
    process = headrace(settings, "up")
    wait_until(lambda: any(ref.name == "flow-lake" for ref in all_of(settings)), READY_S)
    left = all_of(settings)
    process.kill()
    process.communicate()

    code, output = run(settings, "down", "--json")
    assert code == 0
    assert {"valkey", "flow-features", "flow-lake"} <= {name.split(" ")[0] for name in json.loads(output)["ended"]}
    assert [ref for ref in left if running(ref)] == []
    assert marked(settings.run_dir) == []
    assert run(settings, "down") == (0, "Nothing was running.")
    code, output = run(settings, "status")
    assert code == 1
    assert "not running" in output
