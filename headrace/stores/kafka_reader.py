"""Reading partitions of the topic from where each reader stands: no group, no committed offsets, what was fetched ahead is kept."""

import logging
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from headrace.stores.event_log import LogEntry, LogUnavailableError
from headrace.stores.kafka_config import COUNT_HEADER, KafkaConfig, Value
from headrace.stores.kafka_topic import KafkaTopic, answering, open_client
from headrace.stores.shards import DeploymentError

logger = logging.getLogger(__name__)


@dataclass
class _Ahead:
    """Of one partition: entries behind position `after` that were fetched, up to position `reached`.

    `newest_ms`: highest timestamp up to there, None as long as it is not known.
    """

    after: int
    reached: int
    newest_ms: int | None
    entries: deque[LogEntry] = field(default_factory=deque)

    def stand_at(self, position: int) -> bool:
        """Whether reading can go on from there with what was fetched."""
        if not self.after <= position <= self.reached:
            return False
        while self.entries and self.entries[0].position <= position:
            self.entries.popleft()
        self.after = position
        return True


class KafkaReader:
    """Holds what the last read named, and only that: naming other partitions, or going back, costs a fetch.

    An entry's time is its message's timestamp, or the highest one before it in the partition where that is higher: it never
    falls, and it is the same wherever a reader has begun. For one thread.
    """

    def __init__(self, config: KafkaConfig, topic: KafkaTopic, **settings: Value) -> None:
        self._config = config
        self._topic = topic
        self._settings = settings
        self._ahead: dict[int, _Ahead] = {}
        self._trouble: deque[KafkaError] = deque(maxlen=1)

    def read(self, after: Mapping[int, int], max_entries: int, wait_s: float) -> list[LogEntry]:
        """As EventLog.read; it may bring less than there is, and nothing (with `wait_s` of 0) only where there is nothing.

        Raises DeploymentError for a position that the topic has not reached.
        """
        self._topic.ensure()
        try:
            with answering():
                self._reach(after, max_entries, wait_s)
        except Exception:
            # Messages may have been taken from the client and lie nowhere: begin anew where the caller stands.
            self._ahead.clear()
            self._consumer.unassign()
            raise
        return [entry for partition in after for entry in islice(self._ahead[partition].entries, max_entries)]

    def _reach(self, after: Mapping[int, int], max_entries: int, wait_s: float) -> None:
        self._stand_at(after)
        most = max_entries * len(after)
        self._fetch(most, wait_s)
        if not self._found() and (wait_s <= 0 or self._trouble) and self._is_behind():
            self._fetch(most, self._config.answer_s)
            if not self._found():
                raise LogUnavailableError("the event log does not hand out what it holds")

    @cached_property
    def _consumer(self) -> Any:
        settings = self._config.consumer(**self._settings)
        return open_client(Consumer, self._config, settings | {"error_cb": self._trouble.append})

    def _stand_at(self, after: Mapping[int, int]) -> None:
        """Assign the partitions named, each at its position, unless it is there."""
        moved = [p for p, position in after.items() if p not in self._ahead or not self._ahead[p].stand_at(position)]
        gone = [p for p in self._ahead if p not in after or p in moved]
        if gone:
            self._consumer.incremental_unassign([TopicPartition(self._config.topic, p) for p in gone])
            for partition in gone:
                del self._ahead[partition]
        if moved:
            self._assign({p: after[p] for p in moved})
            self._ahead |= {p: _Ahead(after[p], after[p], None if after[p] else 0) for p in moved}

    def _assign(self, positions: Mapping[int, int]) -> None:
        places = [TopicPartition(self._config.topic, partition, offset) for partition, offset in positions.items()]
        self._consumer.incremental_assign(places)

    def _found(self) -> bool:
        return any(ahead.entries for ahead in self._ahead.values())

    def _fetch(self, most: int, wait_s: float) -> None:
        """Take in what is there, at most `most` entries in all; if it is nothing, wait for the first."""
        deadline = time.monotonic() + wait_s
        while True:
            room = most - sum(len(ahead.entries) for ahead in self._ahead.values())
            self._take_in(self._consumer.consume(room, 0) if room > 0 else [])
            left_s = deadline - time.monotonic()
            if left_s <= 0 or self._found():
                return
            first = self._consumer.poll(left_s)
            self._take_in([first] if first is not None else [])

    def _take_in(self, messages: list[Message]) -> None:
        for message in messages:
            ahead = self._ahead.get(message.partition())
            if (error := message.error()) is not None:
                self._see_to(error, message.partition(), ahead)
            elif ahead is not None and message.offset() >= ahead.reached:
                ahead.entries.append(self._entry(message, ahead))
                ahead.reached = message.offset() + 1

    def _entry(self, message: Message, ahead: _Ahead) -> LogEntry:
        _, timestamp_ms = message.timestamp()
        if ahead.newest_ms is None:
            ahead.newest_ms = self._topic.newest_before(message.partition(), message.offset(), max(timestamp_ms, 0))
        ahead.newest_ms = max(ahead.newest_ms, timestamp_ms)
        count = int(dict(message.headers() or ()).get(COUNT_HEADER, 1))
        return LogEntry(
            message.partition(), message.offset() + 1, ahead.newest_ms * 1_000, message.value() or b"", count
        )

    def _see_to(self, error: KafkaError, partition: int, ahead: _Ahead | None) -> None:
        """What comes in place of a message."""
        if error.code() != KafkaError._AUTO_OFFSET_RESET:
            raise KafkaException(error)
        if ahead is None:
            return
        start = self._topic.starts()[partition]
        if ahead.reached >= start:
            raise _beyond(partition, ahead.reached, self._topic.ends()[partition])
        if ahead.reached:
            logger.warning(
                "partition %d of the event log: positions %d to %d were deleted before they were read here",
                partition, ahead.reached + 1, start,
            )  # fmt: skip
        self._consumer.incremental_unassign([TopicPartition(self._config.topic, partition)])
        self._assign({partition: start})
        ahead.reached = start

    def _is_behind(self) -> bool:
        """Whether the brokers hold more than was fetched."""
        ends = self._topic.ends()
        self._trouble.clear()
        for partition, ahead in self._ahead.items():
            if ahead.reached > ends[partition]:
                raise _beyond(partition, ahead.reached, ends[partition])
        return any(ahead.reached < ends[partition] for partition, ahead in self._ahead.items())


def _beyond(partition: int, position: int, end: int) -> DeploymentError:
    return DeploymentError(
        f"position {position} of partition {partition} lies beyond the end of the topic, {end}: online state and lake were made "
        "from another log, or the topic was made anew; go back to that log, or begin with an empty store and lake"
    )
