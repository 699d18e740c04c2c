"""Requests to one HTTP path from a process of its own, with as little of the processors as Python can: one thread, one epoll, bytes ready.

`ask` runs phases in a child process (`python -m benchmarks.asking FOLDER`) and returns what became of each request. A closed phase keeps
so many connections busy; an open one sends on a schedule whatever became of the requests before, and counts each from the moment that it
was due. Phases follow each other without a pause: what an open one leaves unanswered is still waited for in the next.
"""

import argparse
import json
import resource
import select
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Final

import numpy as np
import orjson

from headrace.arrays import Floats, Ints

PATIENCE_S: Final = 10.0
MOST_CONNECTIONS: Final = 4_000
BROKEN: Final = 0
_READ_BYTES: Final = 1 << 18
_SOON_S: Final = 0.1
_END: Final = b"\r\n\r\n"
_LENGTH: Final = b"content-length: "


@dataclass(frozen=True)
class Phase:
    """`connections` that each wait for their answer, or `rate` requests/s on schedule; at least `requests` and `seconds`."""

    name: str
    seconds: float
    connections: int = 0
    rate: float = 0.0
    requests: int = 0


@dataclass(frozen=True)
class Target:
    """Where to, and the whole requests, one of which is drawn each time. `complete`: what a whole answer's body contains."""

    host: str
    port: int
    requests: Sequence[bytes]
    complete: bytes = b""


@dataclass(frozen=True)
class Asked:
    """The requests of one phase in the order of their ends. Seconds from the phase's begin: `due_s`, when each was due or sent,
    `done_s`, when it was answered. `status` is HTTP's, 0 for a connection that broke or an answer that never came.
    """

    phase: Phase
    due_s: Floats
    done_s: Floats
    status: Ints
    late_s: Floats
    """How late each was sent."""
    incomplete: dict[str, int] = field(default_factory=dict)
    """Answers with status 200 without `Target.complete`, by what they say is `degraded`."""
    cpu_us: float = 0.0
    """Processor time of the asking process, microseconds a request."""

    @property
    def took_s(self) -> Floats:
        """Of those answered 200."""
        took_s: Floats = (self.done_s - self.due_s)[self.status == 200]
        return took_s

    @property
    def rate(self) -> float:
        """Answers 200 a second within the phase's time."""
        return float(((self.done_s <= self.phase.seconds) & (self.status == 200)).sum() / self.phase.seconds)

    @property
    def incomplete_share(self) -> float:
        """Of the answers 200."""
        return sum(self.incomplete.values()) / max(1, len(self.took_s))

    @property
    def statuses(self) -> dict[str, int]:
        return {str(status): count for status, count in sorted(Counter(self.status.tolist()).items())}


def request_bytes(host: str, port: int, path: str, body: object, key: str = "") -> bytes:
    """`POST path` with this body as JSON, on a connection that stays open."""
    content = orjson.dumps(body)
    authorization = f"authorization: Bearer {key}\r\n" if key else ""
    head = (
        f"POST {path} HTTP/1.1\r\nhost: {host}:{port}\r\n{authorization}"
        f"content-type: application/json\r\ncontent-length: {len(content)}\r\n\r\n"
    )
    return head.encode() + content


def ask(target: Target, phases: Sequence[Phase], folder: Path, seed: int = 0) -> list[Asked]:
    """Run the phases in a process of its own, which leaves its files in `folder`. Raises subprocess.CalledProcessError."""
    with asking(target, phases, folder, seed) as process:
        process.wait()
    return asked(process, folder)


