"""The one dial between latency and throughput, measured: `python -m benchmarks.batch_dial [--seconds 15] [--events 300000]`

Each setting of linger and batch size runs twice on one worker, Valkey as `make up` has it. *Throughput*: a full log is drained; events/s
between commits. *Freshness*: a steady load in entries of 25 events, and every 40 ms a probe, an event of a user of its own; its time from
the acknowledged append to the value in a read (`OnlineReader`, asked each millisecond). What the worker takes of a processor under that
load is what lingering saves. The curves go to results/batch_dial.png.

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

from benchmarks.behaviour import Behaviour
from benchmarks.flow_site import Entry, FlowSite, Run, made
from benchmarks.report import CONSOLE, percentiles, publish, results
from headrace import names
from headrace.clock import system_clock
from headrace.events import encode_records
from headrace.identity import shard_of
from headrace.settings import Settings
from headrace.stores.definitions import load_definitions
from headrace.stores.online_reader import OnlineReader
from headrace.stores.redis_client import connect

PROBE_EVERY_S: Final = 0.04
STEADY_ENTRY: Final = 25
"""Events of an entry of the steady load: what a collector that groups requests appends."""
LOOK_EVERY_S: Final = 0.001
PATIENCE_S: Final = 60.0
LINGER, BATCH = "flow_linger_ms", "flow_max_batch_events"
DEFAULT: Final = (float(Settings.model_fields[LINGER].default), int(Settings.model_fields[BATCH].default))
LINGERS: Final = (0.0, 5.0, 10.0, 25.0, 100.0)
BATCHES: Final = (1_000, 5_000, 100_000)
SETTINGS: Final = (
    (0.0, 250),
    *sorted({DEFAULT, *((linger, DEFAULT[1]) for linger in LINGERS), *((DEFAULT[0], batch) for batch in BATCHES)}),
)


@dataclass(frozen=True)
class Point:
    """One setting of the dial. `cpu_us`: processor time of worker and Valkey for an event of a full log. `worker_share`: of a processor,
    under the steady load.
    """

    linger_ms: float
    max_events: int
    events_per_s: float
    cpu_us: float
    p50_ms: float
    p99_ms: float
    worker_share: float
    probes: int

    @property
    def is_default(self) -> bool:
        return (self.linger_ms, self.max_events) == DEFAULT


def measure(
    site: FlowSite,
    linger_ms: float,
    max_events: int,
    full: Sequence[Entry],
    steady: Sequence[Entry],
    arguments: argparse.Namespace,
) -> Point:
    """`full` is drained, `steady` comes while the probes are sent."""
    site.forget()
    site.append(full)
    with site.workers(1, **{LINGER: linger_ms, BATCH: max_events}) as workers:
        run = Run.of(site.watch(workers, sum(count for _, _, count in full)))
        process = psutil.Process(workers[0].pid)
        with _load(site, arguments.rate, steady):
            times_before, began = process.cpu_times(), time.monotonic()
            waits = list(_probes(site, arguments.seconds))
            times_after, seconds = process.cpu_times(), time.monotonic() - began
    share = (sum(times_after[:2]) - sum(times_before[:2])) / seconds
    found = percentiles(waits)
    cpu_us = run.workers_us + run.valkey_us
    return Point(linger_ms, max_events, run.events_per_s, cpu_us, found["p50_ms"], found["p99_ms"], share, len(waits))


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
    figure, panels = pyplot.subplots(1, 2, figsize=(12, 5), sharey=True)
    measures = (
        ("events/s, one worker draining the log", [p.events_per_s for p in points]),
        (f"what a worker takes of a processor, at {rate:,} events/s", [p.worker_share for p in points]),
    )
    for axes, (label, across) in zip(panels, measures, strict=True):
        for p, x in zip(points, across, strict=True):
            axes.plot([x], [p.p99_ms], "o", color="tab:red" if p.is_default else "tab:blue")
            note = f"{p.linger_ms:g} ms, {p.max_events:,}" + (" (default)" if p.is_default else "")
            axes.annotate(note, (x, p.p99_ms), textcoords="offset points", xytext=(6, 6), fontsize=8)
        axes.set(xlabel=label, yscale="log")
        axes.grid(alpha=0.3)
    panels[0].set_ylabel(f"freshness p99 in ms, at {rate:,} events/s")
    figure.suptitle("The dial: linger, largest batch")
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=300_000, help="that are drained for the throughput")
    parser.add_argument("--rate", type=int, default=5_000, help="events/s of the steady load")
    parser.add_argument("--seconds", type=float, default=15.0, help="of probes for each setting")
    arguments = parser.parse_args()
    points: list[Point] = []
    coming = int(arguments.rate * arguments.seconds * 1.5)
    full = list(made(Behaviour(), arguments.events))
    steady = list(made(Behaviour(entry_events=STEADY_ENTRY), coming, arguments.events))
    with tempfile.TemporaryDirectory(prefix="batch_dial-") as folder:
        site = FlowSite(Path(folder))
        try:
            for linger_ms, max_events in SETTINGS:
                with CONSOLE.status(f"linger {linger_ms:g} ms, {max_events:,} events"):
                    points.append(measure(site, linger_ms, max_events, full, steady, arguments))
        finally:
            site.server.stop()
    draw(points, arguments.rate, results() / "batch_dial.png")
    default, first = next(p for p in points if p.is_default), points[0]
    rows = [
        (
            f"{p.linger_ms:g} ms, {p.max_events:,}" + (" (default)" if p.is_default else ""),
            p.events_per_s,
            p.cpu_us,
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
    publish(
        "batch_dial", ("linger, batch", "events/s", "CPU us/event", "p50 ms", "p99 ms", "worker share"), rows, result
    )


if __name__ == "__main__":
    main()
