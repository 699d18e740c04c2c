"""The stack as processes on one machine: Valkey, the two flows and serving, under one supervisor.

`up` is the whole stack, left running. `Stack` is the same in steps, for a caller that does something between them.
"""

import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import psutil
from rich.console import Console
from rich.table import Table

from headrace.ops.api import Api
from headrace.ops.child import EXCHANGED, Child, ChildFailedError, environment_of, failure_of
from headrace.ops.interrupts import Interrupted, Interrupts
from headrace.ops.keys import KEYS_FILE, with_keys
from headrace.ops.ports import PortHeldError, check_free
from headrace.ops.processes import (
    ProcessRef,
    ProcessTable,
    end,
    end_leftovers,
    holder,
    mark,
    read_record,
    running,
    with_descendants,
)
from headrace.ops.status import add_serving_rows
from headrace.ops.valkey import NAME as VALKEY
from headrace.ops.valkey import ValkeyServer, embedded_server, forget_address, write_address
from headrace.settings import Settings

FLOWS: Final = {"flow-features": "flows.features", "flow-lake": "flows.lake"}
SERVING: Final = "serving"
# Where `headrace demo` keeps its own data directory, inside the user's.
DEMO: Final = "demo"

READY_TIMEOUT_S: Final = 120.0
# Ray ends its own processes when serving is asked to end; what is still there after this is killed.
PATIENCE_S: Final = 6.0
# How long `down` waits for the supervisor to end its children in order.
DOWN_TIMEOUT_S: Final = 20.0
CHECK_EVERY_S: Final = 1.0
# A stack that runs for longer is to be learnt from: what it shows of one order alone says nothing of others.
EXPLORATION: Final = 0.05
LONGEST_BACKOFF_S: Final = 30.0
# A part that ran this long starts again at once: its failures are not one story.
STEADY_S: Final = 60.0

Say = Callable[[str], None]


@dataclass
class _Part:
    """A supervised process and its luck so far."""

    child: Child
    start: Callable[[], int]
    started: float = field(default_factory=time.monotonic)
    failures: int = 0
    retry_at: float | None = None


class Stack:
    """Holds the data directory, starts parts one by one, again those that end by themselves, and ends all on exit."""

    def __init__(self, settings: Settings, say: Say, interrupts: Interrupts) -> None:
        self.settings = settings
        self._say = say
        self._interrupts = interrupts
        self._table = ProcessTable(settings.run_dir)
        self._parts: dict[str, _Part] = {}
        self._valkey: ValkeyServer | None = None
        self._stopping = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="supervisor", daemon=True)

    def __enter__(self) -> Self:
        """Take the data directory. Raises StackHeldError if another stack has it, PortHeldError if a port is taken."""
        for leftover in self._table.claim():
            self._say(f"ended {leftover}, left behind by a stack that was killed")
        try:
            check_free({"HEADRACE_HTTP_PORT": self.settings.http_port})
        except PortHeldError:
            self._table.release()
            raise
        self.settings = with_keys(self.settings)
        shutil.rmtree(self.settings.metrics_dir, ignore_errors=True)
        self._watcher.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._interrupts.held():
            self._stopping.set()
            self._watcher.join()
            self._end_parts()
            self._table.release()

    @property
    def api(self) -> Api:
        return Api(self.settings)

    def log_of(self, name: str) -> Path:
        return self.settings.log_dir / f"{name}.log"

    def start_valkey(self) -> None:
        """The embedded server, unless HEADRACE_REDIS_URL names another."""
        if self.settings.redis_url:
            return
        server = self._valkey = embedded_server(self.settings)
        self._start(_Part(server.child, server.start))
        write_address(self.settings, server)

    def start_flows(self) -> None:
        for name, module in flow_processes(self.settings.flow_workers).items():
            self._start_module(name, module)

    def start_serving(self, timeout_s: float = READY_TIMEOUT_S) -> None:
        """Starts both Serve applications and waits until they are ready. Raises ChildFailedError."""
        child = self._start_module(SERVING, "serving.app")
        deadline = time.monotonic() + timeout_s
        with self.api as api:
            while not api.is_ready():
                if not child.is_running():
                    raise child.failure(f"ended with exit code {child.exit_code()} before it was ready")
                if time.monotonic() > deadline:
                    raise child.failure(f"was not ready within {timeout_s:.0f} s")
                time.sleep(0.1)

    def run(self, name: str, module: str, *arguments: str, show: bool = False) -> str:
        """Run a job of this stack to its end and return what it printed; with `show`, let it print here.

        Raises ChildFailedError.
        """
        log = self.log_of(name)
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as errors:
            with self._interrupts.held():
                process = subprocess.Popen(
                    [sys.executable, "-m", module, *arguments],
                    env=self._environment_of(name),
                    stdin=subprocess.DEVNULL,
                    stdout=None if show else subprocess.PIPE,
                    stderr=None if show else errors,
                    start_new_session=True,
                )
                self._table.add(name, process.pid)
            try:
                output, _ = process.communicate()
            finally:
                end(self._table.of(name), PATIENCE_S)
        if process.returncode != 0:
            raise failure_of(name, f"ended with exit code {process.returncode}", log)
        return "" if output is None else output.decode()

    def stay(self) -> None:
        """Until interrupted."""
        while True:
            time.sleep(3600)

    def _start_module(self, name: str, module: str) -> Child:
        child = Child(name, [sys.executable, "-m", module], self._environment_of(name), self.log_of(name))
        self._start(_Part(child, child.start))
        return child

    def _environment_of(self, name: str) -> dict[str, str]:
        return environment_of(self.settings) | mark(name, self.settings.run_dir)

    def _start(self, part: _Part) -> None:
        with self._interrupts.held():
            self._parts[part.child.name] = part
            self._table.add(part.child.name, part.start())

    def _watch(self) -> None:
        while not self._stopping.wait(CHECK_EVERY_S):
            self._table.refresh()
            for part in list(self._parts.values()):
                self._care_for(part)

    def _care_for(self, part: _Part) -> None:
        """Start a part again that has ended by itself: at once the first time, then after 2, 4, ... seconds."""
        now, name = time.monotonic(), part.child.name
        if part.retry_at is None:
            code = part.child.exit_code()
            if code is None:
                return
            part.failures = 1 if now - part.started > STEADY_S else part.failures + 1
            wait_s = 0.0 if part.failures == 1 else min(LONGEST_BACKOFF_S, 2.0 ** (part.failures - 1))
            part.retry_at = now + wait_s
            self._say(why_again(name, code, wait_s, part.child.log))
        if now >= part.retry_at:
            end(self._table.of(name), PATIENCE_S)
            part.started, part.retry_at = now, None
            try:
                self._table.add(name, part.start())
            except ChildFailedError as error:
                self._say(str(error))

    def _end_parts(self) -> None:
        """Serving and flows first, together; then Valkey, which they write to until their end."""
        others = [part.child for part in self._parts.values() if part.child.name != VALKEY]
        for child in others:
            child.terminate()
        deadline = time.monotonic() + PATIENCE_S
        for child in others:
            _wait_until(child, deadline)
        end([ref for ref in self._table.all() if ref.name != VALKEY], 2.0)
        if self._valkey is not None:
            self._valkey.stop()
            forget_address(self.settings)


