"""What every event log promises, asked of each: Redis Streams on one server and on a cluster, Kafka as far as its tests' cluster goes."""

import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import pytest
import redis

from headrace.clock import system_clock
from headrace.ops.ports import free_port
from headrace.ops.valkey import ValkeyServer
from headrace.settings import Settings
from headrace.stores.kafka_config import KafkaConfig
from headrace.stores.kafka_log import KafkaEventLog
from headrace.stores.log import EventLog, LogEntry, LogUnavailableError, open_log
from headrace.stores.redis_client import connect
from tests.conftest import wait_until
from tests.integration.kafka import KafkaCluster
from tests.integration.kafka_apis import FullKafka
from tests.integration.online_cluster import Cluster, valkey_cluster

MINUTE_US = 60_000_000
PARTITIONS = 4
EVERYWHERE = dict.fromkeys(range(PARTITIONS), 0)


@dataclass(frozen=True)
class Site:
    """Where a log is. `stop` and `go_on` are None where that is not to be done to it."""

    settings: Settings
    stop: Callable[[], None] | None = None
    go_on: Callable[[], object] | None = None
    trims: bool = True

    def open(self, **changes: object) -> EventLog:
        settings = self.settings.model_copy(update=changes)
        return open_log(connect(settings, timeout_s=2.0), settings)

    def open_impatient(self) -> EventLog:
        """One that does not wait long for an answer."""
        if not self.settings.kafka_bootstrap:
            return open_log(connect(self.settings, timeout_s=1.0), self.settings)
        return KafkaEventLog(replace(KafkaConfig.of(self.settings), answer_s=1.0))


@pytest.fixture(scope="module")
def valkey_cluster_of_three(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with valkey_cluster(tmp_path_factory.mktemp("cluster")) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def own_valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ValkeyServer]:
    folder = tmp_path_factory.mktemp("valkey")
    server = ValkeyServer(folder, free_port(), folder / "valkey.log")
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def plain_kafka() -> Iterator[KafkaCluster]:
    cluster = KafkaCluster()
    yield cluster
    cluster.close()


@pytest.fixture(scope="module")
def full_kafka() -> Iterator[FullKafka]:
    cluster = FullKafka()
    yield cluster
    cluster.close()


@pytest.fixture
def on_redis(own_valkey: ValkeyServer) -> Site:
    with redis.Redis.from_url(own_valkey.url) as client:
        client.flushall()
    return Site(Settings(redis_url=own_valkey.url), own_valkey.kill, own_valkey.start)


@pytest.fixture
def on_redis_cluster(valkey_cluster_of_three: Cluster) -> Site:
    for node in valkey_cluster_of_three.nodes:
        node.flushall()
    return Site(Settings(redis_url=valkey_cluster_of_three.url, redis_cluster=True))


def on_kafka(cluster: KafkaCluster, request: pytest.FixtureRequest) -> Settings:
    """A topic of the test's own. Nothing asks for Redis."""
    topic = re.sub(r"\W", "-", request.node.name)
    cluster.create_topic(topic, PARTITIONS)
    return Settings(redis_url="redis://127.0.0.1:1", kafka_bootstrap=cluster.bootstrap, kafka_topic=topic)


@pytest.fixture
def on_plain_kafka(plain_kafka: KafkaCluster, request: pytest.FixtureRequest) -> Site:
    return Site(on_kafka(plain_kafka, request), plain_kafka.stop, plain_kafka.go_on, trims=False)


@pytest.fixture
def on_full_kafka(full_kafka: FullKafka, request: pytest.FixtureRequest) -> Site:
    return Site(on_kafka(full_kafka, request), full_kafka.stop, full_kafka.go_on)


@pytest.fixture(params=["on_redis", "on_redis_cluster", "on_plain_kafka", "on_full_kafka"])
def site(request: pytest.FixtureRequest) -> Site:
    found = request.getfixturevalue(request.param)
    assert isinstance(found, Site)
    return found


@pytest.fixture
def log(site: Site) -> EventLog:
    return site.open()


def append(log: EventLog, partition: int, *payloads: bytes) -> list[int]:
    return [log.append({partition: payload}, {partition: 1})[partition] for payload in payloads]


