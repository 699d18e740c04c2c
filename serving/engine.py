"""One thread that owns what a replica answers from: requests one after another, changes of the columns between them, never during one.

So a request sees one state, and nothing needs a lock. More processor cores are used by more replicas.
"""

import asyncio
import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from time import perf_counter
from typing import Any, Final, TypeVar

logger = logging.getLogger(__name__)

T = TypeVar("T")

_WEIGHT: Final = 0.05
"""Of the newest in a running mean."""
_USED_SHARE: Final = 0.8
"""Of the time left, what waiting and work may take as expected: the rest is for what is not."""


class Pace:
    """Running mean of how long some work takes. Starts at what it is expected to take."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def note(self, seconds: float) -> None:
        self.seconds += _WEIGHT * (seconds - self.seconds)


class Engine:
    def __init__(self) -> None:
        self._jobs: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()
        self.queued_s = 0.0
        """What the requests taken in are expected to take, all together."""
        self.waiting = 0

    def fits(self, needs_s: float, left_s: float) -> bool:
        """Whether a request taken in now can be expected to be answered in time.

        Where nothing waits it is taken in whatever it is expected to take: a stall may have spoilt that, and only doing it mends it.
        """
        if not self.waiting:
            return left_s > 0
        return self.queued_s + needs_s <= _USED_SHARE * left_s

    async def answer(self, work: Callable[[], T], needs_s: float) -> T:
        """Do a request's work in its turn; `needs_s` is what it is expected to take. Raises what it raises."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[T] = loop.create_future()

        def run() -> None:
            try:
                result = work()
            except Exception as error:  # noqa: BLE001 - whoever waits for the work hears of it
                loop.call_soon_threadsafe(_fail, done, error)
            else:
                loop.call_soon_threadsafe(_finish, done, result)
            finally:
                self._count(-needs_s, -1)

        self._count(needs_s, 1)
        self._jobs.put(run)
        return await done

    def change(self, job: Callable[[], T]) -> "Future[T]":
        """Do a change in its turn. It should be over in a millisecond: requests wait for it."""
        done: Future[T] = Future()

        def run() -> None:
            try:
                done.set_result(job())
            except Exception as error:  # noqa: BLE001 - as above
                done.set_exception(error)

        self._jobs.put(run)
        return done

    def close(self) -> None:
        """Finish what was taken in, then end the thread."""
        self._jobs.put(None)
        self._thread.join()

    def _count(self, seconds: float, requests: int) -> None:
        with self._lock:
            self.waiting += requests
            self.queued_s = max(0.0, self.queued_s + seconds) if self.waiting else 0.0

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()


def _finish(done: "asyncio.Future[Any]", result: Any) -> None:
    if not done.done():  # else its client went away
        done.set_result(result)


def _fail(done: "asyncio.Future[Any]", error: Exception) -> None:
    if not done.done():
        done.set_exception(error)


def timed(pace: Pace, work: Callable[[], T]) -> Callable[[], T]:
    """The work, its duration noted."""

    def run() -> T:
        begun = perf_counter()
        try:
            return work()
        finally:
            pace.note(perf_counter() - begun)

    return run