def flow_processes(workers: int) -> dict[str, str]:
    """Name and module of each flow process. Workers of the feature flow share its work."""
    return FLOWS | {f"flow-features-{number}": "flows.features" for number in range(2, workers + 1)}


def why_again(name: str, code: int, wait_s: float, log: Path) -> str:
    """What is said of a part that has ended by itself."""
    if code == EXCHANGED:
        return f"{name} starts again, on the state that `headrace backfill` has rebuilt"
    return f"{name} ended with exit code {code}; starting it again in {wait_s:.0f} s (log: {log})"


def _wait_until(child: Child, deadline: float) -> None:
    try:
        child.wait(max(0.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        return


def up(settings: Settings, console: Console) -> None:
    """Bring the whole stack up and stay until Ctrl-C or SIGTERM; leaves no process and no port behind."""
    interrupts = Interrupts()
    try:
        with (
            interrupts.installed(),
            Stack(with_exploration(settings), lambda line: console.print(line, markup=False), interrupts) as stack,
        ):
            with console.status("starting Valkey"):
                stack.start_valkey()
            with console.status("feast apply"):
                stack.run("apply", "headrace.ops.apply")
            with console.status("starting the flows and serving (about 20 s)"):
                stack.start_flows()
                stack.start_serving()
            console.print(addresses(stack))
            console.print("Ctrl-C ends it.")
            stack.stay()
    except Interrupted:
        console.print("Ended: no process and no port is left.")


def with_exploration(settings: Settings) -> Settings:
    """The settings with EXPLORATION, unless they say themselves how much of it."""
    chosen = "exploration" in settings.model_fields_set
    return settings if chosen else settings.model_copy(update={"exploration": EXPLORATION})


def down(settings: Settings) -> list[ProcessRef]:
    """End the stack of this data directory, or what a killed one left behind. Returns the processes that were ended."""
    owner = holder(settings.run_dir)
    if owner is None:
        demo_run = settings.data / DEMO / "run"
        left_by_demo = end_leftovers(demo_run) if holder(demo_run) is None else []
        return end_leftovers(settings.run_dir) + left_by_demo
    record = read_record(settings.run_dir)
    processes = [] if record is None else with_descendants([owner, *record.processes])
    supervisor = running(owner)
    if supervisor is not None:
        supervisor.terminate()
        psutil.wait_procs([supervisor], timeout=DOWN_TIMEOUT_S)
    end(processes, 2.0)
    end_leftovers(settings.run_dir)
    forget_address(settings)
    return processes


def addresses(stack: Stack) -> Table:
    """Where everything is, which model answers, and what is wrong."""
    base = stack.api.base_url
    table = Table(title="Headrace is up", show_header=False)
    table.add_row("send events", f"POST {base}/v1/events")
    table.add_row("ask for recommendations", f"POST {base}/v1/recommend")
    table.add_row("documentation of the API", f"{base}/docs")
    table.add_row("ready?", f"{base}/readyz")
    table.add_row("keys", str(stack.settings.run_dir / KEYS_FILE))
    table.add_row("logs", str(stack.settings.log_dir))
    with stack.api as api:
        _, serves = api.readiness()
    add_serving_rows(table, serves if isinstance(serves, dict) else {})
    return table
