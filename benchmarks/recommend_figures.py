"""The recommend benchmark's plot: where a request's time goes, and how long requests take on each side."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from headrace.arrays import Floats


def draw(path: Path, stages_ms: Mapping[str, Mapping[str, float]], sides: Mapping[str, Floats]) -> None:
    """Stacked medians by stage, a bar for each entry of `stages_ms`; cumulative latencies in seconds, a line a side."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (bars, lines) = pyplot.subplots(1, 2, figsize=(12, 4.6), constrained_layout=True, width_ratios=(3, 4))
    names = list(dict.fromkeys(name for stages in stages_ms.values() for name in stages))
    bottom = np.zeros(len(stages_ms))
    for name in names:
        heights = np.array([stages.get(name, 0.0) for stages in stages_ms.values()])
        bars.bar(list(stages_ms), heights, bottom=bottom, width=0.5, label=name)
        bottom += heights
    bars.set_ylabel("ms, medians at 1 connection")
    bars.legend(reverse=True, fontsize="small", loc="center left", bbox_to_anchor=(1.0, 0.5))
    for label, seconds in sides.items():
        times = np.sort(seconds) * 1_000
        lines.plot(times, np.arange(1, len(times) + 1) / len(times), label=label)
    for share, style in ((0.5, ":"), (0.99, "--")):
        lines.axhline(share, color="grey", linestyle=style, linewidth=0.8)
    lines.set_xscale("log")
    lines.set_xlabel("ms from request to answer")
    lines.set_ylabel("share of requests")
    lines.legend(fontsize="small")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)
