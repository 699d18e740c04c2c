"""The thread that sends what is in the outbox, and what waits for it: flush and close."""

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from headrace.client.answers import EventsAnswer
from headrace.client.config import ClientConfig
from headrace.client.errors import ClosedError, HeadraceError, TimedOutError, UndeliveredError
from headrace.client.event import encode_event
from headrace.client.outbox import Outbox
from headrace.clock import Clock
from headrace.events import EventIn

logger = logging.getLogger(__name__)

Post = Callable[[Sequence[bytes]], EventsAnswer]
"""Sends encoded events and returns what the API answered. Raises HeadraceError."""


class Sender:
    """Takes events from any thread, sends them in order from one of its own. `let_go` is called when that has ended."""

    def __init__(
        self, outbox: Outbox, post: Post, config: ClientConfig, clock: Clock, let_go: Callable[[], None]
    ) -> None:
        self.outbox = outbox
        self._post = post
        self._config = config
        self._clock = clock
        self._let_go = let_go
        self._changed = threading.Condition()
        self._since = time.monotonic()
        self._hurried = 0
        self._closing = False
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="headrace-client", daemon=True)
        self._thread.start()

    def send(self, event: EventIn | Mapping[str, Any]) -> str:
        """Keep an event to be sent; returns its id. Raises RefusedError, SpoolFullError, SpoolError, ClosedError."""
        event_id, encoded = encode_event(event, self._clock, self._config.max_event_bytes)
        if self._closing:
            raise ClosedError("the client is closed: make a new one")
        self.outbox.spool.append(encoded)
        with self._changed:
            if self.outbox.waiting <= 1:
                self._since = time.monotonic()
            self._changed.notify_all()
        return event_id

    def flush(self, timeout_s: float) -> None:
        """Return when all that was taken before is acknowledged or refused. Raises TimedOutError, ClosedError."""
        target = self.outbox.spool.appended
        if not self._wait_for(target, timeout_s):
            left, trouble = target - self.outbox.spool.acknowledged, self.outbox.trouble
            what = f"{left} events are not acknowledged after {timeout_s} s"
            if self._stopping:
                raise ClosedError(f"{what}, and the client is closed") from trouble
            said = f"the last attempt said: {trouble}" if trouble else "no attempt has failed: allow more time"
            raise TimedOutError(f"{what}; they wait to be sent; {said}") from trouble

    def close(self, timeout_s: float) -> None:
        """Take no more, send what is left for at most `timeout_s`, end the thread.

        Raises UndeliveredError where what is left then is lost.
        """
        self._closing = True
        self._wait_for(self.outbox.spool.appended, timeout_s)
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        self._thread.join(timeout_s + 2 * self._config.events_timeout_s)
        if self._thread.is_alive():
            logger.warning("the request under way has not ended; the spool stays held until it has")
        left = self.outbox.waiting
        if left and not self.outbox.spool.keeps:
            raise UndeliveredError(
                f"{left} events were not acknowledged and are lost with this client: close it later, or give it a spool directory"
            ) from self.outbox.trouble
        if left:
            logger.info("%d events wait in the spool for the next client", left)

    def _wait_for(self, target: int, timeout_s: float) -> bool:
        """Whether the first `target` events are settled in time; meanwhile nothing lingers."""
        with self._changed:
            self._hurried += 1
            self._changed.notify_all()
            try:
                self._changed.wait_for(lambda: self.outbox.spool.acknowledged >= target or self._stopping, timeout_s)
                return self.outbox.spool.acknowledged >= target
            finally:
                self._hurried -= 1

    def _run(self) -> None:
        try:
            while self._wait_for_events():
                pause_s = self._send_once()
                with self._changed:
                    self._changed.notify_all()
                    self._changed.wait_for(lambda: self._stopping, pause_s)
        finally:
            self._let_go()

    def _wait_for_events(self) -> bool:
        """Whether there is something to send, once enough have come together or waited long enough; False to end."""
        with self._changed:
            self._changed.wait_for(lambda: self._stopping or self.outbox.waiting > 0)
            self._changed.wait_for(self._is_due, max(0.0, self._since + self._config.linger_s - time.monotonic()))
            return not self._stopping

    def _is_due(self) -> bool:
        return self._stopping or self._hurried > 0 or self.outbox.waiting >= self._config.batch_events

    def _send_once(self) -> float:
        """Seconds to wait before the next attempt."""
        started = time.monotonic()
        try:
            taken = self.outbox.take()
            if not taken.events:
                return 0.0
            outcome = self._outcome_of(taken.events)
            pause_s = self.outbox.settle(taken, outcome)
        except HeadraceError as error:
            return self.outbox.failed(error)
        except Exception as error:
            logger.exception("sending failed for a reason of the client's own; it is tried again")
            return self.outbox.failed(HeadraceError(f"{type(error).__name__}: {error}"))
        with self._changed:
            self._since = started  # what is left has waited at least since then, or will have been as long under way
        return pause_s

    def _outcome_of(self, events: Sequence[bytes]) -> EventsAnswer | HeadraceError:
        try:
            return self._post(events)
        except HeadraceError as error:
            return error