def read_all(log: EventLog, after: dict[int, int] | None = None, at_once: int = 100) -> list[LogEntry]:
    """Until there is no more, as readers do."""
    entries: list[LogEntry] = []
    reached = dict(after or EVERYWHERE)
    while found := log.read(reached, at_once):
        entries += found
        reached.update((entry.partition, entry.position) for entry in found)
    return entries


def test_what_was_appended_is_read_as_it_was(log: EventLog) -> None:
    before_us = system_clock()
    positions = log.append({0: b'{"a":1}\n{"a":2}', 3: b'{"b":"\xc3\xa9"}'}, {0: 2, 3: 1})
    after_us = system_clock()
    entries = sorted(read_all(log), key=lambda entry: entry.partition)
    assert [(e.partition, e.position, e.payload, e.count) for e in entries] == [
        (0, positions[0], b'{"a":1}\n{"a":2}', 2),
        (3, positions[3], b'{"b":"\xc3\xa9"}', 1),
    ]
    assert all(before_us - 1_000 <= entry.ingested_at_us <= after_us for entry in entries)


def test_positions_grow_inside_a_partition_and_entries_are_read_in_their_order(log: EventLog) -> None:
    positions = append(log, 1, *[b"%d" % number for number in range(20)])
    append(log, 2, b"elsewhere")
    assert positions == sorted(set(positions))
    assert positions[0] > 0
    found = [(entry.position, entry.payload) for entry in read_all(log) if entry.partition == 1]
    assert found == [(position, b"%d" % number) for number, position in enumerate(positions)]


def test_a_read_takes_so_many_entries_of_each_partition_at_most_and_the_next_goes_on_from_there(log: EventLog) -> None:
    for number in range(7):
        log.append({0: b"%d" % number, 1: b"%d" % number}, {0: 1, 1: 1})
    reached, sizes = {0: 0, 1: 0}, []
    payloads: dict[int, list[bytes]] = {0: [], 1: []}
    while found := log.read(reached, 3):
        sizes.append(max(sum(entry.partition == p for entry in found) for p in reached))
        for entry in found:
            reached[entry.partition] = entry.position
            payloads[entry.partition].append(entry.payload)
    assert max(sizes) <= 3
    assert payloads == {0: [b"%d" % number for number in range(7)], 1: [b"%d" % number for number in range(7)]}


def test_a_reader_goes_back_and_to_other_partitions_as_it_likes(log: EventLog) -> None:
    first, second, third = append(log, 0, b"1", b"2", b"3")
    append(log, 1, b"other")
    assert [e.payload for e in read_all(log, {0: second})] == [b"3"]
    assert [e.payload for e in read_all(log, {1: 0})] == [b"other"]
    assert [e.payload for e in read_all(log, {0: 0, 1: 0}) if e.partition == 0] == [b"1", b"2", b"3"]
    assert [e.payload for e in read_all(log, {0: first})] == [b"2", b"3"]
    assert read_all(log, {0: third}) == []


def test_where_nothing_is_an_empty_answer_comes_at_once_and_what_was_acknowledged_elsewhere_is_seen(site: Site) -> None:
    reader, writer = site.open(), site.open()
    assert reader.read(EVERYWHERE, 10) == []
    for number in range(5):
        (position,) = append(writer, 0, b"%d" % number)
        assert [entry.position for entry in reader.read(EVERYWHERE | {0: position - 1}, 10)] == [position]
        assert reader.read(EVERYWHERE | {0: position}, 10) == []


def test_a_read_that_waits_returns_with_the_first_entry(site: Site) -> None:
    reader, writer = site.open(), site.open()
    found: list[LogEntry] = []
    while not found:  # a reader of a cluster waits at one of its servers only
        thread = threading.Thread(target=lambda: found.extend(reader.read(EVERYWHERE, 10, wait_s=1.9)))
        thread.start()
        if writer.end() == EVERYWHERE:
            append(writer, 0, b"at last")
        thread.join()
    assert [entry.payload for entry in found] == [b"at last"]


def test_the_end_is_the_position_of_the_last_entry(log: EventLog) -> None:
    assert log.end() == log.trimmed_below() == EVERYWHERE
    *_, last = append(log, 2, b"1", b"2")
    assert log.end() == EVERYWHERE | {2: last}
    assert log.trimmed_below() == EVERYWHERE


