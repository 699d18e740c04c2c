"""The README's story, on a small simulated shop."""

import os
import re
import subprocess
import sys
from pathlib import Path

import psutil

from tests.conftest import ROOT


def test_the_story_happens_and_leaves_nothing_behind(tmp_path: Path) -> None:
    environment = os.environ | {
        "HEADRACE_DATA": str(tmp_path),
        "HEADRACE_FEATURE_REPO": str(ROOT / "feature_repo"),
        "COLUMNS": "300",
    }
    command = [sys.executable, "-m", "headrace.cli", "demo", "--small"]
    told = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280, check=False)

    assert told.returncode == 0, told.stdout + told.stderr
    assert "the same order" in told.stdout
    assert re.search(r"\d+ ms from the acknowledged clicks to a changed answer", told.stdout)
    assert "0 mismatches" in told.stdout
    assert not (tmp_path / "demo").exists()
    assert (tmp_path / "reports" / "demo.html").exists()
    assert not any(
        str(tmp_path) in " ".join(process.info["cmdline"] or []) for process in psutil.process_iter(["cmdline"])
    )