@contextmanager
def asking(target: Target, phases: Sequence[Phase], folder: Path, seed: int = 0) -> Iterator["subprocess.Popen[bytes]"]:
    """The same beside what the block does; `asked` gives what it found, once it has ended. SIGTERM ends a phase early. What is
    left of it at the block's end is killed."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "requests").write_bytes(b"".join(target.requests))
    plan = {
        "host": target.host,
        "port": target.port,
        "lengths": [len(request) for request in target.requests],
        "complete": target.complete.decode(),
        "phases": [asdict(phase) for phase in phases],
        "seed": seed,
    }
    (folder / "plan.json").write_text(json.dumps(plan))
    with subprocess.Popen([sys.executable, "-m", "benchmarks.asking", str(folder)]) as process:
        try:
            yield process
        finally:
            process.kill()


def asked(process: "subprocess.Popen[bytes]", folder: Path) -> list[Asked]:
    """What an ended process found, phase by phase."""
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, process.args)
    notes = json.loads((folder / "notes.json").read_text())
    arrays = np.load(folder / "asked.npz")
    found = []
    for number, note in enumerate(notes):
        own = {name: arrays[f"{name}_{number}"] for name in ("due_s", "done_s", "status", "late_s")}
        found.append(Asked(Phase(**note["phase"]), **own, incomplete=note["incomplete"], cpu_us=note["cpu_us"]))
    return found


class _Connection:
    """One request at a time: `due_s` and `phase` are those of the one in flight."""

    __slots__ = ("asked", "due_s", "phase", "received", "socket", "used")

    def __init__(self, host: str, port: int) -> None:
        self.socket = socket.create_connection((host, port), PATIENCE_S)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.setblocking(False)
        self.received = b""
        self.asked = b""
        self.due_s = 0.0
        self.phase = 0
        self.used = False


class _Asker:
    def __init__(self, target: Target, phases: Sequence[Phase], seed: int) -> None:
        self._target = target
        self._phases = phases
        self._order = np.random.default_rng(seed).integers(len(target.requests), size=1 << 16).tolist()
        self._sent = 0
        self._epoll = select.epoll()
        self._busy: dict[int, _Connection] = {}
        self._idle: list[_Connection] = []
        self._phase = 0
        self.asked_to_end = False
        self._counts = [0] * len(phases)
        self.begun_s = [0.0] * len(phases)
        self.cpu_s = [0.0] * len(phases)
        self.due_s: list[list[float]] = [[] for _ in phases]
        self.done_s: list[list[float]] = [[] for _ in phases]
        self.late_s: list[list[float]] = [[] for _ in phases]
        self.status: list[list[int]] = [[] for _ in phases]
        self.incomplete: list[Counter[str]] = [Counter() for _ in phases]

    def run(self) -> None:
        for number, phase in enumerate(self._phases):
            self._phase = number
            self.begun_s[number], cpu_s = time.perf_counter(), time.process_time()
            if phase.rate:
                self._run_open(phase)
            else:
                self._run_closed(phase)
            self.cpu_s[number] = time.process_time() - cpu_s
        self._finish()

    def _run_closed(self, phase: Phase) -> None:
        end_s = self.begun_s[self._phase] + phase.seconds
        while (now_s := time.perf_counter()) < end_s or self._counts[self._phase] < phase.requests:
            if self.asked_to_end:
                break
            while len(self._busy) < phase.connections:
                self._send(time.perf_counter())
            self._receive(_SOON_S if now_s >= end_s else min(1.0, end_s - now_s))
        self._finish()

    def _run_open(self, phase: Phase) -> None:
        begun_s, rate = self.begun_s[self._phase], phase.rate
        for number in range(int(rate * phase.seconds)):
            if self.asked_to_end:
                break
            due_s = begun_s + number / rate
            while (wait_s := due_s - time.perf_counter()) > 0:
                # To the microsecond: epoll itself waits in whole milliseconds.
                select.select([self._epoll], [], [], wait_s)
                self._receive(0.0)
            self._send(due_s)
            if number % 64 == 0:
                self._receive(0.0)

    def _finish(self) -> None:
        """Until nothing is in flight."""
        while self._busy:
            self._receive(_SOON_S)

    def _send(self, due_s: float) -> None:
        if len(self._busy) >= MOST_CONNECTIONS:
            self._note(self._phase, due_s, BROKEN)
            return
        request = self._target.requests[self._order[self._sent % len(self._order)]]
        self._sent += 1
        try:
            connection = self._idle.pop() if self._idle else _Connection(self._target.host, self._target.port)
        except OSError:
            self._note(self._phase, due_s, BROKEN)
            time.sleep(0.001)
            return
        connection.due_s, connection.phase, connection.asked = due_s, self._phase, request
        self.late_s[self._phase].append(time.perf_counter() - due_s)
        self._busy[connection.socket.fileno()] = connection
        self._epoll.register(connection.socket.fileno(), select.EPOLLIN)
        try:
            connection.socket.send(request)
        except OSError:
            self._lose(connection)

    def _receive(self, wait_s: float) -> None:
        for descriptor, _ in self._epoll.poll(wait_s):
            connection = self._busy[descriptor]
            try:
                piece = connection.socket.recv(_READ_BYTES)
            except BlockingIOError:
                continue
            except OSError:
                piece = b""
            if piece:
                connection.received += piece
                self._take(connection)
            else:
                self._lose(connection)
        self._give_up()

    def _take(self, connection: _Connection) -> None:
        """Note the answer, once all of it is there."""
        received = connection.received
        end = received.find(_END)
        if end < 0:
            return
        head = received[:end].lower()
        at = head.find(_LENGTH) + len(_LENGTH)
        stop = head.find(b"\r", at)
        if len(received) < end + len(_END) + int(head[at : stop if stop >= 0 else end]):
            return
        status = int(head[9:12])
        self._note(connection.phase, connection.due_s, status)
        if status == 200 and self._target.complete not in received:
            self.incomplete[connection.phase][_what_lacks(received[end + len(_END) :])] += 1
        self._leave(connection, stays=b"connection: close" not in head)

    def _lose(self, connection: _Connection) -> None:
        """The server may close a connection that idles: then the request is sent once more, on a new one."""
        again, due_s, phase = connection.used, connection.due_s, connection.phase
        self._leave(connection, stays=False)
        if not again:
            self._note(phase, due_s, BROKEN)
            return
        for idle in self._idle:
            idle.socket.close()
        self._idle.clear()
        self.late_s[self._phase].pop()
        self._send(due_s)

    def _leave(self, connection: _Connection, stays: bool) -> None:
        descriptor = connection.socket.fileno()
        self._epoll.unregister(descriptor)
        del self._busy[descriptor]
        connection.received = b""
        if stays:
            connection.used = True
            self._idle.append(connection)
        else:
            connection.socket.close()

    def _give_up(self) -> None:
        """The oldest is first: connections are kept in the order in which they were sent on."""
        while self._busy:
            oldest = next(iter(self._busy.values()))
            if time.perf_counter() - oldest.due_s < PATIENCE_S:
                return
            self._note(oldest.phase, oldest.due_s, BROKEN)
            self._leave(oldest, stays=False)

    def _note(self, phase: int, due_s: float, status: int) -> None:
        self._counts[phase] += 1
        self.due_s[phase].append(due_s)
        self.done_s[phase].append(time.perf_counter())
        self.status[phase].append(status)


def _what_lacks(body: bytes) -> str:
    return ", ".join(map(str, orjson.loads(body).get("degraded", ["no `degraded`"]))) or "nothing named"


def _save(asker: _Asker, phases: Sequence[Phase], folder: Path) -> None:
    arrays: dict[str, Any] = {}
    notes = []
    for number, phase in enumerate(phases):
        begun_s = asker.begun_s[number]
        arrays[f"due_s_{number}"] = np.asarray(asker.due_s[number]) - begun_s
        arrays[f"done_s_{number}"] = np.asarray(asker.done_s[number]) - begun_s
        arrays[f"late_s_{number}"] = np.asarray(asker.late_s[number])
        arrays[f"status_{number}"] = np.asarray(asker.status[number], np.int64)
        cpu_us = asker.cpu_s[number] / max(1, len(asker.status[number])) * 1e6
        notes.append({"phase": asdict(phase), "incomplete": asker.incomplete[number], "cpu_us": round(cpu_us, 1)})
    np.savez(folder / "asked.npz", **arrays)
    (folder / "notes.json").write_text(json.dumps(notes))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="with plan.json and requests; the results go there too")
    folder = parser.parse_args().folder
    plan = json.loads((folder / "plan.json").read_text())
    together, requests, start = (folder / "requests").read_bytes(), [], 0
    for length in plan["lengths"]:
        requests.append(together[start : start + length])
        start += length
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(most, 2 * MOST_CONNECTIONS), most))
    phases = [Phase(**phase) for phase in plan["phases"]]
    asker = _Asker(Target(plan["host"], plan["port"], requests, plan["complete"].encode()), phases, plan["seed"])

    def end(_number: int, _frame: FrameType | None) -> None:
        asker.asked_to_end = True

    signal.signal(signal.SIGTERM, end)
    asker.run()
    _save(asker, phases, folder)


if __name__ == "__main__":
    main()
