"""Workers come and go while events do: each shard has one owner at a time, nothing is lost, nothing counts twice."""

import signal
import subprocess
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import redis

from headrace.settings import Settings
from headrace.stores.log import open_log
from headrace.stores.redis_client import connect
from headrace.stores.shards import lease_key, read_status
from tests.conftest import wait_until
from tests.integration.test_feature_flow import (
    append,
    assert_equals_oracle,
    committed_positions,
    newest_of,
    random_events,
    wait_until_taken_in,
)

pytestmark = pytest.mark.timeout(600)

Flow = subprocess.Popen[bytes]
Start = Callable[[str], Flow]


def owners(client: "redis.Redis", shards: int) -> list[int]:
    """Process numbers of the workers that hold the shards, 0 for nobody."""
    holders = client.mget([lease_key(shard) for shard in range(shards)])
    return [int(holder.split(b":")[-2]) if holder else 0 for holder in holders]


def shares(stack: Settings) -> list[int]:
    """How many shards each worker holds, the smallest share first; nothing while a shard has no owner."""
    held = owners(connect(stack), stack.shards)
    return sorted(Counter(held).values()) if all(held) else []


@contextmanager
def fed(stack: Settings, events: list[dict[str, object]]) -> Iterator[Callable[[int], None]]:
    """Appends events in the background, a few at a time; call what it gives with how many may be in."""
    allowed, done = threading.Semaphore(0), threading.Event()
    log = open_log(connect(stack), stack)

    def feed() -> None:
        for start in range(0, len(events), 5):
            allowed.acquire()
            append(log, events[start : start + 5], entry=5)
        done.set()

    thread = threading.Thread(target=feed)
    thread.start()
    try:
        yield lambda count: allowed.release(count // 5)
    finally:
        allowed.release(len(events))
        thread.join()
    assert done.is_set()


def test_one_worker_then_three_then_one_share_the_shards_and_count_everything_once(
    stack: Settings, start_flow: Start
) -> None:
    """Law 3. One worker ends in order, one is killed; events are on their way all the time."""
    events = random_events(1_200, seed=21)
    events += events[300:330]  # and some come again
    with fed(stack, events) as let_in:
        let_in(200)
        first = start_flow("features")
        wait_until(lambda: committed_positions(stack) > 0, timeout_s=180)
        second, third = start_flow("features"), start_flow("features")
        let_in(200)
        wait_until(lambda: shares(stack) == [1, 1, 2], timeout_s=180)
        assert set(owners(connect(stack), stack.shards)) == {first.pid, second.pid, third.pid}
        let_in(200)
        wait_until_taken_in(stack)
        let_in(200)
        second.send_signal(signal.SIGTERM)
        assert second.wait(timeout=30) == 0
        assert second.pid not in owners(connect(stack), stack.shards)  # it let go by itself
        let_in(200)
        first.kill()
        first.wait()
        wait_until(lambda: owners(connect(stack), stack.shards) == [third.pid] * stack.shards, timeout_s=180)
        let_in(100)
    wait_until_taken_in(stack)
    assert_equals_oracle(stack, events[:1_200], newest_of(events) + 1)
    counters = [status.counters for status in read_status(connect(stack), range(stack.shards)).values()]
    assert sum(each.get("events", 0) for each in counters) == 1_200
    assert sum(each.get("duplicates", 0) for each in counters) == 30


def test_a_worker_that_was_stopped_for_long_finds_its_shards_taken_and_harms_nothing(
    stack: Settings, start_flow: Start
) -> None:
    events = random_events(300, seed=22)
    log = open_log(connect(stack), stack)
    sleeper = start_flow("features")
    append(log, events[:100], entry=5)
    wait_until_taken_in(stack)
    sleeper.send_signal(signal.SIGSTOP)
    other = start_flow("features")
    append(log, events[100:200], entry=5)
    wait_until(lambda: owners(connect(stack), stack.shards) == [other.pid] * stack.shards, timeout_s=180)
    wait_until_taken_in(stack)
    sleeper.send_signal(signal.SIGCONT)
    append(log, events[200:], entry=5)
    wait_until(lambda: shares(stack) == [2, 2], timeout_s=180)
    wait_until_taken_in(stack)
    assert sleeper.poll() is None
    assert_equals_oracle(stack, events, newest_of(events) + 1)
