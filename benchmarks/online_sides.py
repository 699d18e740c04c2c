"""Sides of a benchmark that take turns, each in a process that stays: what Feast takes to be imported is paid once for each."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from benchmarks.report import CONSOLE


def take_turns(
    module: str, sides: Sequence[str], rounds: int, directory: Path, *options: str
) -> Iterator[dict[str, Any]]:
    """Of each round what every side answered. A side is `python -m benchmarks.MODULE --child SIDE`, which calls `serve_turns`."""
    with ExitStack() as stack:
        running = {side: stack.enter_context(_started(module, side, directory, *options)) for side in sides}
        for number in range(rounds):
            answers = {}
            for side, process in running.items():
                CONSOLE.print(f"round {number + 1} of {rounds}: {side} ...")
                answers[side] = _turn(side, process)
            yield answers


def serve_turns(measure: Callable[[], dict[str, Any]]) -> None:
    """Measure whenever it is this side's turn, until there is none any more."""
    for _ in sys.stdin:
        print(json.dumps(measure()), flush=True)


@contextmanager
def _started(module: str, side: str, directory: Path, *options: str) -> Iterator["subprocess.Popen[str]"]:
    command = [sys.executable, "-W", "ignore", "-m", f"benchmarks.{module}", "--child", side]
    command += ["--directory", str(directory), *options]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield process  # on leaving, its input is closed, which ends it, and it is waited for


def _turn(side: str, process: "subprocess.Popen[str]") -> dict[str, Any]:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("\n")
    process.stdin.flush()
    line = process.stdout.readline()
    if not line:
        raise RuntimeError(f"side '{side}' ended with code {process.wait()}: its own words are above")
    found: dict[str, Any] = json.loads(line)
    return found
