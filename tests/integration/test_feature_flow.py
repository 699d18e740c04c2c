"""The feature flow and the lake flow on a real Valkey, against the naive oracle: effectively once, through kills and duplicates."""

import random
import signal
import subprocess
import sys
import time

from bytewax.testing import run_main

from flows.features import get_flow as feature_flow
from flows.lake import get_flow as lake_flow
from flows.source import Pace, StopFlag
from headrace import names
from headrace.aggregates.compile import compile_views
from headrace.clock import system_clock
from headrace.events import encode_records
from headrace.identity import shard_of
from headrace.ops.backfill import backfill
from headrace.ops.verify import verify
from headrace.settings import Settings
from headrace.stores.dead_letters import DeadLetters
from headrace.stores.feature_store import open_feature_store
from headrace.stores.log import RedisEventLog
from headrace.stores.online_reader import open_reader
from headrace.stores.redis_client import connect
from headrace.stores.shards import read_status
from tests import oracles
from tests.conftest import ROOT, wait_until

START_US = 1_760_000_000_000_000
SECOND = 1_000_000


def make_event(number: int, user: str, kind: str, item: str, at_us: int) -> dict[str, object]:
    return {
        "event_id": f"e{number:06d}",
        "type": kind,
        "user_key": user,
        "user_id": user,
        "item_id": item,
        "timestamp": at_us,
        "received_at": at_us,
    }


def random_events(count: int, seed: int) -> list[dict[str, object]]:
    rng = random.Random(seed)
    kinds = ["view"] * 6 + ["click"] * 2 + ["add_to_cart", "purchase", "impression"]
    at = START_US
    events = []
    for number in range(count):
        at += rng.choice([0, 1, 20, 300]) * SECOND
        late = rng.choice([0, 0, 0, 0, 30, 4_000]) * SECOND
        event = make_event(number, f"u{rng.randrange(12)}", rng.choice(kinds), f"i{rng.randrange(20)}", at - late)
        event["received_at"] = at
        events.append(event)
    return events


def append(log: RedisEventLog, events: list[dict[str, object]], entry: int = 50) -> None:
    for start in range(0, len(events), entry):
        groups: dict[int, list[dict[str, object]]] = {}
        for event in events[start : start + entry]:
            groups.setdefault(shard_of(str(event["user_key"]), log.partitions), []).append(event)
        log.append(
            {p: encode_records(group) for p, group in groups.items()}, {p: len(group) for p, group in groups.items()}
        )


def open_log(stack: Settings) -> RedisEventLog:
    return RedisEventLog(connect(stack), stack.log_partitions, names.PROJECT, stack.log_max_bytes)


def run_to_end(stack: Settings) -> None:
    run_main(feature_flow(stack, system_clock, StopFlag(), Pace(), until_end=True))


def run_lake_to_end(stack: Settings) -> None:
    run_main(lake_flow(stack, system_clock, StopFlag(), Pace(), until_end=True))


def assert_equals_oracle(stack: Settings, events: list[dict[str, object]], t_us: int) -> None:
    specs = compile_views(open_feature_store(stack))
    reader = open_reader(connect(stack), stack)
    for spec in specs.values():
        keys = [*sorted({str(event[spec.entity_column]) for event in events}), "never-seen"]
        values = reader.read_stream(spec, keys).values(t_us)
        for aggregate in spec.aggregates:
            for key, value in zip(keys, values[aggregate.name], strict=True):
                expected = oracles.value(spec, aggregate, events, key, t_us)
                assert value == expected, (
                    f"{spec.name}.{aggregate.name} of {key} at {t_us}: {value}, the oracle says {expected}"
                )


def test_the_stream_equals_the_oracle_at_every_age(stack: Settings) -> None:
    events = random_events(600, seed=1)
    append(open_log(stack), events)
    run_to_end(stack)
    newest = max(int(event["timestamp"]) for event in events)  # type: ignore[call-overload]
    for later in (1, 60 * SECOND, 11 * 60 * SECOND, 3_700 * SECOND, 8 * 86_400 * SECOND):
        assert_equals_oracle(stack, events, newest + later)


