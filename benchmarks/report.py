"""What every benchmark ends with: a table on the screen, a file of evidence, one JSON object on the last line."""

import json
import os
import platform
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from rich.console import Console
from rich.table import Table

from headrace.arrays import Floats

RESULTS = Path(__file__).parent / "results"
"""Evidence of full-size runs. A run with options of its own leaves its results in `smaller/` beside it, which git ignores."""
CONSOLE = Console(stderr=True)
"""For progress: standard output ends with the JSON line."""


def say(what: str) -> None:
    """How far it is."""
    CONSOLE.print(what, style="dim", markup=False, highlight=False)


def publish(name: str, columns: Sequence[str], rows: Sequence[Sequence[object]], result: Mapping[str, Any]) -> None:
    """Print the table and the JSON line, and write `NAME.json` in `results()` with command, commit and machine."""
    table = Table(*columns, title=name)
    for row in rows:
        table.add_row(*[_text(cell) for cell in row])
    Console(width=120).print(table)
    evidence = {"benchmark": name, **result, **circumstances(name)}
    (results() / f"{name}.json").write_text(json.dumps(evidence, indent=1, default=float) + "\n")
    print(json.dumps(result, default=float), flush=True)


def results() -> Path:
    """Where this run's results go."""
    folder = RESULTS / "smaller" if _options() else RESULTS
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _options() -> list[str]:
    """Those given that change what is measured: where data lies, and whether it was measured before, does not."""
    given = [option for option in sys.argv[1:] if option != "--kept"]
    for place in ("--site", "--data"):
        if place in given:
            at = given.index(place)
            del given[at : at + 2]
    return given


def percentiles(seconds: Sequence[float] | Floats) -> dict[str, float]:
    """Milliseconds: p50, p90, p99, p99.9 and the largest."""
    found = np.percentile(np.asarray(seconds) * 1_000, [50, 90, 99, 99.9, 100])
    return dict(
        zip(("p50_ms", "p90_ms", "p99_ms", "p999_ms", "max_ms"), (round(float(x), 3) for x in found), strict=True)
    )


@contextmanager
def watched_memory(process: psutil.Process, every_s: float = 0.05) -> Iterator[list[float]]:
    """Resident MB of a process, sampled while the block runs."""
    samples = [process.memory_info().rss / 2**20]
    done = threading.Event()

    def watch() -> None:
        while not done.wait(every_s):
            try:
                samples.append(process.memory_info().rss / 2**20)
            except psutil.NoSuchProcess:
                return

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield samples
    finally:
        done.set()
        thread.join()


def circumstances(name: str) -> dict[str, object]:
    """Command, commit, time and machine of a measurement; of a path of this machine its last part, which is all that it says to others."""
    given = (Path(each).name if Path(each).is_absolute() else each for each in sys.argv[1:])
    return {
        "command": f"python -m benchmarks.{name} {' '.join(given)}".strip(),
        "commit": _git("rev-parse", "--short", "HEAD") + ("+changes" if _git("status", "--porcelain", "--", ":/", ":!results") else ""),
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {
            "cpus": os.cpu_count(),
            "memory_gb": round(psutil.virtual_memory().total / 2**30),
            "processor": _processor(),
            "system": platform.platform(),
            "python": platform.python_version(),
            "load_1_5_15_min": [round(x, 1) for x in os.getloadavg()],
        },
    }  # fmt: skip


def _processor() -> str:
    names = [line.split(":", 1)[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).exists() else []


def _git(*arguments: str) -> str:
    answer = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False, cwd=RESULTS.parent)
    return answer.stdout.strip()


def _text(cell: object) -> str:
    if isinstance(cell, float):
        return f"{cell:,.0f}" if abs(cell) >= 1_000 else f"{cell:.3g}"
    return f"{cell:,}" if isinstance(cell, int) else str(cell)
