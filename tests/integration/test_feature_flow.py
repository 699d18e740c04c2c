"""The feature flow and the lake flow on a real Valkey, against the naive oracle: effectively once, through kills and duplicates."""

import random
import subprocess
from collections.abc import Callable

import pytest
from bytewax.testing import run_main

from flows.features import get_flow as feature_flow
from flows.lake import get_flow as lake_flow
from flows.lake import trim_log
from flows.recovery import StopFlag
from flows.source import Pace
from headrace.aggregates.compile import compile_views
from headrace.clock import system_clock
from headrace.events import encode_records
from headrace.identity import shard_of
from headrace.ops.backfill import backfill
from headrace.ops.verify import VerifyError, verify
from headrace.settings import Settings
from headrace.stores.definitions import load_definitions
from headrace.stores.feature_store import open_feature_store
from headrace.stores.lake import EventLake
from headrace.stores.log import EventLog, LogUnavailableError, open_log
from headrace.stores.online_reader import OnlineReader
from headrace.stores.redis_client import connect
from headrace.stores.shards import read_status
from tests import oracles
from tests.conftest import wait_until

START_US = 1_760_000_000_000_000
SECOND = 1_000_000

Start = Callable[[str], "subprocess.Popen[bytes]"]


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


def append(log: EventLog, events: list[dict[str, object]], entry: int = 50) -> None:
    for start in range(0, len(events), entry):
        groups: dict[int, list[dict[str, object]]] = {}
        for event in events[start : start + entry]:
            groups.setdefault(shard_of(str(event["user_key"]), log.partitions), []).append(event)
        log.append(
            {p: encode_records(group) for p, group in groups.items()}, {p: len(group) for p, group in groups.items()}
        )


def run_to_end(stack: Settings) -> None:
    run_main(feature_flow(stack, system_clock, StopFlag(), Pace(), until_end=True))


def run_lake_to_end(stack: Settings) -> None:
    run_main(lake_flow(stack, system_clock, StopFlag(), Pace(), until_end=True))


def assert_equals_oracle(stack: Settings, events: list[dict[str, object]], t_us: int) -> None:
    specs = compile_views(open_feature_store(stack))
    reader = OnlineReader(connect(stack), load_definitions(stack), stack)
    for spec in specs.values():
        keys = [*sorted({str(event[spec.entity_column]) for event in events}), "never-seen"]
        values = reader.fetch({spec.name: keys}).streams[spec.name].values(t_us)
        for aggregate in spec.aggregates:
            for key, value in zip(keys, values[aggregate.name], strict=True):
                expected = oracles.value(spec, aggregate, events, key, t_us)
                assert value == expected, (
                    f"{spec.name}.{aggregate.name} of {key} at {t_us}: {value}, the oracle says {expected}"
                )


def test_the_stream_equals_the_oracle_at_every_age(stack: Settings) -> None:
    events = random_events(600, seed=1)
    append(open_log(connect(stack), stack), events)
    run_to_end(stack)
    newest = newest_of(events)
    for later in (1, 60 * SECOND, 11 * 60 * SECOND, 3_700 * SECOND, 8 * 86_400 * SECOND):
        assert_equals_oracle(stack, events, newest + later)


def test_an_event_delivered_again_counts_once(stack: Settings) -> None:
    events = random_events(200, seed=2)
    log = open_log(connect(stack), stack)
    append(log, events)
    append(log, events[50:120])
    run_to_end(stack)
    append(log, events[:30])  # and once more after a restart
    run_to_end(stack)
    assert_equals_oracle(stack, events, START_US + 10 * 86_400 * SECOND)
    assert_equals_oracle(stack, events, newest_of(events) + 1)


def test_verify_finds_no_difference_and_finds_one_that_was_made(stack: Settings) -> None:
    events = random_events(400, seed=3)
    append(open_log(connect(stack), stack), events)
    run_to_end(stack)
    run_lake_to_end(stack)
    t_us = newest_of(events) + 1
    report = verify(stack, as_of_us=t_us)
    assert report.ok, report.examples
    assert report.non_zero["user_activity.views_10m"] > 0
    client = connect(stack)
    key = next(iter(client.scan_iter(match="headrace:{s*}:item_activity:*")))
    client.delete(key)
    assert not verify(stack, as_of_us=t_us).ok


