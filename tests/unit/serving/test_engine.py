"""One thread, one thing after another: requests in their order, changes between them, and whoever waits hears how it ended."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from time import perf_counter
from typing import Any

import pytest

from serving.engine import Engine, Pace
from tests.conftest import wait_until


@pytest.fixture
def engine() -> Iterator[Engine]:
    made = Engine()
    yield made
    made.close()
    assert not made._thread.is_alive()


class Gate:
    """Work that waits until it is let through."""

    def __init__(self) -> None:
        self.entered, self.open = threading.Event(), threading.Event()

    def __call__(self) -> str:
        self.entered.set()
        assert self.open.wait(20)
        return "through"


def test_requests_and_changes_are_done_one_after_another_in_the_order_in_which_they_came(engine: Engine) -> None:
    done: list[str] = []
    note: Callable[[str], Callable[[], str]] = lambda name: lambda: done.append(name) or name  # type: ignore[func-returns-value] # noqa: E731

    async def ask() -> list[str]:
        gate = Gate()
        first = asyncio.create_task(engine.answer(gate, Pace(0.1)))
        await asyncio.to_thread(gate.entered.wait, 20)
        later = []
        for number in range(3):
            later.append(asyncio.create_task(engine.answer(note(f"request {number}"), Pace(0.1))))
            await asyncio.sleep(0)
            engine.change(note(f"change {number}"))
        assert done == []
        gate.open.set()
        return [await first, *[await each for each in later]]

    assert asyncio.run(ask()) == ["through", "request 0", "request 1", "request 2"]
    wait_until(lambda: len(done) == 6)
    assert done == ["request 0", "change 0", "request 1", "change 1", "request 2", "change 2"]


def test_a_change_is_never_made_during_a_request(engine: Engine) -> None:
    state = {"left": 0, "right": 0}

    def change() -> None:
        state["left"] += 1
        state["right"] += 1

    def look() -> tuple[int, int]:
        return state["left"], sum(1 for _ in range(2_000)) and state["right"]

    async def ask() -> list[tuple[int, int]]:
        return [await engine.answer(look, Pace(0.0)) for _ in range(300)]

    over = threading.Event()

    def keep_changing() -> None:
        while not over.is_set():
            engine.change(change).result()

    changing = threading.Thread(target=keep_changing)
    changing.start()
    try:
        seen = asyncio.run(ask())
    finally:
        over.set()
        changing.join()
    assert all(left == right for left, right in seen)
    assert seen[-1][0] > seen[0][0]


@pytest.mark.parametrize("error", [ValueError("wrong"), AssertionError("a fault of ours"), KeyError("x")])
def test_a_failure_reaches_whoever_waits_and_the_next_is_answered(engine: Engine, error: Exception) -> None:
    def fail() -> None:
        raise error

    with pytest.raises(type(error)) as raised:
        asyncio.run(engine.answer(fail, Pace(0.1)))
    assert raised.value is error
    assert engine.change(fail).exception(20) is error
    assert asyncio.run(engine.answer(lambda: "next", Pace(0.1))) == "next"
    wait_until(lambda: (engine.waiting, engine.queued_s) == (0, 0.0))


def test_a_client_that_went_away_costs_the_others_nothing(engine: Engine) -> None:
    async def ask() -> str:
        gate = Gate()
        gone = asyncio.create_task(engine.answer(gate, Pace(0.1)))
        await asyncio.to_thread(gate.entered.wait, 20)
        gone.cancel()
        with pytest.raises(asyncio.CancelledError):
            await gone
        gate.open.set()
        return await engine.answer(lambda: "next", Pace(0.1))

    assert asyncio.run(ask()) == "next"
    wait_until(lambda: engine.waiting == 0)


def test_a_request_fits_where_what_waits_and_itself_take_three_fifths_of_the_time_left(engine: Engine) -> None:
    async def ask() -> None:
        gate = Gate()
        waiting = asyncio.create_task(engine.answer(gate, Pace(0.05)))
        await asyncio.to_thread(gate.entered.wait, 20)
        assert (engine.waiting, engine.queued_s) == (1, 0.05)
        assert engine.fits(0.009, 0.1)
        assert not engine.fits(0.011, 0.1)
        gate.open.set()
        await waiting

    asyncio.run(ask())
    wait_until(lambda: engine.waiting == 0)


def test_where_nothing_waits_a_request_is_taken_in_whatever_it_is_expected_to_take(engine: Engine) -> None:
    """Else a stall that makes work look slow would shed all requests for ever: none would be done to show otherwise."""
    assert engine.fits(1000.0, 0.1)
    assert not engine.fits(0.001, 0.0)
    assert not engine.fits(0.001, -1)


def test_closing_finishes_what_was_taken_in() -> None:
    engine, gate = Engine(), Gate()
    first, last = engine.change(gate), engine.change(lambda: "last")
    closing = threading.Thread(target=engine.close)
    closing.start()
    gate.open.set()
    closing.join(20)
    assert (first.result(0), last.result(0)) == ("through", "last")
    assert not engine._thread.is_alive()


def test_a_pace_follows_what_work_takes_and_failed_work_counts(engine: Engine) -> None:
    pace = Pace(1.0)
    pace.note(3.0)
    assert pace.seconds == pytest.approx(1.1)

    def fail() -> Any:
        raise LookupError("gone")

    with pytest.raises(LookupError, match="gone"):
        asyncio.run(engine.answer(fail, pace))
    engine.change(lambda: None).result(
        20
    )  # what comes next finds noted what came before, the answer's receiver may not
    assert pace.seconds == pytest.approx(1.1 * 0.95, abs=1e-3)
    assert asyncio.run(engine.answer(lambda: 5, pace)) == 5


def test_what_comes_between_two_requests_counts_for_the_one_that_waited_for_it(engine: Engine) -> None:
    pace = Pace(0.0)

    async def ask() -> float:
        gate = Gate()
        engine.change(gate)
        await asyncio.to_thread(gate.entered.wait, 20)
        waiting = asyncio.create_task(engine.answer(lambda: None, pace))
        await asyncio.sleep(0)
        begun = perf_counter()
        await asyncio.to_thread(lambda: None)
        waited = perf_counter() - begun
        gate.open.set()
        await waiting
        return waited

    waited = asyncio.run(ask())
    assert pace.seconds >= 0.05 * waited > 0
