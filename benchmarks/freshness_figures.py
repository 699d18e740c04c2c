"""What the freshness benchmark shows beside its percentiles: the stages, who used the processors, the plot."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil

from benchmarks.probes import Probe


@dataclass
class Usage:
    """What a part of the stack used: processor time as a share of one processor, resident memory at the end."""

    part: str
    cpu: float = 0.0
    mb: float = 0.0


def stages(probes: Sequence[Probe]) -> dict[str, list[float]]:
    """Seconds of each stage of a probe. The log's own time is in whole milliseconds."""
    return {
        "post: sent -> acknowledged": [(p.acknowledged_us - p.sent_us) / 1e6 for p in probes],
        "  of it: sent -> in the log": [(p.appended_us - p.sent_us) / 1e6 for p in probes],
        "in the log -> visible": [(p.visible_us - p.appended_us) / 1e6 for p in probes],
        "sent -> visible": [(p.visible_us - p.sent_us) / 1e6 for p in probes],
    }


@contextmanager
def usage_of(parts: Mapping[psutil.Process, str]) -> Iterator[list[Usage]]:
    """Of processes, each with the name of its part; the list is filled at the end of the block, the busiest first."""
    before = {process: _cpu_s(process) for process in parts}
    begun = time.monotonic()
    found: list[Usage] = []
    yield found
    lasted = time.monotonic() - begun
    usage = {part: Usage(part) for part in parts.values()}
    for process, part in parts.items():
        if process.is_running():
            usage[part].cpu += (_cpu_s(process) - before[process]) / lasted
            usage[part].mb += process.memory_info().rss / 2**20
    found.extend(sorted(usage.values(), key=lambda each: -each.cpu))


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def draw(path: Path, sides: Mapping[str, Sequence[Probe]]) -> None:
    """Histogram and cumulative share of freshness, one colour a side."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (histogram, cumulative) = pyplot.subplots(1, 2, figsize=(11, 4.2), constrained_layout=True)
    for label, probes in sides.items():
        times = np.sort([probe.freshness_s * 1_000 for probe in probes])
        histogram.hist(times, bins=np.geomspace(0.5, max(1_000.0, times[-1]), 80), alpha=0.6, label=label)
        cumulative.plot(times, np.arange(1, len(times) + 1) / len(times), label=label)
    for axes in (histogram, cumulative):
        axes.set_xscale("log")
        axes.set_xlabel("ms from the acknowledgement to the value in a read")
        axes.legend()
    for share, style in ((0.5, ":"), (0.99, "--")):
        cumulative.axhline(share, color="grey", linestyle=style, linewidth=0.8)
    histogram.set_ylabel("probes")
    cumulative.set_ylabel("share of probes")
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)