def test_append_times_never_fall_and_are_known_by_position(log: EventLog) -> None:
    append(log, 0, *[b"%d" % number for number in range(10)])
    entries = read_all(log)
    times = [entry.ingested_at_us for entry in entries]
    assert times == sorted(times)
    assert [log.appended_at(0, entry.position) for entry in entries] == times
    assert log.appended_at(0, 0) == 0


def test_what_was_appended_at_or_after_a_time_lies_above_the_position_of_that_time(log: EventLog) -> None:
    append(log, 0, b"1", b"2")
    wait_until(lambda: append(log, 0, b"more") != [] and len({e.ingested_at_us for e in read_all(log)}) > 2)
    entries = read_all(log)
    for at_us in sorted({entry.ingested_at_us for entry in entries}):
        position = log.position_at(0, at_us)
        since = [entry for entry in entries if entry.ingested_at_us >= at_us]
        assert read_all(log, EVERYWHERE | {0: position})[-len(since) :] == since
    assert log.position_at(0, 0) == 0
    assert log.position_at(0, -MINUTE_US) == 0
    beyond = log.position_at(0, entries[-1].ingested_at_us + MINUTE_US)
    assert [e.payload for e in read_all(log, {0: max(beyond, log.end()[0])})] == []


def test_trimming_drops_what_is_at_or_below_a_position_or_says_that_it_cannot(
    site: Site, log: EventLog, caplog: pytest.LogCaptureFixture
) -> None:
    _, second, third = append(log, 0, b"1", b"2", b"3")
    (other,) = append(log, 1, b"other")
    trimmed = log.trim({0: second, 1: 0})
    if not site.trims:
        assert trimmed == 0
        assert "the event log is not trimmed, what it keeps is up to the retention of the topic" in caplog.text
        assert len(read_all(log)) == 4
        return
    assert trimmed == 2
    assert log.trimmed_below() == EVERYWHERE | {0: second}
    assert log.end() == EVERYWHERE | {0: third, 1: other}
    assert [(e.partition, e.payload) for e in sorted(read_all(log), key=lambda e: e.partition)] == [
        (0, b"3"),
        (1, b"other"),
    ]
    assert log.appended_at(0, second) <= log.appended_at(0, third)
    assert log.trim({0: second}) == 0
    assert log.trim({0: third}) == 1
    assert log.end()[0] == log.trimmed_below()[0] == third
    assert append(log, 0, b"4")[0] > third


def test_entries_of_two_writers_are_all_there_each_in_its_writers_order(site: Site) -> None:
    def write(name: bytes) -> None:
        append(site.open(), 0, *[b"%s%d" % (name, number) for number in range(30)])

    threads = [threading.Thread(target=write, args=(name,)) for name in (b"a", b"b")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = [entry.payload for entry in read_all(site.open())]
    assert len(found) == 60
    for name in (b"a", b"b"):
        assert [each for each in found if each.startswith(name)] == [b"%s%d" % (name, number) for number in range(30)]


def test_another_number_of_partitions_is_refused(site: Site, log: EventLog) -> None:
    append(log, 0, b"1")
    with pytest.raises(LogUnavailableError, match=f"HEADRACE_LOG_PARTITIONS={PARTITIONS}"):
        append(site.open(log_partitions=PARTITIONS + 1), 0, b"2")
    assert [entry.payload for entry in read_all(log)] == [b"1"]


def test_a_log_that_is_down_says_so_and_goes_on_with_all_that_it_acknowledged(site: Site, log: EventLog) -> None:
    if site.stop is None or site.go_on is None:
        pytest.skip("nodes of the shared cluster stay up")
    (first,) = append(log, 0, b"1")
    impatient = site.open_impatient()
    wait_until(lambda: answers(lambda: impatient.read({0: 0}, 10)))
    site.stop()
    calls: list[Callable[[], object]] = [
        impatient.end,
        lambda: append(impatient, 0, b"lost?"),
        lambda: impatient.read({0: first}, 10),
        lambda: append(site.open_impatient(), 0, b"lost?"),
    ]
    for call in calls:
        with pytest.raises(LogUnavailableError, match="the event log"):
            call()
    site.go_on()
    wait_until(lambda: answers(lambda: append(log, 0, b"2")))
    payloads = [entry.payload for entry in read_all(log)]
    assert (payloads[0], payloads[-1]) == (b"1", b"2")


def answers(call: Callable[[], object]) -> bool:
    try:
        call()
    except LogUnavailableError:
        return False
    return True
