"""The event log's topic as the brokers know it: made where it is missing, where its partitions begin and end, what is deleted.

An offset of Kafka counts from 0; the log's position of an entry is its offset + 1.
"""

import logging
import time
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from typing import Any, Final

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic, OffsetSpec

from headrace.stores.event_log import LogUnavailableError
from headrace.stores.kafka_config import KafkaConfig
from headrace.stores.shards import DeploymentError

logger = logging.getLogger(__name__)

# Readers trim what none of them needs; retention by the topic's own settings could take what one of them has not read.
NEW_TOPIC: Final = {
    "cleanup.policy": "delete",
    "message.timestamp.type": "LogAppendTime",
    "retention.bytes": "-1",
    "retention.ms": "-1",
}
_REPLICAS_OF_THE_BROKER: Final = -1
_ASK_AGAIN_S: Final = 0.1
_MAY_NOT_DELETE: Final = {
    KafkaError._UNSUPPORTED_FEATURE,
    KafkaError.CLUSTER_AUTHORIZATION_FAILED,
    KafkaError.POLICY_VIOLATION,
    KafkaError.TOPIC_AUTHORIZATION_FAILED,
    KafkaError.UNSUPPORTED_VERSION,
}


@contextmanager
def answering(failure: str = "does not answer") -> Iterator[None]:
    """Errors of Kafka as what they mean for the log."""
    try:
        yield
    except KafkaException as error:
        raise LogUnavailableError(f"the event log {failure}: {error.args[0].str()}") from error
    except (BufferError, TimeoutError) as error:
        raise LogUnavailableError(f"the event log {failure}: {str(error) or 'no answer in time'}") from error


def open_client(kind: Callable[[dict[str, Any]], Any], config: KafkaConfig, settings: Mapping[str, Any]) -> Any:
    """A client of librdkafka. Raises ValueError for settings that it does not take."""
    try:
        return kind(dict(settings))
    except KafkaException as error:  # `from None`: its text may quote a setting
        raise ValueError(f"HEADRACE_KAFKA_CONFIG: {config.without_secrets(error.args[0].str())}") from None


