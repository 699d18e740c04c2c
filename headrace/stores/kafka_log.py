"""The event log on Kafka: a partition of the log is one of the topic's, an entry is a message, its position is offset + 1."""

import time
from collections.abc import Iterator, Mapping
from typing import Final

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from headrace.settings import Settings
from headrace.stores.event_log import LogEntry, LogUnavailableError
from headrace.stores.kafka_config import COUNT_HEADER, KafkaConfig
from headrace.stores.kafka_reader import KafkaReader
from headrace.stores.kafka_topic import KafkaTopic, answering, open_client
from headrace.stores.shards import DeploymentError

_REPORT_S: Final = 2.0
"""After the time that a message has, its report may take so long."""


class KafkaEventLog:
    """As EventLog says; docs/kafka.md has what differs from Redis Streams. Connects with the first use. For one thread.

    Raises DeploymentError where the topic has another number of partitions, or is not the one that positions were made from.

    Acknowledged means that every in-sync replica has it. A payload too large for a message becomes several entries, cut between
    events; the position is then that of the last.
    """

    def __init__(self, config: KafkaConfig) -> None:
        self._config = config
        self._topic = KafkaTopic(config)
        self._reader = KafkaReader(config, self._topic)
        self._single_reader = KafkaReader(config, self._topic, **{"queued.min.messages": 1})
        self._producer: Producer | None = None

    @property
    def partitions(self) -> int:
        return self._config.partitions

    def append(self, payloads: Mapping[int, bytes], counts: Mapping[int, int]) -> dict[int, int]:
        try:
            with answering("did not confirm the write"):
                self._topic.ensure()
                return self._append(payloads, counts)
        except DeploymentError as error:
            raise LogUnavailableError(f"the event log did not confirm the write: {error}") from error
        except LogUnavailableError:
            if self._producer is not None:  # what it still holds must not go out beside what comes next
                self._producer.purge()
            self._producer = None
            raise

    def _append(self, payloads: Mapping[int, bytes], counts: Mapping[int, int]) -> dict[int, int]:
        producer = self._producer = self._producer or open_client(Producer, self._config, self._config.producer())
        reports: list[tuple[KafkaError | None, Message]] = []
        sent = 0
        for partition, payload in payloads.items():
            for piece, count in _pieces(payload, counts[partition], self._config.entry_bytes):
                producer.produce(
                    self._config.topic,
                    piece,
                    partition=partition,
                    headers={COUNT_HEADER: b"%d" % count},
                    on_delivery=lambda error, message: reports.append((error, message)),
                )
                sent += 1
        deadline = time.monotonic() + self._config.answer_s + _REPORT_S
        while len(reports) < sent:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{sent - len(reports)} of {sent} messages are not confirmed")
            producer.poll(0.1)
        positions: dict[int, int] = {}
        for error, message in reports:
            if error is not None:
                raise KafkaException(error)
            offset = message.offset()
            positions[message.partition()] = 0 if offset is None or offset < 0 else offset + 1
        if min(positions.values(), default=1) > 0:
            return positions
        # The brokers had it already when it was sent again, and do not say where: what they hold now includes it.
        ends = self._topic.ends()
        return {partition: position or ends[partition] for partition, position in positions.items()}

    def read(self, after: Mapping[int, int], max_entries: int, wait_s: float = 0.0) -> list[LogEntry]:
        return self._reader.read(after, max_entries, wait_s)

    def end(self) -> dict[int, int]:
        return self._topic.ends()

    def trimmed_below(self) -> dict[int, int]:
        return self._topic.starts()

    def appended_at(self, partition: int, position: int) -> int:
        if position <= 0:
            return 0
        found = self._single_reader.read({partition: position - 1}, 1, 0.0)
        return found[0].ingested_at_us if found and found[0].position == position else 0

    def position_at(self, partition: int, ingested_at_us: int) -> int:
        if ingested_at_us <= 0:
            return 0
        end = self._topic.ends()[partition]  # before the time is looked up: what is appended meanwhile lies above it
        found = self._topic.first_at(partition, -(-ingested_at_us // 1_000))
        if found is not None:
            return found
        if self.appended_at(partition, end) < ingested_at_us:
            return end
        return self._topic.starts()[partition]  # a broker that does not look up times: from the beginning is right, too

    def trim(self, below: Mapping[int, int]) -> int:
        """0 where the brokers do not let us: what is kept is then up to the topic's retention, and a warning says so."""
        starts, ends = self._topic.starts(), self._topic.ends()
        offsets = {p: min(position, ends[p]) for p, position in below.items()}
        now = self._topic.delete({p: offset for p, offset in offsets.items() if offset > starts[p]})
        return sum(start - starts[partition] for partition, start in now.items())

    def size_bytes(self) -> int:
        """0: the brokers' disks have bounds of their own, and an append that finds them full is refused."""
        return 0

    def check_room(self) -> None:
        """Never raises: see `size_bytes`."""


def open_kafka_log(settings: Settings) -> KafkaEventLog:
    """Raises ValueError for settings that cannot be."""
    return KafkaEventLog(KafkaConfig.of(settings))


def _pieces(payload: bytes, count: int, most_bytes: int) -> Iterator[tuple[bytes, int]]:
    """A payload as messages of at most that size, cut between lines, each with the number of its lines."""
    while len(payload) > most_bytes and (cut := payload.rfind(b"\n", 0, most_bytes + 1)) > 0:
        piece, payload = payload[:cut], payload[cut + 1 :]
        lines = piece.count(b"\n") + 1
        yield piece, lines
        count -= lines
    yield payload, count
