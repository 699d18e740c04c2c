"""What is Kafka's own about the event log on Kafka: the topic, confirmed writes, times, deletion, a topic that is another one."""

import json
import re
import socket
import threading
from collections.abc import Iterator
from dataclasses import replace

import pytest
from confluent_kafka import Producer

from headrace.settings import Settings
from headrace.stores.kafka_config import KafkaConfig
from headrace.stores.kafka_log import KafkaEventLog, open_kafka_log
from headrace.stores.kafka_topic import KafkaTopic
from headrace.stores.log import LogEntry, LogUnavailableError
from headrace.stores.shards import DeploymentError
from tests.integration.kafka import PRODUCE
from tests.integration.kafka_apis import FullKafka

MESSAGE_TIMED_OUT = 7
NOT_ENOUGH_REPLICAS = 19
DUPLICATE_SEQUENCE_NUMBER = 46
INVALID_RECORD = 87
NOON_MS = 1_760_011_200_000


@pytest.fixture(scope="module")
def kafka() -> Iterator[FullKafka]:
    cluster = FullKafka()
    yield cluster
    cluster.close()


@pytest.fixture
def settings(kafka: FullKafka, request: pytest.FixtureRequest) -> Settings:
    """A topic name of the test's own. The topic is not there yet."""
    return Settings(kafka_bootstrap=kafka.bootstrap, kafka_topic=re.sub(r"\W", "-", request.node.name))


@pytest.fixture
def log(settings: Settings) -> KafkaEventLog:
    return open_kafka_log(settings)


def append(log: KafkaEventLog, *payloads: bytes, partition: int = 0) -> list[int]:
    return [log.append({partition: payload}, {partition: 1})[partition] for payload in payloads]


def read_all(log: KafkaEventLog, after: int = 0) -> list[LogEntry]:
    """A read may bring less than there is."""
    entries: list[LogEntry] = []
    while found := log.read({0: entries[-1].position if entries else after}, 100):
        entries += found
    return entries


def produce_at(settings: Settings, *times_ms: int) -> None:
    """Messages with those times, as producers with clocks of their own send them, or brokers when the leader changes."""
    producer = Producer({"bootstrap.servers": settings.kafka_bootstrap, "log_level": 0})
    for time_ms in times_ms:
        producer.produce(settings.kafka_topic, b"%d" % time_ms, partition=0, timestamp=time_ms)
    assert producer.flush(10) == 0


def test_a_topic_that_is_missing_is_made_with_our_partitions_and_with_nothing_deleted_by_itself(
    kafka: FullKafka, settings: Settings, log: KafkaEventLog
) -> None:
    assert log.end() == {0: 0, 1: 0, 2: 0, 3: 0}
    assert kafka.created[settings.kafka_topic] == {
        "cleanup.policy": "delete",
        "message.timestamp.type": "LogAppendTime",
        "retention.bytes": "-1",
        "retention.ms": "-1",
    }


