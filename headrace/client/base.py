"""What both clients are made of: keys, the outbox and its thread, and what needs no waiting."""

import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

from headrace.client import calls
from headrace.client.answers import EventsAnswer, RefusedEvent
from headrace.client.calls import KeyKind, Options
from headrace.client.config import ClientConfig
from headrace.client.disk_spool import DiskSpool
from headrace.client.errors import ClosedError, HeadraceError, UnauthorizedError
from headrace.client.outbox import OnRefused, Outbox, Stats
from headrace.client.sender import Sender
from headrace.client.spool import MemorySpool, Spool
from headrace.client.transport import Door, ask
from headrace.clock import Clock, system_clock
from headrace.identity import user_key


class BaseClient(ABC):
    """A client of one API. Safe for threads; a process forked from this one must make its own."""

    def __init__(
        self,
        base_url: str,
        *,
        event_key: str | None = None,
        read_key: str | None = None,
        admin_key: str | None = None,
        spool: Path | str | None = None,
        config: ClientConfig | None = None,
        on_refused: OnRefused | None = None,
        clock: Clock = system_clock,
    ) -> None:
        """Connects with the first use; what waits in the spool is sent from now on.

        `spool` is a directory on a local disk, of one client at a time. Without it events wait in memory and end with the process.
        `on_refused` is called, in the sending thread, with each event that the server will never take; it must not flush or close.
        Raises SpoolHeldError, SpoolError, ValueError.
        """
        keys: dict[KeyKind, str | None] = {"event_key": event_key, "read_key": read_key, "admin_key": admin_key}
        self._config = config or ClientConfig()
        self._door = Door(base_url, keys, self._config, clock)
        self._process = os.getpid()
        self._closed = False
        self._connect()
        self._sender: Sender | None = None
        if event_key:
            self._sender = _start_sender(self._door, Path(spool) if spool is not None else None, on_refused)
        elif spool is not None:
            raise ValueError(f"a spool ({spool}) is of use to a client that sends events: pass event_key= too")

    @abstractmethod
    def _connect(self) -> None:
        """Prepare what requests go through."""

    @property
    def refused(self) -> tuple[RefusedEvent, ...]:
        """The last events that the server will never take (ClientConfig.remembered_refusals), oldest first."""
        return self._sending().outbox.refused

    @property
    def trouble(self) -> HeadraceError | None:
        """Why events wait: what the last attempt to send them said. None while they are taken."""
        return self._sending().outbox.trouble

    def stats(self) -> Stats:
        """Numbers of events."""
        return self._sending().outbox.stats()

    def last_token(self, user_id: str | None = None, anonymous_id: str | None = None) -> str | None:
        """For `after`: the last acknowledgement that this client got for an event of this user; None before the first.

        Also of a user among many (ClientConfig.remembered_users): the longest unused are forgotten.
        """
        return self._sending().outbox.last_token(user_key(user_id, anonymous_id))

    def _with_own_events(self, options: Options, see_own_events: bool) -> Options:
        """The options, with the last token of the user in `after` if that is asked for."""
        self._check()
        user = calls.user_asked(options)
        if not see_own_events or user is None or options.get("after") is not None:
            return options
        return {**options, "after": self._sending().outbox.last_token(user)}

    def _sending(self) -> Sender:
        self._check_process()
        if self._sender is None:
            raise UnauthorizedError(
                "the client was made without a key for events: pass event_key=, one of HEADRACE_EVENT_KEYS"
            )
        return self._sender

    def _check(self) -> None:
        self._check_process()
        if self._closed:
            raise ClosedError("the client is closed: make a new one")

    def _check_process(self) -> None:
        if os.getpid() != self._process:
            raise ClosedError(
                f"the client was made by process {self._process}, this is {os.getpid()}: make one in each process, after the fork"
            )

    def _may_close(self) -> bool:
        """Whether there is something to close: not twice, and nothing of a parent's in a forked process."""
        if self._closed or os.getpid() != self._process:
            return False
        self._closed = True
        return True


def _start_sender(door: Door, folder: Path | None, on_refused: OnRefused | None) -> Sender:
    config = door.config
    spool = _open_spool(folder, config)
    http = door.open(config.events_timeout_s)

    def post(events: Sequence[bytes]) -> EventsAnswer:
        return ask(http, door, calls.send_events(events))

    def let_go() -> None:
        http.close()
        spool.close()

    return Sender(Outbox(spool, config, on_refused), post, config, door.clock, let_go)


def _open_spool(folder: Path | None, config: ClientConfig) -> Spool:
    if folder is None:
        return MemorySpool(config.spool_bytes)
    return DiskSpool(folder, config.spool_bytes, durable=config.durable)
