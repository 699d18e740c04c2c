"""What a flow does when a step fails it."""

import pytest
import redis

from flows.recovery import Recovery, StopFlag


def failing(error: Exception) -> object:
    raise error


def test_a_store_that_is_gone_makes_the_flow_forget_and_rest_longer_each_time() -> None:
    forgotten: list[str] = []
    recovery = Recovery(StopFlag(), forget=lambda: forgotten.append("it"))
    rests = []
    for _ in range(12):
        assert recovery.guard(failing)(redis.ConnectionError("gone")) is None
        rests.append(recovery.rest_s())
    assert forgotten == ["it"] * 12
    assert rests[0] < rests[3] < rests[6] <= 5.0
    assert not recovery.stop.stopped


def test_a_commit_that_works_makes_the_next_rest_short_again() -> None:
    recovery = Recovery(StopFlag(), forget=lambda: None)
    for _ in range(9):
        recovery.guard(failing)(redis.TimeoutError("slow"))
    recovery.guard_last(lambda item: item)(1)
    recovery.guard(failing)(redis.TimeoutError("slow"))
    assert recovery.rest_s() < 0.1


def test_what_cannot_be_gone_on_with_stops_the_flow_with_its_reason() -> None:
    recovery = Recovery(StopFlag(), forget=lambda: None, fatal=(KeyError,))
    error = KeyError("x")
    assert recovery.guard(failing)(error) is None
    assert (recovery.stop.stopped, recovery.stop.reason) == (True, error)


def test_a_fault_of_the_code_is_not_recovered_from() -> None:
    with pytest.raises(ZeroDivisionError):
        Recovery(StopFlag(), forget=lambda: None).guard(failing)(ZeroDivisionError())
