"""The freshness benchmark, in short: the whole stack under its load, each probe counted once, beside the stock flow."""

from pathlib import Path

import pytest

from benchmarks.freshness import run
from benchmarks.freshness_figures import draw, stages


@pytest.mark.slow
@pytest.mark.timeout(900)  # two warm-ups a side, and kernels to compile
def test_the_benchmark_measures_both_sides_and_loses_nothing(tmp_path: Path):
    ours, stock = run(5.0, baseline=True, data=tmp_path / "var")
    assert stock is not None
    for side in (ours, stock):
        assert len(side.probes) > 40
        assert all(probe.sent_us < probe.acknowledged_us and probe.visible_us for probe in side.probes)
        assert set(side.load["statuses"]) <= {"200", "503"}
        assert side.peak_mb > 0
    assert {"valkey", "flow-features", "flow-lake", "collector", "recommender", "load"} <= {
        usage.part for usage in ours.usage
    }
    draw(tmp_path / "plot.png", {"ours": ours.probes, "stock": stock.probes})
    assert (tmp_path / "plot.png").stat().st_size > 10_000
    assert all(len(times) == len(ours.probes) for times in stages(ours.probes).values())
