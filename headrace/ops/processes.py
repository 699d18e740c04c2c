"""The processes of a running stack: who they are, written down so that another command can end exactly them.

A process is known by its number and the time it was created: a number that the system gave to somebody else since is
never ended. Descendants (Ray's raylet, HAProxy) are written down too, because they outlive a killed parent. What a supervisor started and
had no time to write down, when it was killed, is known by its environment.
"""

import fcntl
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

import psutil

RECORD_FILE = "processes.json"
LOCK_FILE = "stack.lock"
MARK = "HEADRACE_PART_OF"
# Creation times come in clock ticks of 10 ms.
SAME_CREATION_S = 0.5


@dataclass(frozen=True)
class ProcessRef:
    """A process of ours: what it does for the stack, its number, and when the system created it (Unix seconds)."""

    name: str
    pid: int
    created: float

    @property
    def since(self) -> datetime:
        return datetime.fromtimestamp(self.created, tz=UTC)

    def __str__(self) -> str:
        return f"{self.name} (pid {self.pid})"


class StackHeldError(RuntimeError):
    """Another stack runs in the same data directory."""


def reference(name: str, pid: int) -> ProcessRef:
    """The process that has this number now. Raises psutil.NoSuchProcess if none has."""
    return ProcessRef(name, pid, psutil.Process(pid).create_time())


def running(ref: ProcessRef) -> psutil.Process | None:
    """The process, unless it has ended or its number belongs to another one by now."""
    try:
        process = psutil.Process(ref.pid)
        is_same = abs(process.create_time() - ref.created) < SAME_CREATION_S
        return process if is_same and process.status() != psutil.STATUS_ZOMBIE else None
    except psutil.NoSuchProcess:
        return None


def mark(name: str, run_dir: Path) -> dict[str, str]:
    """The variable that makes a process, and those that it starts, known as this part of this stack. The directory must be there."""
    return {MARK: f"{name}@{_identity(run_dir)}"}


def _identity(run_dir: Path) -> str:
    """Of the directory itself: in a container another one may have the same path."""
    found = run_dir.stat()
    return f"{found.st_dev}:{found.st_ino}:{run_dir.resolve()}"


def marked(run_dir: Path) -> list[ProcessRef]:
    """Those that run. Not this process, nor one that it was started by."""
    if not run_dir.is_dir():
        return []
    identity = _identity(run_dir)
    ours = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
    found = []
    for process in psutil.process_iter(["create_time"]):
        try:
            name, _, of = process.environ().get(MARK, "").partition("@")
        except psutil.Error:  # ended meanwhile, or another user's
            continue
        if of == identity and process.pid not in ours:
            found.append(ProcessRef(name, process.pid, process.info["create_time"]))
    return found


def with_descendants(refs: Iterable[ProcessRef]) -> list[ProcessRef]:
    """Those of `refs` that run, each followed by its descendants, named `<ancestor>/<program>`."""
    children: dict[int, list[psutil.Process]] = {}
    for process in psutil.process_iter(["ppid"]):
        children.setdefault(process.info["ppid"], []).append(process)
    found = {ref.pid: ref for ref in refs if running(ref)}
    pending = list(found.values())
    while pending:
        parent = pending.pop()
        for process in children.get(parent.pid, []):
            try:
                child = ProcessRef(f"{parent.name.split('/')[0]}/{process.name()}", process.pid, process.create_time())
            except psutil.NoSuchProcess:
                continue
            if child.pid not in found:
                found[child.pid] = child
                pending.append(child)
    return list(found.values())


def end(refs: Iterable[ProcessRef], patience_s: float) -> list[ProcessRef]:
    """End these and their descendants: SIGTERM, and SIGKILL to what is left after `patience_s`. Returns them."""
    ended = with_descendants(refs)
    _signal(ended, "terminate")
    psutil.wait_procs([process for ref in ended if (process := running(ref))], timeout=patience_s)
    stubborn = with_descendants(ended)
    _signal(stubborn, "kill")
    psutil.wait_procs([process for ref in stubborn if (process := running(ref))], timeout=patience_s)
    return ended


