"""Events per second from the log to the committed online state: `python -m benchmarks.stream_features [--events 3000000]`

The full default feature set of users and items (feature_repo), settings of `make up`: Valkey with `appendfsync always`, deduplication,
dead letters, string ids, 32-bit counts. 20,000 users and 5,000 items by Pareto, entries of 250 full-contract JSON events, 1% duplicates,
5% out of order. The log is filled first; a worker starts, and its rate is taken between its commits, start-up left out.

The baseline is stock Bytewax (benchmarks/stock_windows.py) on the first events of the same stream: one sliding count (10 minutes, every
minute) for each user, in memory. Its counts of the last window must be those of our online state, user by user.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import numpy as np
import orjson

from benchmarks.behaviour import Behaviour, entries
from benchmarks.flow_site import FlowSite, Look, Run, made
from benchmarks.report import CONSOLE, publish
from benchmarks.stock_windows import write_entries
from headrace import names
from headrace.settings import MICROS
from headrace.stores.definitions import load_definitions
from headrace.stores.online_reader import OnlineReader
from headrace.stores.redis_client import connect

COUNTS: Final = {"view": "views_10m", "click": "clicks_10m", "add_to_cart": "carts_10m", "purchase": "purchases_10m"}
MINUTE_US: Final = 60 * MICROS
_HELD: Final = re.compile(r"held (\d+) event ids in (\d+) bytes, (\d+) entities in (\d+) bytes")


class Filling:
    """The log, which gets longer from run to run; each run begins with no state."""

    def __init__(self, site: FlowSite, behaviour: Behaviour) -> None:
        self._site = site
        self._behaviour = behaviour
        self._events = 0

    def fill_up(self, events: int) -> None:
        with CONSOLE.status(f"filling the log up to {events:,} events"):
            self._site.append(made(self._behaviour, events - self._events, self._events))
        self._events = events

    def drain(self, workers: int) -> tuple[list[Look], dict[str, float]]:
        """The whole log into an empty state; what was seen of it, and what the workers held when they ended."""
        site, events = self._site, self._events
        site.forget_state()
        with CONSOLE.status(f"{workers} worker(s), {events:,} events"), site.workers(workers) as children:
            looks = site.watch(children, events)
        held = [tuple(map(int, _HELD.findall(child.log.read_text())[-1])) for child in children]
        ids, size, entities, state = (sum(each) for each in zip(*held, strict=True))
        index = {
            "event_ids": ids,
            "index_mb": size / 2**20,
            "index_bytes_per_event": size / ids,
            "entities": entities,
            "state_mb": state / 2**20,
        }
        return looks, index | {"log_mb": site.log.size_bytes() / 2**20}


def run_stock(directory: Path, behaviour: Behaviour, events: int, end_us: int) -> dict[str, Any]:
    """What stock_windows wrote. It is spared the duplicates, which it would count."""
    seen: set[str] = set()
    once = (
        [record for record in records if not (record["event_id"] in seen or seen.add(record["event_id"]))]  # type: ignore[func-returns-value]
        for _, _, records in entries(behaviour, events)
    )
    log, out = directory / "entries", directory / "stock.json"
    write_entries(log, (b"\n".join(map(orjson.dumps, records)) for records in once))
    command = [sys.executable, "-m", "benchmarks.stock_windows", str(log), str(out), str(end_us)]
    with CONSOLE.status(f"stock Bytewax, {events:,} events"):
        subprocess.run(command, check=True)
    return dict(json.loads(out.read_text())) | {"events": len(seen)}


def check_counts(site: FlowSite, stock: dict[str, dict[str, int]], end_us: int) -> int:
    """Compare every user's counts of ten minutes; returns how many counts were compared."""
    reader = OnlineReader(connect(site.settings), load_definitions(site.settings), site.settings)
    values = reader.fetch({names.USER_ACTIVITY: list(stock)}).streams[names.USER_ACTIVITY].values(end_us)
    for event_type, feature in COUNTS.items():
        ours = np.asarray(values[feature]).astype(np.int64).tolist()
        theirs = [counts.get(event_type, 0) for counts in stock.values()]
        if ours != theirs:
            raise AssertionError(f"{feature} differs from what stock Bytewax counted")
    return len(stock) * len(COUNTS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=3_000_000)
    parser.add_argument(
        "--small", type=int, default=300_000, help="the smaller of the two runs that memory is compared over"
    )
    parser.add_argument("--baseline-events", type=int, default=100_000)
    parser.add_argument("--workers", type=int, default=2, help="of the run with more than one worker")
    arguments = parser.parse_args()
    behaviour = Behaviour()
    with tempfile.TemporaryDirectory(prefix="stream_features-") as folder:
        site = FlowSite(Path(folder))
        try:
            end_us = _end_of(behaviour, arguments.baseline_events)
            log = Filling(site, behaviour)
            log.fill_up(arguments.baseline_events)
            log.drain(1)
            stock = run_stock(Path(folder), behaviour, arguments.baseline_events, end_us)
            compared = check_counts(site, stock["counts"], end_us)
            log.fill_up(arguments.small)
            small, small_held = log.drain(1)
            log.fill_up(arguments.events)
            large, large_held = log.drain(1)
            several, _ = log.drain(arguments.workers)
        finally:
            site.server.stop()
    report(arguments, stock, compared, (Run.of(small), small_held), (Run.of(large), large_held), Run.of(several))


