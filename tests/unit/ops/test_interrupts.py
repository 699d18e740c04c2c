import os
import signal

import pytest

from headrace.ops.interrupts import Interrupted, Interrupts


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_is_an_exception(number: signal.Signals) -> None:
    with Interrupts().installed(), pytest.raises(Interrupted):
        os.kill(os.getpid(), number)


def test_while_held_it_waits_for_the_end_of_the_block() -> None:
    done = []

    def block() -> None:
        with interrupts.held():
            os.kill(os.getpid(), signal.SIGTERM)
            done.append("the block")

    with Interrupts().installed() as interrupts:
        with pytest.raises(Interrupted):
            block()
        assert done == ["the block"]


def test_handlers_are_put_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with Interrupts().installed():
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before