class KafkaTopic:
    """Asks the brokers. Raises LogUnavailableError where they do not answer, DeploymentError where the topic is not as set."""

    def __init__(self, config: KafkaConfig) -> None:
        self._config = config
        self._name = config.topic
        self._answer_s = config.answer_s
        self._ensured = False
        self._may_delete = True

    def ensure(self) -> None:
        """Make the topic if there is none; refuse one with another number of partitions. Asks once."""
        if self._ensured:
            return
        found = self._partitions() or self._create()
        if found != self._config.partitions:
            raise DeploymentError(
                f"the topic {self._name} has {found} partitions, the settings say {self._config.partitions}: set "
                f"HEADRACE_LOG_PARTITIONS={found}, or another HEADRACE_KAFKA_TOPIC"
            )
        self._ensured = True

    def starts(self) -> dict[int, int]:
        """Offset of the first message of each partition: so many have been deleted before it."""
        return self._offsets(dict.fromkeys(range(self._config.partitions), OffsetSpec.earliest()))

    def ends(self) -> dict[int, int]:
        """Offset behind the last message of each partition."""
        return self._offsets(dict.fromkeys(range(self._config.partitions), OffsetSpec.latest()))

    def first_at(self, partition: int, timestamp_ms: int) -> int | None:
        """Offset of the first message with that timestamp or a later one; None where there is none."""
        found = self._offsets({partition: OffsetSpec.for_timestamp(timestamp_ms)}, none=-1)[partition]
        return None if found == -1 else found

    def newest_before(self, partition: int, offset: int, timestamp_ms: int) -> int:
        """Highest timestamp of the messages before an offset, or the one given if none of them has a higher one."""

        def before(milliseconds: int) -> bool:
            first = self.first_at(partition, milliseconds)
            return first is None or first >= offset

        if before(timestamp_ms + 1):
            return timestamp_ms
        step = 1
        while not before(timestamp_ms + 2 * step):
            step *= 2
        highest = range(timestamp_ms + step, timestamp_ms + 2 * step)
        return highest[bisect_left(highest, True, key=before) - 1]

    def delete(self, offsets: Mapping[int, int]) -> dict[int, int]:
        """Delete the messages before these offsets; returns where the partitions begin then, nothing where brokers do not let us."""
        if not offsets or not self._may_delete:
            return {}
        self.ensure()
        wanted = [TopicPartition(self._name, partition, offset) for partition, offset in offsets.items()]
        with answering("was not trimmed"):
            futures = self._admin.delete_records(wanted, request_timeout=self._answer_s)
            try:
                return {each.partition: future.result(self._answer_s).low_watermark for each, future in futures.items()}
            except KafkaException as error:
                if error.args[0].code() not in _MAY_NOT_DELETE:
                    raise
                self._may_delete = False
                reason = error.args[0].str()
        logger.warning(
            "the event log is not trimmed, what it keeps is up to the retention of the topic %s: %s", self._name, reason
        )
        return {}

    @cached_property
    def _admin(self) -> AdminClient:
        return open_client(AdminClient, self._config, self._config.common())

    def _offsets(self, wanted: Mapping[int, OffsetSpec], none: int = 0) -> dict[int, int]:
        """What the brokers say to each partition's question. Below `none` it is no answer, as while a partition has no leader."""
        self.ensure()
        places = {TopicPartition(self._name, partition): spec for partition, spec in wanted.items()}
        deadline = time.monotonic() + self._answer_s
        while True:
            with answering():
                futures = self._admin.list_offsets(places, request_timeout=self._answer_s)
                try:
                    found = {each.partition: future.result(self._answer_s).offset for each, future in futures.items()}
                except KafkaException as error:
                    if error.args[0].code() != KafkaError._NOENT:
                        raise
                    found = {}
            if found and min(found.values()) >= none:
                return found
            if time.monotonic() > deadline:
                raise LogUnavailableError("the event log does not answer: no broker leads one of its partitions")
            time.sleep(_ASK_AGAIN_S)

    def _partitions(self) -> int:
        """How many the topic has, 0 where there is no topic. Asked by a consumer, for which no broker makes a topic by itself."""
        reasons: deque[KafkaError] = deque(maxlen=1)
        consumer = open_client(Consumer, self._config, self._config.consumer() | {"error_cb": reasons.append})
        try:
            found = consumer.list_topics(self._name, self._answer_s).topics[self._name]
            if found.error is not None and found.error.code() != KafkaError.UNKNOWN_TOPIC_OR_PART:
                raise KafkaException(found.error)
            return len(found.partitions)
        except KafkaException as error:
            consumer.poll(0)  # lets it say why
            why = "; ".join(each.str() for each in (error.args[0], *reasons))
            raise LogUnavailableError(f"the event log does not answer: {why}") from error
        finally:
            consumer.close()

    def _create(self) -> int:
        """Make the topic; returns how many partitions it has, as soon as the brokers know it."""
        topic = NewTopic(self._name, self._config.partitions, _REPLICAS_OF_THE_BROKER, config=NEW_TOPIC)
        try:
            with answering(f"has no topic {self._name}, and it could not be made"):
                made = self._admin.create_topics([topic], request_timeout=self._answer_s)[self._name]
                made.result(2 * self._answer_s)
        except LogUnavailableError as error:
            if not _is_there(error):
                raise
        deadline = time.monotonic() + self._answer_s
        while not (found := self._partitions()):
            if time.monotonic() > deadline:
                raise LogUnavailableError(f"the topic {self._name} was made, and no broker knows it")
            time.sleep(_ASK_AGAIN_S)
        return found


def _is_there(error: LogUnavailableError) -> bool:
    """Somebody else was faster."""
    cause = error.__cause__
    return isinstance(cause, KafkaException) and cause.args[0].code() == KafkaError.TOPIC_ALREADY_EXISTS
