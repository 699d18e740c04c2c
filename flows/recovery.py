"""What a flow does when a store fails it: forget what is not committed, rest, and go on from what is. And how a flow ends."""

import logging
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, TypeVar

import redis

from headrace.stores.log import LogUnavailableError

logger = logging.getLogger("headrace.flows")

T = TypeVar("T")
R = TypeVar("R")

RECOVERABLE: Final = (redis.RedisError, LogUnavailableError, OSError)
_SHORTEST_REST_S: Final = 0.05
_LONGEST_REST_S: Final = 5.0


class StopFlag:
    """Set by SIGTERM and SIGINT, or by a step that cannot go on: the source ends, what is under way is committed."""

    def __init__(self) -> None:
        self.stopped = False
        self.reason: Exception | None = None

    def install(self) -> "StopFlag":
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: setattr(self, "stopped", True))
        return self


class Recovery:
    """Wraps the steps of a flow. `forget` drops what is in memory and not committed; the source then reads again from there."""

    def __init__(
        self,
        stop: StopFlag,
        forget: Callable[[], None],
        recoverable: tuple[type[Exception], ...] = RECOVERABLE,
        fatal: tuple[type[Exception], ...] = (),
    ) -> None:
        self.stop = stop
        self.recoverable = recoverable
        self._forget = forget
        self._fatal = fatal
        self._failures = 0
        self._rest_until = 0.0

    def guard(self, step: Callable[[T], R]) -> Callable[[T], R | None]:
        """The step, with None for its answer where it failed."""

        def guarded(item: T) -> R | None:
            with self.watching():
                return step(item)
            return None

        return guarded

    def guard_last(self, step: Callable[[T], object]) -> Callable[[T], None]:
        """The step that commits: when it has worked, all is well again."""

        def guarded(item: T) -> None:
            with self.watching():
                step(item)
                if self._failures:
                    logger.warning("the stores answer again")
                self._failures = 0

        return guarded

    @contextmanager
    def watching(self) -> Iterator[None]:
        try:
            yield
        except self._fatal as error:
            self.stop.stopped, self.stop.reason = True, error
        except self.recoverable as error:
            self._failed(error)

    def _failed(self, error: Exception) -> None:
        """Forget, and rest: twice as long each time, up to some seconds."""
        self._forget()
        rest_s = min(_LONGEST_REST_S, _SHORTEST_REST_S * 2.0**self._failures)
        self._failures += 1
        self._rest_until = time.monotonic() + rest_s
        logger.warning("%s; going on from what is committed in %.1f s", error, rest_s)

    def rest_s(self) -> float:
        """How much longer to rest."""
        return self._rest_until - time.monotonic()
