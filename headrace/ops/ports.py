"""Ports on this machine: a free one, and who holds one that is not."""

import random
import socket
from pathlib import Path
from typing import Final

import psutil

# Above the ports of Ray's workers, below those that Linux gives to outgoing connections by default.
_FIRST: Final = 20_000
_LAST: Final = 32_767
OUTGOING: Final = Path("/proc/sys/net/ipv4/ip_local_port_range")
_ATTEMPTS: Final = 100


class PortHeldError(RuntimeError):
    """A port that the stack needs belongs to another process."""


def free_port() -> int:
    """A port that nobody listens on. Where the system says which ports it gives to outgoing connections, none of those: what is started
    takes its time, and one might have it by then.
    """
    last = min(_LAST, int(OUTGOING.read_text().split()[0]) - 1) if OUTGOING.exists() else 0
    drawn = (random.SystemRandom().randint(_FIRST, last) for _ in range(_ATTEMPTS if last > _FIRST else 0))
    found = next((port for port in drawn if is_free(port)), None)
    return _any_port() if found is None else found


def _any_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def is_free(port: int, host: str = "") -> bool:
    """Whether nobody listens there. An empty host means every interface."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
        return True


def check_free(ports: dict[str, int]) -> None:
    """Raises PortHeldError with the first of `{setting: port}` that is taken, who holds it, and what to set."""
    for setting, port in ports.items():
        if not is_free(port):
            raise PortHeldError(f"port {port} is held by {port_holder(port)}: end it, or set {setting} to another port")


def port_holder(port: int) -> str:
    """`name (pid n)` of the listening process, as far as the system tells us."""
    try:
        connections = psutil.net_connections(kind="tcp")
    except psutil.AccessDenied:
        return "another process"
    for connection in connections:
        if (
            connection.laddr
            and connection.laddr.port == port
            and connection.status == psutil.CONN_LISTEN
            and connection.pid
        ):
            try:
                return f"{psutil.Process(connection.pid).name()} (pid {connection.pid})"
            except psutil.NoSuchProcess:
                continue
    return "another user's process"
