"""Sides of a benchmark in processes of their own, so that each has its own memory and nothing of the others' imports."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.report import CONSOLE


def run_child(module: str, who: str, directory: Path, *options: str) -> dict[str, Any]:
    """`python -m benchmarks.MODULE --child WHO` in a process of its own; what it says on its last line."""
    CONSOLE.print(f"{who} ...")
    command = [
        sys.executable,
        "-W",
        "ignore",
        "-m",
        f"benchmarks.{module}",
        "--child",
        who,
        "--directory",
        str(directory),
    ]
    done = subprocess.run([*command, *options], stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def peak_mb() -> float:
    """Largest resident memory of this process since its program was started; that of whoever started it does not count."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1_024 for line in lines if line.startswith("VmHWM:"))
