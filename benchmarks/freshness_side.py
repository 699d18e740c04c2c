"""One side of the freshness benchmark: probes under a load, and what the processes of the running stack used meanwhile."""

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import psutil

from benchmarks.freshness_figures import Usage, usage_of
from benchmarks.probes import Counts, Probe, run_probes
from benchmarks.report import watched_memory
from headrace.clock import system_clock
from headrace.ops.child import environment_of
from headrace.ops.processes import read_record, running
from headrace.ops.stack import SERVING
from headrace.settings import Settings
from headrace.stores.log import open_log
from headrace.stores.redis_client import connect

FEATURE_FLOW: Final = "flow-features"
WARM_UP_S: Final = 5.0


@dataclass(frozen=True)
class Measured:
    """`load` is what the load's process said at its end; `peak_mb` resident memory of the processes that compute the feature."""

    probes: list[Probe]
    load: dict[str, Any]
    usage: list[Usage]
    peak_mb: float

    def details(self) -> dict[str, Any]:
        return {
            "probes": len(self.probes),
            "refusals": sum(probe.refusals for probe in self.probes),
            "load": self.load,
            "cpu": {usage.part: round(usage.cpu, 3) for usage in self.usage},
            "memory_mb": {usage.part: round(usage.mb) for usage in self.usage},
        }


def measure(
    settings: Settings, counts: Counts, flows: Sequence[psutil.Process], seconds: float, label: str
) -> Measured:
    """Probes for `seconds`, after a warm-up without load and one with it; `flows` compute what `counts` reads."""
    log = open_log(connect(settings), settings)
    run_probes(settings, log, counts, WARM_UP_S, system_clock, f"{label}-first")
    with _load(settings) as load, ExitStack() as watching:
        run_probes(settings, log, counts, WARM_UP_S, system_clock, f"{label}-warm")
        own = {flow: label for flow in flows} | {psutil.Process(load.pid): "load", psutil.Process(): "probes"}
        samples = [watching.enter_context(watched_memory(flow)) for flow in flows]
        with usage_of(parts_of_the_stack(settings) | own) as usage:
            probes = run_probes(settings, log, counts, seconds, system_clock, label)
        load.terminate()
        output, _ = load.communicate()
    if load.returncode != 0:
        raise RuntimeError(f"the load ended with exit code {load.returncode}")
    return Measured(probes, json.loads(output), usage, sum(max(each) for each in samples))


def feature_flows(settings: Settings) -> list[psutil.Process]:
    """The stack's own feature flow, all its processes."""
    return [process for process, part in parts_of_the_stack(settings).items() if part == FEATURE_FLOW]


@contextmanager
def _load(settings: Settings) -> Iterator["subprocess.Popen[str]"]:
    command = [sys.executable, "-m", "benchmarks.load"]
    with subprocess.Popen(command, env=environment_of(settings), stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def parts_of_the_stack(settings: Settings) -> dict[psutil.Process, str]:
    """Every process of the stack, and the part that it belongs to."""
    record = read_record(settings.run_dir)
    assert record is not None, "the stack runs"
    found = [(ref.name, process) for ref in record.processes if (process := running(ref))]
    return {process: _part(name, _title(process)) for name, process in found}


def _part(name: str, title: str) -> str:
    """Ray names its processes after what they hold; those of a flow and of the server bear the part's name."""
    if name.startswith(FEATURE_FLOW):
        return FEATURE_FLOW
    if name.startswith(SERVING):
        return next((part for part in ("collector", "recommender", "haproxy") if part in title), "rest of Ray Serve")
    return name.split("/")[0]


def _title(process: psutil.Process) -> str:
    command = process.cmdline()
    return Path(command[0].split()[0]).name if command else ""
