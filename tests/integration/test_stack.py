"""A stack's parts under their supervisor, without serving (tests/e2e has the whole)."""

import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import pytest

from headrace.ops.child import ChildFailedError
from headrace.ops.interrupts import Interrupts
from headrace.ops.ports import PortHeldError, free_port
from headrace.ops.processes import holder, read_record
from headrace.ops.stack import Stack
from headrace.settings import Settings
from headrace.stores.redis_client import connect
from tests.conftest import wait_until


@contextmanager
def running_stack(settings: Settings) -> Iterator[tuple[Stack, list[str]]]:
    said: list[str] = []
    interrupts = Interrupts()
    own = settings.model_copy(update={"http_port": free_port()})
    with interrupts.installed(), Stack(own, said.append, interrupts) as stack:
        yield stack, said


def pid_of(settings: Settings, name: str) -> int:
    record = read_record(settings.run_dir)
    assert record is not None
    return {ref.name: ref.pid for ref in record.processes}.get(name, 0)


def keeps_up(stack: Stack, flow: str) -> bool:
    try:
        return bool(stack.run("health", "headrace.ops.health", flow))
    except ChildFailedError:
        return False


def test_a_part_that_dies_is_started_again_and_it_is_said(settings: Settings) -> None:
    with running_stack(settings) as (stack, said):
        stack.start_valkey()
        with connect(stack.settings) as client:
            client.set("key", "acknowledged")
        applied = stack.run("apply", "headrace.ops.apply")
        assert '"stream_views": ["item_activity", "user_activity"]' in applied
        stack.start_flows()

        for flow in ("features", "lake"):
            wait_until(lambda flow=flow: keeps_up(stack, flow), 30)

        for name in ("flow-lake", "valkey"):
            first = pid_of(settings, name)
            psutil.Process(first).send_signal(signal.SIGKILL)
            wait_until(lambda name=name, first=first: pid_of(settings, name) not in (0, first), 30)
            assert any(line.startswith(f"{name} ended with exit code -9; starting it again in 0 s") for line in said)

        with connect(stack.settings) as client:
            assert client.get("key") == b"acknowledged"
        pids = [pid_of(settings, name) for name in ("valkey", "flow-features", "flow-lake")]
    wait_until(lambda: not any(psutil.pid_exists(pid) for pid in pids), 5)
    assert holder(settings.run_dir) is None


def test_a_port_that_is_taken_is_told_before_anything_starts(settings: Settings) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        own = settings.model_copy(update={"http_port": listener.getsockname()[1]})
        with pytest.raises(PortHeldError, match="HEADRACE_HTTP_PORT"):
            Stack(own, print, Interrupts()).__enter__()
    assert holder(settings.run_dir) is None


def test_a_job_that_fails_says_where_to_read_on(settings: Settings) -> None:
    with (
        running_stack(settings) as (stack, _),
        pytest.raises(ChildFailedError, match=r"exit code 2; .*run-health\.log"),
    ):
        stack.run("run-health", "headrace.ops.health")


def test_a_stack_that_starts_forgets_what_the_one_before_it_counted(settings: Settings) -> None:
    settings.metrics_dir.mkdir(parents=True)
    (settings.metrics_dir / "recommender-0.cells").write_bytes(b"counted before")
    with running_stack(settings):
        assert not settings.metrics_dir.exists()
