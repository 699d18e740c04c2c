"""Where the event log is, and how it is opened: Redis Streams by default, Kafka where HEADRACE_KAFKA_BOOTSTRAP names one."""

import redis

from headrace.settings import Settings
from headrace.stores.event_log import EventLog, LogEntry, LogFullError, LogUnavailableError
from headrace.stores.redis_log import open_redis_log

__all__ = ["EventLog", "LogEntry", "LogFullError", "LogUnavailableError", "open_log"]


def open_log(client: "redis.Redis", settings: Settings) -> EventLog:
    """The stack's event log. `client` is the store's. Raises ValueError for settings of Kafka that cannot be."""
    if settings.kafka_bootstrap:
        from headrace.stores.kafka_log import open_kafka_log  # librdkafka is loaded only where it is used

        return open_kafka_log(settings)
    return open_redis_log(client, settings.log_partitions, settings.log_max_bytes)
