"""One thread that owns what a replica answers from: requests one after another, changes of the columns between them, never during one.

So a request sees one state, and nothing needs a lock. More processor cores are used by more replicas.
"""

import asyncio
import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from queue import SimpleQueue
from time import perf_counter
from typing import Any, Final, TypeVar

logger = logging.getLogger(__name__)

T = TypeVar("T")

_WEIGHT: Final = 0.05
"""Of the newest in a running mean."""
_USED_SHARE: Final = 0.6
"""Of the time left, what waiting and work may take as expected: the rest is for what is not, and for the ways to us and back."""


def nothing(*_: object) -> None:
    pass


class Pace:
    """Running mean of how long some work takes. Starts at what it is expected to take."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def note(self, seconds: float) -> None:
        self.seconds += _WEIGHT * (seconds - self.seconds)


class Engine:
    """Its requests come from one event loop. What counts them is written by one thread each, so counting needs no lock either."""

    def __init__(self) -> None:
        self._jobs: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        # Requests, and what they were expected to take: taken in, by the event loop; done, by the engine's thread.
        self._taken, self._taken_s = 0, 0.0
        self._done, self._done_s = 0, 0.0
        self._ended = 0.0  # when the last request was done, as `perf_counter` says
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Requests taken in and not done."""
        return self._taken - self._done

    @property
    def queued_s(self) -> float:
        """What those are expected to take, all together."""
        return self._taken_s - self._done_s if self.waiting else 0.0

    def fits(self, needs_s: float, left_s: float) -> bool:
        """Whether a request taken in now can be expected to be answered in time.

        Where nothing waits it is taken in whatever it is expected to take: a stall may have spoilt that, and only doing it mends it.
        """
        if not self.waiting:
            return left_s > 0
        return self.queued_s + needs_s <= _USED_SHARE * left_s

    async def answer(self, work: Callable[[], T], pace: Pace, afterwards: Callable[[T], None] = nothing) -> T:
        """Do a request's work in its turn; `pace` is of such work, and hears how long it took. Raises what it raises.

        `afterwards` is done with the answer once that is on its way: nobody but the next request waits for it.

        What it took is what those behind it waited for it: also what came between it and the request before.
        """
        done: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        needs_s = pace.seconds
        self._taken += 1
        self._taken_s += needs_s
        self._jobs.put(partial(self._answer, work, pace, afterwards, needs_s, done, perf_counter()))
        return await done

    def change(self, job: Callable[[], T]) -> "Future[T]":
        """Do a change in its turn. It should be over in a millisecond: requests wait for it."""
        done: Future[T] = Future()

        def run() -> None:
            try:
                done.set_result(job())
            except Exception as error:  # noqa: BLE001 - whoever waits for the change hears of it
                done.set_exception(error)

        self._jobs.put(run)
        return done

    def close(self) -> None:
        """Finish what was taken in, then end the thread."""
        self._jobs.put(None)
        self._thread.join()

    def _answer(
        self,
        work: Callable[[], T],
        pace: Pace,
        afterwards: Callable[[T], None],
        needs_s: float,
        done: "asyncio.Future[T]",
        taken: float,
    ) -> None:
        tell = done.get_loop().call_soon_threadsafe
        try:
            told = work()
        except Exception as error:  # noqa: BLE001 - whoever waits for the work hears of it
            tell(_tell, done, done.set_exception, error)
        else:
            tell(self._tell_and_follow, done, told, afterwards)
        now = perf_counter()
        pace.note(now - max(taken, self._ended))
        self._ended = now
        self._done += 1
        self._done_s += needs_s

    def _tell_and_follow(self, done: "asyncio.Future[T]", told: T, afterwards: Callable[[T], None]) -> None:
        """In the event loop: what follows comes to the queue when the answer has been sent, which needs the interpreter as well."""
        _tell(done, done.set_result, told)
        done.get_loop().call_soon(self._jobs.put, partial(_follow, told, afterwards))

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()


def _follow(told: T, afterwards: Callable[[T], None]) -> None:
    try:
        afterwards(told)
    except Exception:
        logger.exception("what follows an answer failed")


def _tell(done: "asyncio.Future[Any]", tell: Callable[[Any], None], told: Any) -> None:
    if not done.done():  # else its client went away
        tell(told)
