"""The one dial between latency and throughput, measured: `python -m benchmarks.batch_dial [--seconds 20] [--events 300000]`

Each setting of linger and batch size runs twice on one worker, Valkey as `make up` has it. *Throughput*: a full log is drained; events/s
between commits. *Freshness*: a steady load in entries of 250 events, and every 40 ms a probe, an event of a user of its own; its time from
the acknowledged append to the value in a read (`OnlineReader`, asked each millisecond). The curve goes to results/batch_dial.png.

The baseline is the first setting, the one for latency alone: an entry at a time. `ratio` is the default's throughput to its.
"""

import argparse
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl
import numpy as np
import psutil
from matplotlib import pyplot

from benchmarks.behaviour import Behaviour, entries
from benchmarks.flow_site import FlowSite, Run
from benchmarks.report import CONSOLE, RESULTS, percentiles, publish
from headrace import names
from headrace.clock import system_clock
from headrace.events import encode_records
from headrace.identity import shard_of
from headrace.settings import Settings
from headrace.stores.definitions import load_definitions
from headrace.stores.online_reader import OnlineReader
from headrace.stores.redis_client import connect

PROBE_EVERY_S: Final = 0.04
LOOK_EVERY_S: Final = 0.001
PATIENCE_S: Final = 60.0
LINGER, BATCH = "flow_linger_ms", "flow_max_batch_events"
DEFAULT: Final = (float(Settings.model_fields[LINGER].default), int(Settings.model_fields[BATCH].default))
SETTINGS: Final = (
    (0.0, 250),
    (0.0, 1_000),
    (0.0, 5_000),
    DEFAULT,
    (0.0, 100_000),
    (20.0, 20_000),
    (100.0, 20_000),
    (500.0, 100_000),
)


@dataclass(frozen=True)
class Point:
    """One setting of the dial. `worker_share`: of a processor, under the steady load."""

    linger_ms: float
    max_events: int
    events_per_s: float
    p50_ms: float
    p99_ms: float
    worker_share: float
    probes: int

    @property
    def is_default(self) -> bool:
        return (self.linger_ms, self.max_events) == DEFAULT


Entry = tuple[int, bytes, int]
"""Partition, payload, number of events."""


def measure(
    directory: Path, linger_ms: float, max_events: int, steady: Sequence[Entry], arguments: argparse.Namespace
) -> Point:
    site = FlowSite(directory, **{LINGER: linger_ms, BATCH: max_events})
    try:
        site.fill(Behaviour(), arguments.events)
        with site.workers(1) as workers:
            run = Run.of(site.watch(workers, arguments.events))
            process = psutil.Process(workers[0].pid)
            with _load(site, arguments.rate, steady):
                times_before, began = process.cpu_times(), time.monotonic()
                waits = list(_probes(site, arguments.seconds))
                times_after, seconds = process.cpu_times(), time.monotonic() - began
        share = (sum(times_after[:2]) - sum(times_before[:2])) / seconds
        found = percentiles(waits)
        return Point(linger_ms, max_events, run.events_per_s, found["p50_ms"], found["p99_ms"], share, len(waits))
    finally:
        site.server.stop()


