"""What the flow's benchmarks run on: a Valkey as `headrace up` starts it, applied features, a filled log, workers as processes."""

import shutil
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import psutil

from benchmarks.behaviour import Behaviour, entries
from headrace import names
from headrace.ops.child import Child, environment_of
from headrace.ops.ports import free_port
from headrace.ops.valkey import ValkeyServer
from headrace.settings import Settings
from headrace.stores.log import EventLog, open_log
from headrace.stores.redis_client import connect
from headrace.stores.shards import read_status

ROOT: Final = Path(__file__).parent.parent
PATIENCE_S: Final = 900.0
_EVERY_S: Final = 0.05
_LOG: Final = f"{names.PROJECT}:log:".encode()

Entry = tuple[int, bytes, int]
"""Partition, payload, number of events."""


@dataclass(frozen=True)
class Look:
    """One moment: events that the online state has taken in, resident MB and processor seconds of the workers and of Valkey."""

    at_s: float
    events: int
    workers_mb: float
    workers_cpu_s: float
    valkey_mb: float
    valkey_cpu_s: float


@dataclass(frozen=True)
class Run:
    """From the first commit beyond a tenth of the events (start-up, entities that were never seen) to the last one.

    `workers_us` and `valkey_us`: processor time an event. `workers_mb` and `valkey_mb`: the most; `workers_end_mb` after the last commit.
    """

    events_per_s: float
    workers_us: float
    valkey_us: float
    workers_mb: float
    workers_end_mb: float
    valkey_mb: float

    @classmethod
    def of(cls, looks: Sequence[Look]) -> "Run":
        total = looks[-1].events
        first = next(look for look in looks if look.events >= total / 10)
        last = next(look for look in looks if look.events == total)
        events = last.events - first.events
        if events == 0:
            raise ValueError(
                f"{total:,} events were committed within {_EVERY_S} s, too few for a rate: take more events"
            )
        return cls(
            events / (last.at_s - first.at_s),
            (last.workers_cpu_s - first.workers_cpu_s) / events * 1e6,
            (last.valkey_cpu_s - first.valkey_cpu_s) / events * 1e6,
            max(look.workers_mb for look in looks),
            last.workers_mb,
            max(look.valkey_mb for look in looks),
        )


class FlowSite:
    def __init__(self, directory: Path, **settings: Any) -> None:
        self.directory = directory
        self.server = ValkeyServer(directory / "valkey", free_port(), directory / "valkey.log")
        repo = directory / "feature_repo"
        shutil.copytree(ROOT / "feature_repo", repo, ignore=shutil.ignore_patterns("__pycache__"))
        self.settings = Settings(data=directory / "var", feature_repo=repo, redis_url=self.server.url, **settings)
        self.server.start()
        self._run("apply", "headrace.ops.apply")

    @property
    def log(self) -> EventLog:
        return open_log(connect(self.settings, timeout_s=60.0), self.settings)

    def _run(self, name: str, module: str) -> None:
        child = self._child(name, module)
        child.start()
        if child.wait(PATIENCE_S) != 0:
            raise child.failure("failed")

    def _child(self, name: str, module: str, **settings: Any) -> Child:
        command = [sys.executable, "-m", module]
        environment = environment_of(self.settings.model_copy(update=settings))
        return Child(name, command, environment, self.directory / f"{name}.log")

    def forget(self) -> None:
        """An empty store."""
        connect(self.settings, timeout_s=60.0).flushall()

    def forget_state(self) -> None:
        """Everything but the log."""
        client = connect(self.settings, timeout_s=60.0)
        keys = [key for key in client.scan_iter(count=10_000) if not key.startswith(_LOG)]
        for start in range(0, len(keys), 10_000):
            client.unlink(*keys[start : start + 10_000])

    def append(self, made: Iterable[Entry]) -> None:
        """Append entries to the log, those of different partitions together."""
        log, together = self.log, dict[int, tuple[bytes, int]]()

        def send() -> None:
            log.append({p: payload for p, (payload, _) in together.items()}, {p: n for p, (_, n) in together.items()})
            together.clear()

        for partition, payload, count in made:
            if partition in together:
                send()
            together[partition] = payload, count
        send()

    @contextmanager
    def workers(self, count: int, **settings: Any) -> Iterator[list[Child]]:
        """Workers of the feature flow as processes, with changed settings; ended in order."""
        children = [self._child(f"features-{number}", "flows.features", **settings) for number in range(count)]
        for child in children:
            child.start()
        try:
            yield children
        finally:
            for child in children:
                child.terminate()
            for child in children:
                child.wait(60.0)

    def watch(self, workers: Sequence[Child], until: int) -> list[Look]:
        """Look at the state until it has taken in so many events."""
        client = connect(self.settings)
        looks: list[Look] = []
        processes = [psutil.Process(worker.pid) for worker in workers]
        valkey = psutil.Process(self.server.child.pid)
        began = time.monotonic()
        while not looks or looks[-1].events < until:
            if time.monotonic() - began > PATIENCE_S:
                raise TimeoutError(
                    f"{looks[-1].events} of {until} events after {PATIENCE_S:.0f} s; see {self.directory}"
                )
            statuses = read_status(client, range(self.settings.shards)).values()
            events = sum(status.counters.get(kind, 0) for status in statuses for kind in ("events", "duplicates"))
            measured = [_measure(processes), _measure([valkey])]
            looks.append(Look(time.perf_counter(), events, *measured[0], *measured[1]))
            time.sleep(_EVERY_S)
        return looks


def made(behaviour: Behaviour, events: int, first: int = 0) -> Iterator[Entry]:
    """Made behaviour as entries of the log."""
    return ((partition, payload, len(records)) for partition, payload, records in entries(behaviour, events, first))


def _measure(processes: Sequence[psutil.Process]) -> tuple[float, float]:
    """Resident MB and processor seconds, together."""
    memory = sum(process.memory_info().rss for process in processes) / 2**20
    return memory, sum(sum(process.cpu_times()[:2]) for process in processes)
