"""Where events wait until the server has acknowledged them. In memory here, on disk in headrace.client.disk_spool."""

import threading
from collections import deque
from dataclasses import dataclass
from typing import Protocol

from headrace.client.errors import ClosedError, SpoolFullError


@dataclass(frozen=True)
class Taken:
    """The oldest events of a spool, and the place (file, byte) after them that `ack` is told."""

    events: tuple[bytes, ...]
    until: tuple[int, int]


class Spool(Protocol):
    """A bounded queue of encoded events, first in, first out. Any thread may append; one thread takes and acknowledges."""

    keeps: bool
    """Whether what is left when it is closed is there for the next client."""

    @property
    def appended(self) -> int:
        """Events that can be taken or were, those included that a former client left."""
        ...

    @property
    def acknowledged(self) -> int:
        """Of those, how many were acknowledged: always the first ones."""
        ...

    @property
    def damaged(self) -> int:
        """Pieces found that are no whole event: cut short by a crash before their append returned."""
        ...

    def append(self, event: bytes) -> None:
        """Keep an event. Raises SpoolFullError, SpoolError, ClosedError: then it is not kept, unless the flush to disk failed."""
        ...

    def take(self, most_events: int, most_bytes: int) -> Taken:
        """The oldest events, not beyond the bounds but for a single larger one. They stay until `ack`."""
        ...

    def ack(self, taken: Taken) -> None:
        """Forget the events of the last `take`."""
        ...

    def close(self) -> None: ...


class MemorySpool:
    """Events in memory: what is not acknowledged ends with the process."""

    keeps = False
    damaged = 0

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._events: deque[bytes] = deque()
        self._bytes = 0
        self._closed = False
        self._lock = threading.Lock()
        self.appended = 0
        self.acknowledged = 0

    def append(self, event: bytes) -> None:
        with self._lock:
            if self._closed:
                raise ClosedError("the client is closed: make a new one")
            if self._bytes + len(event) > self._max_bytes:
                raise SpoolFullError(full_message("memory", self._bytes, self._max_bytes))
            self._events.append(event)
            self._bytes += len(event)
            self.appended += 1

    def take(self, most_events: int, most_bytes: int) -> Taken:
        taken: list[bytes] = []
        with self._lock:
            for event in self._events:
                most_bytes -= len(event)
                if taken and (len(taken) >= most_events or most_bytes < 0):
                    break
                taken.append(event)
        return Taken(tuple(taken), (0, len(taken)))

    def ack(self, taken: Taken) -> None:
        with self._lock:
            for _ in taken.events:
                self._bytes -= len(self._events.popleft())
            self.acknowledged += len(taken.events)

    def close(self) -> None:
        with self._lock:
            self._closed = True


def full_message(where: str, held: int, bound: int) -> str:
    return (
        f"the spool in {where} holds {held} bytes of events that wait for the server, its bound is {bound} (ClientConfig.spool_bytes): "
        "send again when the server is back, or allow more"
    )