def _signal(refs: Sequence[ProcessRef], verb: str) -> None:
    for ref in refs:
        process = running(ref)
        if process is not None:
            try:
                getattr(process, verb)()
            except psutil.NoSuchProcess:
                continue


@dataclass(frozen=True)
class StackRecord:
    """What `var/run/processes.json` holds."""

    supervisor: ProcessRef
    processes: tuple[ProcessRef, ...]


def read_record(run_dir: Path) -> StackRecord | None:
    path = run_dir / RECORD_FILE
    if not path.exists():
        return None
    try:
        raw = json.loads(path.read_text())
        return StackRecord(ProcessRef(**raw["supervisor"]), tuple(ProcessRef(**each) for each in raw["processes"]))
    except (ValueError, LookupError, TypeError):  # cut short with the power: no process of then runs
        return None


def holder(run_dir: Path) -> ProcessRef | None:
    """The supervising process of the stack that runs in this data directory, if one does."""
    record = read_record(run_dir)
    return record.supervisor if record and running(record.supervisor) else None


def end_leftovers(run_dir: Path, patience_s: float = 3.0) -> list[ProcessRef]:
    """End what a killed supervisor left: processes that are recorded or marked, and their descendants. Returns those that ran."""
    record = read_record(run_dir)
    ended = end([*marked(run_dir), *(record.processes if record else ())], patience_s)
    (run_dir / RECORD_FILE).unlink(missing_ok=True)
    return ended


class ProcessTable:
    """The record of this process's stack, held from `claim` to `release`.

    Holding is a lock on a file, which the system drops with the process: two commands started at once cannot both hold.
    """

    def __init__(self, run_dir: Path) -> None:
        self._run_dir = run_dir
        self._lock: IO[str] | None = None
        self._known: dict[int, ProcessRef] = {}
        self._supervisor = reference("supervisor", os.getpid())

    def claim(self) -> list[ProcessRef]:
        """Become the holder; returns the leftovers of a killed one, which were ended. Raises StackHeldError."""
        self._run_dir.mkdir(parents=True, exist_ok=True)
        lock = (self._run_dir / LOCK_FILE).open("w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            lock.close()
            raise StackHeldError(held_message(self._run_dir)) from error
        self._lock = lock
        leftovers = end_leftovers(self._run_dir)
        self._write()
        return leftovers

    def add(self, name: str, pid: int) -> None:
        self._known[pid] = reference(name, pid)
        self._write()

    def refresh(self) -> None:
        """Forget what has ended, and write down descendants that are new."""
        known = {ref.pid: ref for ref in with_descendants(self._known.values())}
        if known != self._known:
            self._known = known
            self._write()

    def of(self, name: str) -> list[ProcessRef]:
        """The running process `name` and its descendants, also those whose parent has ended."""
        self.refresh()
        return [ref for ref in self._known.values() if ref.name.split("/")[0] == name]

    def all(self) -> list[ProcessRef]:
        self.refresh()
        return list(self._known.values())

    def release(self) -> None:
        """Forget the record; call when all processes have ended."""
        if self._lock is not None:
            (self._run_dir / RECORD_FILE).unlink(missing_ok=True)
            self._lock.close()
            self._lock = None

    def _write(self) -> None:
        record = StackRecord(self._supervisor, tuple(self._known.values()))
        draft = self._run_dir / f"{RECORD_FILE}.new"
        draft.write_text(json.dumps(asdict(record), indent=1))
        draft.replace(self._run_dir / RECORD_FILE)


def held_message(run_dir: Path) -> str:
    owner = holder(run_dir)
    who = f"pid {owner.pid}, since {owner.since:%Y-%m-%d %H:%M:%S} UTC" if owner else "a process that is just starting"
    remedy = "end it with `headrace down`, or set HEADRACE_DATA to another directory"
    return f"a stack already runs in {run_dir.parent} ({who}); {remedy}"
