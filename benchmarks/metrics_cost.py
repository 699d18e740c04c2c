"""What counting a request costs: `python -m benchmarks.metrics_cost [--rounds 7]`

Three sides, each in processes of its own, in turn, the best of all rounds: *ours* (`serving/cells.py`, a file that other replicas read),
Prometheus' client in its mode for several processes, and the client alone, which shows one process. Each makes one increment, one
observation, and all that one request counts (6 stages, 5 sources, 20 items), every series looked up beforehand where it can be. Then a
scrape of two replicas.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import timeit
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from benchmarks.report import publish

SIDES: Final = ("ours", "multiprocess", "client")
MULTIPROCESS: Final = "PROMETHEUS_MULTIPROC_DIR"
STAGES: Final = ("hydrate", "retrieve", "filter", "features", "rank", "select")
SOURCES: Final = ("two_tower", "neighbours", "trending", "new", "unfinished")
REMOVED: Final = {"seen": 3, "unavailable": 1}
DEGRADED: Final = "ranker: deadline"
SHOWN: Final = [SOURCES[place % 3] for place in range(20)]
SCRAPES: Final = 20


def ours(folder: Path) -> tuple[Callable[[], None], Callable[[], None], Callable[[], None], Callable[[], object]]:
    import numpy as np

    from serving.candidates import BIT, Candidates, Slate, Stage, Trace
    from serving.metrics import RecommenderMetrics, exposition

    trace = Trace(100)
    trace.stages += [Stage(name, 200, REMOVED if name == "filter" else {}, 0.0012) for name in STAGES]
    trace.sources += [Stage(name, 100, {}, 0.0003) for name in SOURCES]
    trace.degrade(DEGRADED)
    count = len(SHOWN)
    items = Candidates(np.arange(count), np.array([BIT[source] for source in SHOWN]), np.full(count, 0.5))
    slate = Slate([f"i{n}" for n in range(count)], items, 1, 41_000, "3", trace)
    metrics, other = RecommenderMetrics(folder), RecommenderMetrics(folder)
    other.record("recommend", slate)
    return (
        metrics.swaps.inc,
        lambda: metrics.feature_age.observe(0.041),
        lambda: metrics.record("recommend", slate),
        lambda: exposition(metrics.registry),
    )


def client() -> tuple[Callable[[], None], Callable[[], None], Callable[[], None], Callable[[], object]]:
    import prometheus_client as p

    registry = p.CollectorRegistry()
    bounds = [0.0005 * 2**power for power in range(12)]

    def counters(name: str, *values: str) -> dict[str, Any]:
        family = p.Counter(name, name, ["label"], registry=registry)
        return {value: family.labels(value) for value in values}

    def histograms(name: str, *values: str) -> dict[str, Any]:
        family = p.Histogram(name, name, ["label"], registry=registry, buckets=bounds)
        return {value: family.labels(value) for value in values}

    seconds, slate_items = histograms("seconds", "recommend"), histograms("slate", "recommend")
    stages, sources = histograms("stage", *STAGES), histograms("source", *SOURCES)
    found, items = counters("found", *SOURCES), counters("items", *SOURCES)
    removed, degraded = counters("removed", *REMOVED), counters("degraded", DEGRADED)
    slates_degraded, age = counters("slates_degraded", "recommend"), histograms("age", "all")["all"]
    last_age = p.Gauge("last_age", "last_age", registry=registry)

    def record() -> None:
        seconds["recommend"].observe(0.004)
        slate_items["recommend"].observe(20)
        for name in STAGES:
            stages[name].observe(0.0012)
        for reason, number in REMOVED.items():
            removed[reason].inc(number)
        for name in SOURCES:
            sources[name].observe(0.0003)
            found[name].inc(100)
        for name, number in Counter(SHOWN).items():
            items[name].inc(number)
        slates_degraded["recommend"].inc()
        degraded[DEGRADED].inc()
        age.observe(0.041)
        last_age.set(0.041)

    def scrape() -> object:
        if MULTIPROCESS not in os.environ:
            return p.generate_latest(registry)
        from prometheus_client.multiprocess import MultiProcessCollector

        all_of_them = p.CollectorRegistry()
        MultiProcessCollector(all_of_them)  # type: ignore[no-untyped-call]
        return p.generate_latest(all_of_them)

    return lambda: removed["seen"].inc(), lambda: age.observe(0.041), record, scrape


def measure(side: str, folder: Path) -> dict[str, float]:
    """Best of five: nanoseconds of an increment and an observation, microseconds of a request, milliseconds of a scrape."""
    increment, observe, record, scrape = ours(folder) if side == "ours" else client()

    def best(act: Callable[[], object], times: int) -> float:
        return min(timeit.repeat(act, number=times, repeat=5)) / times

    return {
        "inc_ns": best(increment, 20_000) * 1e9,
        "observe_ns": best(observe, 20_000) * 1e9,
        "request_us": best(record, 2_000) * 1e6,
        "scrape_ms": best(scrape, SCRAPES) * 1e3,
    }


def run(side: str, folder: Path) -> dict[str, float]:
    environment = {name: value for name, value in os.environ.items() if name != MULTIPROCESS}
    if side == "multiprocess":
        environment[MULTIPROCESS] = str(folder)
    command = [sys.executable, "-m", "benchmarks.metrics_cost", "--side", side, "--folder", str(folder)]
    said = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
    found: dict[str, float] = json.loads(said)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        print(json.dumps(measure(arguments.side, arguments.folder)))
        return
    rounds: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
    for _ in range(arguments.rounds):
        for side in SIDES:
            with tempfile.TemporaryDirectory(prefix="metrics_cost-") as folder:
                rounds[side].append(run(side, Path(folder)))
    names = list(rounds["ours"][0])
    best = {
        side: {name: round(min(each[name] for each in found), 2) for name in names} for side, found in rounds.items()
    }
    rows = [(side, *(best[side][name] for name in names)) for side in SIDES]
    result: dict[str, Any] = {
        **best["ours"],
        **{f"baseline_{name}": value for name, value in best["multiprocess"].items()},
        "ratio": round(best["multiprocess"]["request_us"] / best["ours"]["request_us"], 2),
        "client_alone": best["client"],
        "rounds": arguments.rounds,
    }
    publish("metrics_cost", ("side", "inc ns", "observe ns", "request us", "scrape ms"), rows, result)


if __name__ == "__main__":
    main()