def _end_of(behaviour: Behaviour, events: int) -> int:
    """The first whole minute after the last event."""
    newest = max(int(record["timestamp"]) for _, _, records in entries(behaviour, events) for record in records)
    return (newest // MINUTE_US + 1) * MINUTE_US


def report(
    arguments: argparse.Namespace,
    stock: dict[str, Any],
    compared: int,
    small: tuple[Run, dict[str, float]],
    large: tuple[Run, dict[str, float]],
    several: Run,
) -> None:
    ours, held = large
    baseline = stock["events"] / stock["seconds"]
    rest_mb = [run.workers_end_mb - held["index_mb"] for run, held in (small, large)]
    columns = ("", "events/s", "ratio", "worker us/event", "Valkey us/event", "worker MB", "Valkey MB")
    rows = [
        (f"stock fold_window, {stock['events']:,} events", baseline, 1.0, 1e6 / baseline, "", stock["peak_mb"], ""),
        *(
            (
                name,
                run.events_per_s,
                run.events_per_s / baseline,
                run.workers_us,
                run.valkey_us,
                run.workers_mb,
                run.valkey_mb,
            )
            for name, run in (
                (f"one worker, {arguments.small:,} events", small[0]),
                (f"one worker, {arguments.events:,} events", ours),
                (f"{arguments.workers} workers, {arguments.events:,} events", several),
            )
        ),
    ]
    CONSOLE.print(
        f"{compared:,} counts of ten minutes equal those of stock Bytewax. "
        f"Event ids: {held['index_bytes_per_event']:.1f} bytes each, {held['index_mb']:.0f} MB. "
        f"Worker memory without them: {rest_mb[0]:.0f} MB, of it {small[1]['state_mb']:.0f} MB for {small[1]['entities']:,} entities, "
        f"then {rest_mb[1]:.0f} MB, of it {held['state_mb']:.0f} MB for {held['entities']:,}."
    )
    result = {
        "events_per_s": ours.events_per_s,
        "baseline_events_per_s": baseline,
        "ratio": ours.events_per_s / baseline,
        "peak_mb": ours.workers_mb,
        "baseline_peak_mb": stock["peak_mb"],
        "events": arguments.events,
        "baseline_events": stock["events"],
        "counts_compared": compared,
        "one_worker": asdict(ours) | held,
        "one_worker_small": {"events": arguments.small, **asdict(small[0]), **small[1]},
        "several_workers": {"workers": arguments.workers, **asdict(several)},
        "memory_mb_without_index": {"small": rest_mb[0], "large": rest_mb[1]},
    }
    publish("stream_features", columns, rows, result)


if __name__ == "__main__":
    main()