def test_verify_refuses_to_compare_an_empty_store_with_a_lake_that_is_not(stack: Settings) -> None:
    append(open_log(connect(stack), stack), random_events(20, seed=3))
    run_to_end(stack)
    run_lake_to_end(stack)
    connect(stack).flushall()
    with pytest.raises(VerifyError, match="headrace backfill"):
        verify(stack)


def test_the_log_is_kept_for_the_dedup_horizon_of_the_slowest_reader(stack: Settings) -> None:
    """A retry is known as one however long the feature flow was away."""
    client = connect(stack)
    log, lake = open_log(client, stack), EventLake(stack.lake_dir)
    events = random_events(60, seed=9)
    append(log, events)
    run_lake_to_end(stack)
    much_later = lambda: system_clock() + 10 * 86_400 * SECOND  # noqa: E731
    assert trim_log(log, client, lake, stack, much_later) == 0  # the feature flow has taken nothing in
    append(log, events[:20])
    run_to_end(stack)
    assert_equals_oracle(stack, events, newest_of(events) + 1)
    run_lake_to_end(stack)
    end = log.end()
    assert trim_log(log, client, lake, stack, much_later) == 0  # the newest entries are not a horizon old
    no_horizon = stack.model_copy(update={"dedup_horizon_s": 1e-6})
    assert trim_log(log, client, lake, no_horizon, much_later) > 0
    assert log.end() == end


def test_events_for_another_number_of_partitions_are_never_acknowledged(stack: Settings) -> None:
    append(open_log(connect(stack), stack), random_events(1, seed=1))
    other = stack.model_copy(update={"log_partitions": stack.log_partitions + 1})
    with pytest.raises(LogUnavailableError, match="HEADRACE_LOG_PARTITIONS=4"):
        append(open_log(connect(stack), other), random_events(1, seed=2))


def test_state_that_was_put_out_of_memory_is_read_again(stack: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flows.shard_state.MAX_CACHED_ENTITIES", 2)
    events = random_events(400, seed=10)
    log = open_log(connect(stack), stack)
    for start in range(0, 400, 50):
        append(log, events[start : start + 50], entry=10)
        run_main(feature_flow(stack, system_clock, StopFlag(), Pace(max_events=10), until_end=True))
    assert_equals_oracle(stack, events, newest_of(events) + 1)


def test_backfill_gives_the_state_that_the_flow_gave_and_the_flow_goes_on_from_it(stack: Settings) -> None:
    events = random_events(400, seed=4)
    log = open_log(connect(stack), stack)
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
    assert_equals_oracle(stack, events, newest_of(events) + 1)


def newest_of(events: list[dict[str, object]]) -> int:
    return max(int(event["timestamp"]) for event in events)  # type: ignore[call-overload]


def wait_until_taken_in(stack: Settings) -> None:
    """Until every shard stands where the log ends now."""
    client = connect(stack)
    end = {p: position for p, position in open_log(client, stack).end().items() if position}

    def taken_in() -> bool:
        statuses = read_status(client, range(stack.shards)).values()
        return all(status.positions.get(p, 0) >= position for status in statuses for p, position in end.items())

    wait_until(taken_in, timeout_s=180)


def committed_positions(stack: Settings) -> int:
    statuses = read_status(connect(stack), range(stack.shards)).values()
    return sum(sum(status.positions.values()) for status in statuses)


def test_sigkill_in_mid_stream_loses_nothing_and_counts_nothing_twice(stack: Settings, start_flow: Start) -> None:
    """Law 3: each kill falls between the first and the last commit."""
    events = random_events(1_500, seed=6)
    log = open_log(connect(stack), stack)
    flow = start_flow("features")
    for start in range(0, len(events), 25):
        before = committed_positions(stack)
        append(log, events[start : start + 25], entry=5)
        if start in (500, 1_000):
            wait_until(lambda before=before: committed_positions(stack) > before, timeout_s=180)  # type: ignore[misc]
            flow.kill()
            flow.wait()
            flow = start_flow("features")
    wait_until_taken_in(stack)
    assert_equals_oracle(stack, events, newest_of(events) + 1)
