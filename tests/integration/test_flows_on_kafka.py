"""The collector and both flows with Kafka for the event log and Valkey for the state: the oracle's values, every event once in the lake."""

import asyncio
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator

import httpx
import pytest

from headrace import names
from headrace.identity import shard_of
from headrace.settings import Settings
from headrace.stores.lake import EventLake
from headrace.stores.log import LogUnavailableError, open_log
from headrace.stores.redis_client import connect
from serving.collector import build_collector
from tests.conftest import ROOT, wait_until
from tests.integration.kafka import KafkaCluster
from tests.integration.test_feature_flow import (
    append,
    assert_equals_oracle,
    committed_positions,
    make_event,
    newest_of,
    random_events,
    run_lake_to_end,
    run_to_end,
    wait_until_taken_in,
)

START_US = 1_760_000_000_000_000

Start = Callable[[str], "subprocess.Popen[bytes]"]


@pytest.fixture
def kafka() -> Iterator[KafkaCluster]:
    cluster = KafkaCluster()
    yield cluster
    cluster.close()


@pytest.fixture
def kafka_stack(stack: Settings, kafka: KafkaCluster, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """The stack, its event log on Kafka. Child processes see the same."""
    kafka.create_topic(stack.kafka_topic, stack.log_partitions)
    monkeypatch.setenv("HEADRACE_KAFKA_BOOTSTRAP", kafka.bootstrap)
    monkeypatch.setenv("HEADRACE_KAFKA_CONFIG", '{"fetch.wait.max.ms": 10}')  # this cluster does not cut a wait short
    return Settings()


def times_in_lake(settings: Settings) -> Counter[str]:
    """How often the lake holds each event id."""
    return Counter(EventLake(settings.lake_dir).scan([names.EVENT_ID]).collect()[names.EVENT_ID])


def once_each(events: list[dict[str, object]]) -> Counter[str]:
    return Counter(str(event["event_id"]) for event in events)


def streams_in_redis(settings: Settings) -> list[bytes]:
    return list(connect(settings).scan_iter(match="headrace:log:*"))


def test_both_flows_take_in_each_event_once_through_duplicates_and_a_restart(kafka_stack: Settings) -> None:
    events = random_events(600, seed=21)
    log = open_log(connect(kafka_stack), kafka_stack)
    append(log, events[:300])
    append(log, events[100:150])
    run_to_end(kafka_stack)
    run_lake_to_end(kafka_stack)
    assert_equals_oracle(kafka_stack, events[:300], newest_of(events[:300]) + 1)
    append(log, events[200:])  # a third of it a second time, and the flows begin anew
    append(log, events[:50])
    run_to_end(kafka_stack)
    run_lake_to_end(kafka_stack)
    assert_equals_oracle(kafka_stack, events, newest_of(events) + 1)
    assert_equals_oracle(kafka_stack, events, newest_of(events) + 11 * 60_000_000)
    assert times_in_lake(kafka_stack) == once_each(events)
    assert streams_in_redis(kafka_stack) == []


def test_flows_that_are_killed_in_mid_stream_lose_nothing_and_count_nothing_twice(
    kafka_stack: Settings, start_flow: Start
) -> None:
    events = random_events(600, seed=22)
    log = open_log(connect(kafka_stack), kafka_stack)
    running = {name: start_flow(name) for name in ("features", "lake")}
    for start in range(0, len(events), 20):
        before, rows = committed_positions(kafka_stack), times_in_lake(kafka_stack).total()
        append(log, events[start : start + 20], entry=5)
        append(log, events[max(0, start - 5) : start])  # a retry of what is there
        if start in (200, 400):
            wait_until(lambda before=before: committed_positions(kafka_stack) > before, 60)  # type: ignore[misc]
            wait_until(lambda rows=rows: times_in_lake(kafka_stack).total() > rows, 60)  # type: ignore[misc]
            for name, flow in running.items():
                flow.kill()
                flow.wait()
                running[name] = start_flow(name)
    wait_until_taken_in(kafka_stack)
    assert_equals_oracle(kafka_stack, events, newest_of(events) + 1)
    wait_until(lambda: times_in_lake(kafka_stack).total() >= len(events), 60)
    assert times_in_lake(kafka_stack) == once_each(events)


def test_brokers_that_are_away_for_a_while_cost_nothing_that_was_acknowledged(
    kafka_stack: Settings, kafka: KafkaCluster, start_flow: Start
) -> None:
    events = random_events(200, seed=23)
    flow = start_flow("features")
    append(open_log(connect(kafka_stack), kafka_stack), events[:100])
    wait_until_taken_in(kafka_stack)
    kafka.stop()
    with pytest.raises(LogUnavailableError):
        append(open_log(connect(kafka_stack), kafka_stack), random_events(1, seed=24))
    kafka.go_on()
    append(open_log(connect(kafka_stack), kafka_stack), events[100:])
    wait_until_taken_in(kafka_stack)
    assert flow.poll() is None
    assert_equals_oracle(kafka_stack, events, newest_of(events) + 1)


def test_what_the_collector_acknowledges_is_on_kafka_and_becomes_features(kafka_stack: Settings) -> None:
    settings = kafka_stack.model_copy(update={"event_keys": "writer"})
    events = [make_event(number, "u1", "view", f"i{number % 3}", START_US + number) for number in range(6)]
    bodies = [
        {"event_id": e["event_id"], "type": "view", "user_id": "u1", "item_id": e["item_id"],
         "timestamp": f"2025-10-09T08:53:20.{number:06d}Z"}
        for number, e in enumerate(events)
    ]  # fmt: skip

    async def post() -> httpx.Response:
        app = build_collector(settings, clock=lambda: START_US + 1_000_000)
        transport = httpx.ASGITransport(app, root_path=names.EVENTS_PATH)
        key = {"Authorization": "Bearer writer"}
        async with httpx.AsyncClient(transport=transport, base_url="http://test", headers=key) as client:
            return await client.post(names.EVENTS_PATH, json={"events": bodies})

    answer = asyncio.run(post())
    partition = shard_of("u1", settings.log_partitions)
    assert answer.status_code == 200
    assert (answer.json()["accepted"], answer.json()["positions"]) == (6, {str(partition): 1})
    run_to_end(kafka_stack)
    assert_equals_oracle(kafka_stack, events, newest_of(events) + 1)


@pytest.mark.parametrize("name", ["features", "lake"])
def test_state_that_was_made_from_redis_streams_is_not_gone_on_with_from_kafka(
    kafka_stack: Settings, name: str
) -> None:
    on_redis = kafka_stack.model_copy(update={"kafka_bootstrap": ""})
    append(open_log(connect(on_redis), on_redis), random_events(50, seed=24))
    run_to_end(on_redis)
    run_lake_to_end(on_redis)
    append(open_log(connect(kafka_stack), kafka_stack), random_events(50, seed=25))
    ended = subprocess.run(
        [sys.executable, "-m", f"flows.{name}"], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert ended.returncode != 0
    assert "lies beyond the end of the topic" in ended.stderr
    assert times_in_lake(on_redis).total() == 50
