"""The train benchmark's report of figures that are given; and what it says of epochs."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import report, train
from benchmarks.train_sides import speed_of
from headrace.ingest.shop import ShopConfig
from training.fit import Epoch


def test_the_first_epoch_warms_up_and_does_not_count_where_there_are_more() -> None:
    epochs = [Epoch(number, 1.0, 0.1, 1.0, speed, share) for number, speed, share in
              ((0, 0.0, 0.0), (1, 5.0, 0.9), (2, 10.0, 0.05), (3, 20.0, 0.1), (4, 40.0, 0.15))]  # fmt: skip
    assert speed_of(epochs) == {"rows_per_s": 20.0, "input_share": pytest.approx(0.1)}
    assert speed_of(epochs[:2]) == {"rows_per_s": 5.0, "input_share": 0.9}


def run(towers: float, ranker: float, share: float) -> dict[str, Any]:
    return {
        "phases": {"build": 1.0, "towers": 7.0},
        "towers": {"rows_per_s": towers, "input_share": share},
        "ranker": {"rows_per_s": ranker, "input_share": 0.02},
        "peak_mb": 900.0,
    }


def test_the_report_ends_with_the_keys_that_it_promises(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    monkeypatch.setattr("sys.argv", ["train"])
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    padded = {"windows": 10, "rows": 100, "ours_rows_per_s": 400.0, "padded_rows_per_s": 100.0, "ratio": 4.0}
    build = {"rows": 100, "rows_per_s": 6e4, "ratio": 100.0, "baseline": {"rows": 20, "rows_per_s": 600.0}}
    bounded = {"rows": 1_000, "bound_mb": 64, "features_mb": 500.0, "on_disk_mb": 80.0, "held_mb": 50.0,
               "features_over_held": 10.0, "build_rows_per_s": 1e5, "epoch": {"rows_per_s": 2e4}}  # fmt: skip
    runs = {"small": run(300.0, 30.0, 0.04), "default": run(100.0, 10.0, 0.12)}
    train._publish(ShopConfig(), 40.0, runs, {"small": padded, "default": padded}, build, bounded)
    said = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert {name: said[name] for name in list(said)[:13]} == {
        "small_run_seconds": 40.0,
        "towers_rows_per_s": {"small": 300.0, "default": 100.0},
        "ranker_lists_per_s": {"small": 30.0, "default": 10.0},
        "loader_share": 0.12,
        "padded_ratio": {"small": 4.0, "default": 4.0},
        "build_rows_per_s": 6e4,
        "baseline_build_rows_per_s": 600.0,
        "build_ratio": 100.0,
        "peak_mb": 900.0,
        "features_over_held": 10.0,
        "in_time": True,
        "loader_keeps_up": False,
        "cuda": "skipped: no GPU here",
    }
    assert json.loads((tmp_path / "train.json").read_text())["benchmark"] == "train"
    assert (tmp_path / "train.png").stat().st_size > 10_000
