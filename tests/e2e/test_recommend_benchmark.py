"""The recommend benchmark, in short: every side is measured, and what it prints last is what it promises."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

PROMISED = (
    "p50_ms", "p99_ms", "rps_16", "stock_p50_ms", "stock_rps_16", "noop_p50_ms", "ratio_rps", "ratio_noop", "p50_ms_1m",
    "index_recall", "rss_mb",
)  # fmt: skip
SMALL = "--items 300 --users 200 --events 8000 --config small --seconds 2 --million-items 600 --no-stock"


@pytest.mark.slow
@pytest.mark.timeout(900)  # loads, trains, and starts the stack twice
def test_the_benchmark_measures_every_side_and_prints_what_it_promises(tmp_path: Path):
    command = [sys.executable, "-m", "benchmarks.recommend", "--site", str(tmp_path / "site"), *SMALL.split()]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, cwd=ROOT)
    found = json.loads(done.stdout.splitlines()[-1])
    assert list(found)[: len(PROMISED)] == list(PROMISED)
    assert found["stock_p50_ms"] is found["stock_rps_16"] is found["ratio_rps"] is None
    assert found["stock"] == {"skipped": "--no-stock"}
    assert 0 < found["noop_p50_ms"] < found["p50_ms"] < found["p99_ms"]
    assert found["ratio_noop"] == round(found["p50_ms"] / found["noop_p50_ms"], 2)
    for side in (found["noop"], found["ours"]):
        for loop in (side["connections_1"], side["connections_16"]):
            assert len(loop["rounds"]) == 3
            assert all(set(statuses) <= {"200", "429"} for statuses in loop["statuses"])
    assert found["fresh"]["probes"] == 100
    assert found["fresh"]["unseen"] < 10  # on a machine that does something else as well
    assert found["overload"]["same_processes"] is True
    assert list(found["breakdown"]["stages"])[:2] == ["hydrate", "retrieve"]
    assert found["million"]["items"] == 600
    assert found["p50_ms_1m"] > 0