@contextmanager
def _load(site: FlowSite, rate: int, steady: Sequence[Entry]) -> Iterator[None]:
    """Entries in the background, so many events a second, as long as there are some."""
    log, done = site.log, threading.Event()

    def send() -> None:
        sent, began = 0, time.monotonic()
        for partition, payload, count in steady:
            if done.wait(max(0.0, began + sent / rate - time.monotonic())):
                return
            log.append({partition: payload}, {partition: count})
            sent += count

    thread = threading.Thread(target=send, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _probes(site: FlowSite, seconds: float) -> Iterator[float]:
    """Seconds from the acknowledged append of an event to its count in a read."""
    reader = OnlineReader(connect(site.settings), load_definitions(site.settings), site.settings)
    log, began, number = site.log, time.monotonic(), 0
    while time.monotonic() - began < seconds:
        user, now_us = f"probe-{number}", system_clock()
        record = {
            "event_id": user,
            "type": names.VIEW,
            "user_key": user,
            "item_id": "item-00000",
            "timestamp": now_us,
            "received_at": now_us,
        }
        partition = shard_of(user, log.partitions)
        log.append({partition: encode_records([record])}, {partition: 1})
        appended = time.perf_counter()
        while not _count(reader, user):
            if time.perf_counter() - appended > PATIENCE_S:
                raise TimeoutError(
                    f"the event of {user} was not in a read after {PATIENCE_S:.0f} s; see {site.directory}"
                )
            time.sleep(LOOK_EVERY_S)
        yield time.perf_counter() - appended
        number += 1
        time.sleep(max(0.0, began + number * PROBE_EVERY_S - time.monotonic()))


def _count(reader: OnlineReader, user: str) -> int:
    snapshot = reader.fetch({names.USER_ACTIVITY: [user]})
    t_us = max(system_clock(), snapshot.newest_us + 1)
    return int(np.asarray(snapshot.streams[names.USER_ACTIVITY].values(t_us, ["views_10m"])["views_10m"])[0])


def draw(points: Sequence[Point], rate: int, path: Path) -> None:
    mpl.use("Agg")
    figure, axes = pyplot.subplots(figsize=(8, 5))
    axes.plot([p.events_per_s for p in points], [p.p99_ms for p in points], "o", color="tab:blue")
    for p in points:
        note = f"{p.linger_ms:g} ms, {p.max_events:,}" + (" (default)" if p.is_default else "")
        axes.annotate(note, (p.events_per_s, p.p99_ms), textcoords="offset points", xytext=(6, 6), fontsize=8)
    default = next(p for p in points if p.is_default)
    axes.plot([default.events_per_s], [default.p99_ms], "o", color="tab:red", markersize=10)
    axes.set(
        xlabel="events/s, one worker draining the log",
        ylabel=f"freshness p99 in ms, at {rate:,} events/s",
        title="The dial: linger and largest batch",
        yscale="log",
    )
    axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=300_000, help="that are drained for the throughput")
    parser.add_argument("--rate", type=int, default=10_000, help="events/s of the steady load")
    parser.add_argument("--seconds", type=float, default=20.0, help="of probes for each setting")
    arguments = parser.parse_args()
    points: list[Point] = []
    coming = int(arguments.rate * arguments.seconds * 1.5)
    steady = [(p, payload, len(records)) for p, payload, records in entries(Behaviour(), coming, arguments.events)]
    with tempfile.TemporaryDirectory(prefix="batch_dial-") as folder:
        for number, (linger_ms, max_events) in enumerate(SETTINGS):
            with CONSOLE.status(f"linger {linger_ms:g} ms, {max_events:,} events"):
                points.append(measure(Path(folder) / str(number), linger_ms, max_events, steady, arguments))
    RESULTS.mkdir(exist_ok=True)
    draw(points, arguments.rate, RESULTS / "batch_dial.png")
    default, first = next(p for p in points if p.is_default), points[0]
    rows = [
        (
            f"{p.linger_ms:g} ms, {p.max_events:,}" + (" (default)" if p.is_default else ""),
            p.events_per_s,
            p.p50_ms,
            p.p99_ms,
            p.worker_share,
        )
        for p in points
    ]
    result: dict[str, Any] = {
        "events_per_s": default.events_per_s,
        "p50_ms": default.p50_ms,
        "p99_ms": default.p99_ms,
        "baseline_events_per_s": first.events_per_s,
        "baseline_p50_ms": first.p50_ms,
        "baseline_p99_ms": first.p99_ms,
        "ratio": default.events_per_s / first.events_per_s,
        "load_events_per_s": arguments.rate,
        "points": [asdict(p) for p in points],
        "plot": "benchmarks/results/batch_dial.png",
    }
    publish("batch_dial", ("linger, batch", "events/s", "p50 ms", "p99 ms", "worker share"), rows, result)


if __name__ == "__main__":
    main()