def test_an_event_delivered_again_counts_once(stack: Settings) -> None:
    events = random_events(200, seed=2)
    log = open_log(stack)
    append(log, events)
    append(log, events[50:120])
    run_to_end(stack)
    append(log, events[:30])  # and once more after a restart
    run_to_end(stack)
    assert_equals_oracle(stack, events, START_US + 10 * 86_400 * SECOND)
    assert_equals_oracle(stack, events, max(int(event["timestamp"]) for event in events) + 1)  # type: ignore[call-overload]


def test_verify_finds_no_difference_and_finds_one_that_was_made(stack: Settings) -> None:
    events = random_events(400, seed=3)
    append(open_log(stack), events)
    run_to_end(stack)
    run_lake_to_end(stack)
    t_us = max(int(event["timestamp"]) for event in events) + 1  # type: ignore[call-overload]
    report = verify(stack, as_of_us=t_us)
    assert report.ok, report.examples
    assert report.non_zero["user_activity.views_10m"] > 0
    client = connect(stack)
    key = next(iter(client.scan_iter(match="headrace:{s*}:item_activity:*")))
    client.delete(key)
    assert not verify(stack, as_of_us=t_us).ok


def test_backfill_gives_the_state_that_the_flow_gave_and_the_flow_goes_on_from_it(stack: Settings) -> None:
    events = random_events(400, seed=4)
    log = open_log(stack)
    append(log, events[:300])
    run_to_end(stack)
    run_lake_to_end(stack)
    client = connect(stack)
    for key in client.scan_iter(match="headrace:{s*}:*activity:*"):
        client.delete(key)
    report = backfill(stack)
    assert report.events == 300
    assert_equals_oracle(stack, events[:300], START_US + 10 * 86_400 * SECOND)
    append(log, events[300:])
    run_to_end(stack)
    assert_equals_oracle(stack, events, max(int(event["timestamp"]) for event in events) + 1)  # type: ignore[call-overload]


def test_a_bad_line_in_the_log_goes_to_the_dead_letters_and_the_rest_is_kept(stack: Settings) -> None:
    good = random_events(3, seed=5)
    log = open_log(stack)
    log.append({0: encode_records(good[:1]) + b"\n{cut off\n" + encode_records(good[1:])}, {0: 4})
    run_to_end(stack)
    letters = list(DeadLetters(connect(stack)))
    assert [(letter.origin, letter.raw) for letter in letters] == [
        (f"event log, partition 0, position {log.end()[0]}, line 1", "{cut off")
    ]
    assert_equals_oracle(stack, good, START_US + 86_400 * SECOND)


def committed_positions(stack: Settings) -> int:
    statuses = read_status(connect(stack), range(stack.shards)).values()
    return sum(sum(status.positions.values()) for status in statuses)


def start_flow() -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-m", "flows.features"], cwd=ROOT, stderr=subprocess.DEVNULL)


def test_sigkill_in_mid_stream_loses_nothing_and_counts_nothing_twice(stack: Settings) -> None:
    events = random_events(1_500, seed=6)
    log = open_log(stack)
    flow = start_flow()
    try:
        kills = 0
        for start in range(0, len(events), 25):
            append(log, events[start : start + 25], entry=5)
            if start in (500, 1_000):
                before = committed_positions(stack)
                wait_until(lambda before=before: committed_positions(stack) > before)  # type: ignore[misc]
                flow.kill()
                flow.wait()
                kills += 1
                flow = start_flow()
            time.sleep(0.005)
        assert kills == 2
        end = log.end()
        wait_until(
            lambda: all(
                status.positions.get(p) == end[p]
                for status in read_status(connect(stack), range(stack.shards)).values()
                for p in end
            ),
            timeout_s=60,
        )
        assert_equals_oracle(stack, events, max(int(event["timestamp"]) for event in events) + 1)  # type: ignore[call-overload]
    finally:
        flow.send_signal(signal.SIGTERM)
        assert flow.wait(timeout=20) == 0


def test_a_second_flow_started_by_mistake_stops_and_harms_nothing(stack: Settings) -> None:
    append(open_log(stack), random_events(100, seed=7))
    first = start_flow()
    try:
        wait_until(lambda: committed_positions(stack) > 0, timeout_s=30)
        second = subprocess.run([sys.executable, "-m", "flows.features"], cwd=ROOT, capture_output=True, timeout=60)
        assert second.returncode != 0
        assert b"is owned by" in second.stderr
        assert first.poll() is None
    finally:
        first.send_signal(signal.SIGTERM)
        assert first.wait(timeout=20) == 0