def test_several_that_find_no_topic_at_once_use_the_one_that_is_made(settings: Settings) -> None:
    ends: list[dict[int, int]] = []
    threads = [threading.Thread(target=lambda: ends.append(open_kafka_log(settings).end())) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ends == [{0: 0, 1: 0, 2: 0, 3: 0}] * 6


def test_a_write_that_a_broker_refuses_is_not_acknowledged_and_the_next_one_goes_in(
    kafka: FullKafka, log: KafkaEventLog
) -> None:
    append(log, b"1")
    kafka.fail(PRODUCE, INVALID_RECORD)
    with pytest.raises(
        LogUnavailableError, match="did not confirm the write: Broker: Broker failed to validate record"
    ):
        append(log, b"refused")
    assert append(log, b"2") == [2]
    assert [entry.payload for entry in read_all(log)] == [b"1", b"2"]


def test_a_write_that_too_few_replicas_confirm_is_not_acknowledged(kafka: FullKafka, settings: Settings) -> None:
    log = KafkaEventLog(replace(KafkaConfig.of(settings), answer_s=1.0))
    append(log, b"1")
    kafka.fail(PRODUCE, *[NOT_ENOUGH_REPLICAS] * 100)
    with pytest.raises(LogUnavailableError, match="did not confirm the write: Local: Message timed out"):
        append(log, b"refused")
    kafka.stop_failing(PRODUCE)
    assert append(log, b"2") == [2]


def test_a_confirmation_that_got_lost_is_asked_for_again_and_the_entry_is_there_once(
    kafka: FullKafka, log: KafkaEventLog
) -> None:
    append(log, b"1")
    kafka.fail(PRODUCE, MESSAGE_TIMED_OUT)
    assert append(log, b"2") == [2]
    assert [entry.payload for entry in read_all(log)] == [b"1", b"2"]


def test_a_broker_that_has_it_already_confirms_it_at_the_end_of_the_partition(
    kafka: FullKafka, log: KafkaEventLog
) -> None:
    append(log, b"1", b"2")
    kafka.fail(PRODUCE, DUPLICATE_SEQUENCE_NUMBER)
    assert append(log, b"said to be there") == [2]


def test_a_payload_larger_than_a_message_becomes_several_entries_cut_between_events(settings: Settings) -> None:
    config = replace(KafkaConfig.of(settings), passed_through={"message.max.bytes": 5_096})  # 1,000 for an entry
    log = KafkaEventLog(config)
    lines = [b'{"n":%04d,"text":"%s"}' % (number, b"x" * 79) for number in range(25)]
    assert log.append({0: b"\n".join(lines), 1: lines[0]}, {0: 25, 1: 1}) == {0: 3, 1: 1}
    entries = read_all(log)
    assert [entry.payload.split(b"\n") for entry in entries] == [lines[:10], lines[10:20], lines[20:]]
    assert [entry.count for entry in entries] == [10, 10, 5]


def test_times_that_fall_are_raised_to_the_highest_before_wherever_reading_begins(
    settings: Settings, log: KafkaEventLog
) -> None:
    log.end()
    produce_at(settings, *[NOON_MS + late for late in (0, 5_000, 1_000, 5_000, 4_999, 7_000, 0)])
    expected = [(NOON_MS + late) * 1_000 for late in (0, 5_000, 5_000, 5_000, 5_000, 7_000, 7_000)]
    assert [entry.ingested_at_us for entry in read_all(log)] == expected
    for begin in range(7):
        assert [entry.ingested_at_us for entry in read_all(open_kafka_log(settings), begin)] == expected[begin:]
        assert log.appended_at(0, begin + 1) == expected[begin]


def test_the_position_of_a_time_lies_before_everything_of_that_time_though_times_fall(
    settings: Settings, log: KafkaEventLog
) -> None:
    log.end()
    produce_at(settings, *[NOON_MS + late for late in (0, 5_000, 1_000, 5_000, 4_999, 7_000, 0)])
    positions = [log.position_at(0, (NOON_MS + late) * 1_000) for late in (-1, 0, 1, 5_000, 5_001, 7_000, 7_001)]
    assert positions == [0, 0, 1, 1, 5, 5, 7]


def test_entries_that_retention_took_before_they_were_read_are_named_in_a_warning(
    kafka: FullKafka, settings: Settings, log: KafkaEventLog, caplog: pytest.LogCaptureFixture
) -> None:
    append(log, *[b"%d" % number for number in range(10)])
    late = open_kafka_log(settings)
    kafka.delete_before(settings.kafka_topic, 0, 7)
    assert [entry.position for entry in read_all(late)] == [8, 9, 10]
    assert "were deleted" not in caplog.text  # who begins anew has lost nothing
    assert [entry.position for entry in read_all(late, 2)] == [8, 9, 10]
    assert "partition 0 of the event log: positions 3 to 7 were deleted before they were read here" in caplog.text
    assert (log.trimmed_below()[0], log.appended_at(0, 3)) == (7, 0)


def test_a_read_that_fails_half_way_leaves_nothing_out(log: KafkaEventLog, monkeypatch: pytest.MonkeyPatch) -> None:
    """It fails when messages have been taken from the client already, while the times before them are asked for."""
    append(log, *[b"%d" % number for number in range(10)])

    def fail(*_: object) -> int:
        raise LogUnavailableError("the event log does not answer")

    with monkeypatch.context() as broken:
        broken.setattr(KafkaTopic, "newest_before", fail)
        with pytest.raises(LogUnavailableError):
            read_all(log, 3)
    assert [entry.position for entry in read_all(log, 3)] == [4, 5, 6, 7, 8, 9, 10]


def test_a_position_beyond_the_end_is_refused_since_it_is_another_logs(
    kafka: FullKafka, settings: Settings, log: KafkaEventLog
) -> None:
    append(log, *[b"%d" % number for number in range(5)])
    assert len(read_all(log)) == 5
    with pytest.raises(DeploymentError, match=r"position 1867 of partition 0 lies beyond the end of the topic, 5"):
        log.read({0: 1_867}, 10)
    kafka.delete_topic(settings.kafka_topic)
    kafka.create_topic(settings.kafka_topic, 4)
    with pytest.raises(DeploymentError, match=r"position 5 of partition 0 lies beyond the end of the topic, 0"):
        open_kafka_log(settings).read({0: 5}, 10)


def test_brokers_that_do_not_let_us_in_are_named_with_their_reason_and_without_the_password(settings: Settings) -> None:
    """The tests' cluster knows no SASL: it hangs up on who begins with it."""
    secret = {
        "security.protocol": "sasl_plaintext",
        "sasl.mechanism": "PLAIN",
        "sasl.username": "headrace",
        "sasl.password": "hunter2hunter2",
    }
    config = KafkaConfig.of(settings.model_copy(update={"kafka_config": json.dumps(secret)}))
    with pytest.raises(LogUnavailableError, match=r"the event log does not answer: .* SASL") as caught:
        KafkaEventLog(replace(config, answer_s=1.0)).end()
    assert "hunter2" not in str(caught.value)


def test_a_first_use_where_nobody_listens_ends_in_time(settings: Settings) -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))  # bound, not listening
        config = replace(KafkaConfig.of(settings), bootstrap=f"127.0.0.1:{held.getsockname()[1]}", answer_s=1.0)
        with pytest.raises(LogUnavailableError, match=r"the event log does not answer: .*Broker transport failure"):
            KafkaEventLog(config).append({0: b"1"}, {0: 1})
