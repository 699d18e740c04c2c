"""Exactly the recorded processes are ended, and nobody else."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import IO

import psutil
import pytest

from headrace.ops import processes
from headrace.ops.processes import (
    ProcessTable,
    StackHeldError,
    end,
    end_leftovers,
    mark,
    marked,
    reference,
    running,
    with_descendants,
)
from tests.conftest import wait_until

SLEEPER = "import time; time.sleep(600)"
PARENT = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {SLEEPER!r}])"
DEAF = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(600)"


Spawn = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def spawn() -> Iterator[Spawn]:
    started: list[subprocess.Popen[str]] = []

    def start(code: str, **variables: str) -> subprocess.Popen[str]:
        environment = os.environ | variables
        started.append(
            subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment)
        )
        return started[-1]

    yield start
    end([reference("test", process.pid) for process in started if process.poll() is None], patience_s=0.2)
    for process in started:
        process.wait()
        output(process).close()


def made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def output(process: subprocess.Popen[str]) -> IO[str]:
    assert process.stdout is not None
    return process.stdout


def test_a_process_is_known_by_number_and_creation(spawn: Spawn) -> None:
    ref = reference("sleeper", spawn(SLEEPER).pid)
    assert running(ref) is not None
    assert running(replace(ref, created=ref.created - 60)) is None


def test_a_number_that_belongs_to_somebody_else_by_now_is_not_ended(spawn: Spawn) -> None:
    bystander = spawn(SLEEPER)
    stale = replace(reference("flow", bystander.pid), created=1.0)
    assert end([stale], patience_s=1.0) == []
    assert bystander.poll() is None


def test_descendants_are_found_and_named_after_their_ancestor(spawn: Spawn) -> None:
    parent = spawn(PARENT)
    ref = reference("serving", parent.pid)
    wait_until(lambda: len(with_descendants([ref])) == 2)
    child = with_descendants([ref])[1]
    assert child.name.startswith("serving/python")
    assert psutil.Process(child.pid).ppid() == parent.pid


def test_ending_takes_descendants_along_and_kills_the_deaf(spawn: Spawn) -> None:
    parent, deaf = spawn(PARENT), spawn(DEAF)
    assert output(deaf).readline() == "deaf\n"
    refs = [reference("parent", parent.pid), reference("deaf", deaf.pid)]
    wait_until(lambda: len(with_descendants(refs)) == 3)
    ended = end(refs, patience_s=0.5)
    assert len(ended) == 3
    assert with_descendants(ended) == []


def test_what_a_killed_supervisor_had_no_time_to_write_down_is_ended_too_and_another_stacks_is_not(
    tmp_path: Path, spawn: Spawn
) -> None:
    own, others = (
        spawn(PARENT, **mark("flow-lake", made(tmp_path / "run"))),
        spawn(SLEEPER, **mark("flow-lake", made(tmp_path / "other"))),
    )
    wait_until(lambda: len(marked(tmp_path / "run")) == 2)
    ended = end_leftovers(tmp_path / "run")
    assert sorted(ref.name for ref in ended) == ["flow-lake", "flow-lake"]
    assert marked(tmp_path / "run") == []
    own.wait(5)
    assert others.poll() is None


def test_whoever_ends_leftovers_is_none(tmp_path: Path, spawn: Spawn) -> None:
    code = f"""
import pathlib
from headrace.ops.processes import end_leftovers
print(end_leftovers(pathlib.Path({str(tmp_path)!r})), flush=True)
"""
    assert output(spawn(code, **mark("supervisor", tmp_path))).readline() == "[]\n"


def test_a_second_holder_is_refused_and_told_who_and_since_when(tmp_path: Path) -> None:
    first = ProcessTable(tmp_path / "run")
    assert first.claim() == []
    with pytest.raises(StackHeldError, match=rf"pid {os.getpid()}, since \d{{4}}-\d\d-\d\d .* `headrace down`"):
        ProcessTable(tmp_path / "run").claim()
    first.release()
    second = ProcessTable(tmp_path / "run")
    assert second.claim() == []
    second.release()
    assert not (tmp_path / "run" / processes.RECORD_FILE).exists()


def test_the_next_holder_ends_what_a_killed_one_left(tmp_path: Path, spawn: Spawn) -> None:
    code = f"""
import subprocess, sys, time
from pathlib import Path
from typing import IO
from headrace.ops.processes import ProcessTable
table = ProcessTable(Path({str(tmp_path)!r}))
table.claim()
child = subprocess.Popen([sys.executable, "-c", {SLEEPER!r}])
table.add("flow", child.pid)
print(child.pid, flush=True)
time.sleep(600)
"""
    supervisor = spawn(code)
    child = reference("flow", int(output(supervisor).readline()))
    owner = processes.holder(tmp_path)
    assert owner is not None
    assert owner.pid == supervisor.pid
    supervisor.kill()
    supervisor.wait()
    assert running(child) is not None
    assert processes.holder(tmp_path) is None

    table = ProcessTable(tmp_path)
    assert [ref.pid for ref in table.claim()] == [child.pid]
    assert running(child) is None
    table.release()


def test_descendants_stay_recorded_when_their_parent_dies(tmp_path: Path, spawn: Spawn) -> None:
    table = ProcessTable(tmp_path)
    table.claim()
    parent = spawn(PARENT)
    table.add("serving", parent.pid)
    wait_until(lambda: len(table.of("serving")) == 2)
    parent.kill()
    parent.wait()
    (orphan,) = table.of("serving")
    recorded = json.loads((tmp_path / processes.RECORD_FILE).read_text())["processes"]
    assert [each["pid"] for each in recorded] == [orphan.pid]
    end([orphan], patience_s=2.0)
    table.release()
