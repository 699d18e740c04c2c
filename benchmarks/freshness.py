"""How old a feature is: from the acknowledged `POST /v1/events` to the value in a read, the whole stack running under load.

`python -m benchmarks.freshness [--seconds 50]`

The stack is that of `make up` (Valkey that flushes every write, both flows, Ray Serve with collector and recommender), in a data
directory of its own. Beside it a load of 100 posts/s with 10 events each, from another process. Every 50 to 100 ms a probe posts one
event of a user of its own, and each millisecond `OnlineReader` reads the users that are still waited for. Acknowledged means on disk.

The baseline is what Bytewax and Feast offer (benchmarks/stock_push.py): in the same stack, under the same load and the same probes, with
our feature flow paused, a Bytewax flow counts event by event and pushes the counts into Feast's own Redis store, and
`get_online_features` reads them. It keeps four running counts of users and of items, where the stack keeps all default features: sixteen
windows that decay, lists and sessions.
"""

import argparse
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import psutil

from benchmarks.freshness_figures import draw, stages
from benchmarks.freshness_side import FEATURE_FLOW, Measured, feature_flows, measure
from benchmarks.report import CONSOLE, percentiles, publish, results
from headrace import names
from headrace.clock import system_clock
from headrace.ops.child import Child, environment_of
from headrace.ops.interrupts import Interrupts
from headrace.ops.ports import free_port
from headrace.ops.stack import Stack
from headrace.settings import Settings
from headrace.stores.definitions import load_definitions
from headrace.stores.online_reader import OnlineReader
from headrace.stores.redis_client import connect

COUNT: Final = "views_10m"


class OnlineCounts:
    """Our online store, read as the recommender reads it."""

    def __init__(self, settings: Settings) -> None:
        self._reader = OnlineReader(connect(settings), load_definitions(settings), settings)

    def read(self, users: Sequence[str]) -> Mapping[str, int]:
        snapshot = self._reader.fetch({names.USER_ACTIVITY: users})
        t_us = max(system_clock(), snapshot.newest_us + 1)
        counts = snapshot.streams[names.USER_ACTIVITY].values(t_us, [COUNT])[COUNT]
        return dict(zip(users, map(int, counts), strict=True))


class FeastCounts:
    """Feast's own Redis store, read through Feast."""

    def __init__(self, store: Any, feature: str) -> None:
        self._store = store
        self._feature = feature

    def read(self, users: Sequence[str]) -> Mapping[str, int]:
        rows = [{names.USER_ID: user} for user in users]
        found = self._store.get_online_features(features=[self._feature], entity_rows=rows).to_dict()
        return dict(zip(users, (count or 0 for count in found[self._feature.split(":")[1]]), strict=True))


def measure_stock(stack: Stack, seconds: float) -> Measured:
    """The same with our feature flow paused and the stock flow in its place."""
    from benchmarks.stock_push import FEATURE, READING, define, open_stock_store

    repo = stack.settings.data / "stock"
    repo.mkdir()
    store = open_stock_store(repo, stack.settings)
    define(store, repo)
    ours = feature_flows(stack.settings)
    command = [sys.executable, "-m", "benchmarks.stock_push", str(repo)]
    flow = Child("stock-flow", command, environment_of(stack.settings), repo / "log")
    for process in ours:
        process.suspend()
    try:
        stock = psutil.Process(flow.start())
        while READING not in flow.log.read_text():
            if not flow.is_running():
                raise flow.failure("ended before it read")
        return measure(stack.settings, FeastCounts(store, FEATURE), [stock], seconds, "stock-flow")
    finally:
        flow.kill()
        for process in ours:
            process.resume()


def run(seconds: float, baseline: bool, data: Path) -> tuple[Measured, Measured | None]:
    settings = Settings(data=data, http_port=free_port(), exploration=0.0)
    interrupts = Interrupts()
    with interrupts.installed(), Stack(settings, CONSOLE.print, interrupts) as stack:
        CONSOLE.print("starting the stack", style="dim")
        stack.start_valkey()
        stack.run("apply", "headrace.ops.apply")
        stack.start_flows()
        stack.start_serving()
        CONSOLE.print(f"probing for {seconds:.0f} s", style="dim")
        own = stack.settings
        ours = measure(own, OnlineCounts(own), feature_flows(own), seconds, FEATURE_FLOW)
        if not baseline:
            return ours, None
        CONSOLE.print(f"probing the stock flow for {seconds:.0f} s", style="dim")
        return ours, measure_stock(stack, seconds)


def report(ours: Measured, stock: Measured | None) -> None:
    """Plot, table, file and JSON line."""
    fresh = percentiles([probe.freshness_s for probe in ours.probes])
    result: dict[str, Any] = {**fresh, "peak_mb": round(ours.peak_mb, 1)}
    rows: list[list[object]] = [["acknowledged -> visible", *fresh.values()]]
    sides = {"Headrace": ours.probes}
    if stock is not None:
        base = percentiles([probe.freshness_s for probe in stock.probes])
        result |= {f"baseline_{name}": value for name, value in base.items()}
        result |= {
            "ratio": round(base["p50_ms"] / fresh["p50_ms"], 2),
            "ratio_p99": round(base["p99_ms"] / fresh["p99_ms"], 2),
            "baseline_peak_mb": round(stock.peak_mb, 1),
            "baseline": stock.details(),
        }
        rows.append(["the same, Bytewax and Feast's store", *base.values()])
        sides["Bytewax, Feast push"] = stock.probes
    taken = {name: percentiles(times) for name, times in stages(ours.probes).items()}
    rows += [[name, *found.values()] for name, found in taken.items()]
    draw(results() / "freshness.png", sides)
    columns = ["milliseconds", "p50", "p90", "p99", "p99.9", "max"]
    publish("freshness", columns, rows, result | {"stages": taken} | ours.details())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=50, help="how long each side is probed")
    parser.add_argument("--no-baseline", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="headrace-freshness-") as folder:
        ours, stock = run(given.seconds, not given.no_baseline, Path(folder) / "var")
    report(ours, stock)


if __name__ == "__main__":
    main()
