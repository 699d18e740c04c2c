"""How our Kafka clients are set: what the user passes through (SASL, TLS, timeouts), and what is ours because the guarantees rest on it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from headrace.settings import Settings

Value = str | int | float | bool

COUNT_HEADER: Final = "n"
"""Header of a message that says how many records it holds."""

_MESSAGE_BYTES: Final = 1_000_000
_HEADROOM_BYTES: Final = 4_096

_ACKNOWLEDGED: Final = "an event is acknowledged once every in-sync replica has it (acks=all)"
_ONCE: Final = "a client's own retry must not put an entry in twice or out of order (enable.idempotence=true)"
_POSITIONS: Final = "positions are kept with the state, not in Kafka"
_REFUSED: Final = {
    "bootstrap.servers": "it is HEADRACE_KAFKA_BOOTSTRAP",
    "metadata.broker.list": "it is HEADRACE_KAFKA_BOOTSTRAP",
    "acks": _ACKNOWLEDGED,
    "request.required.acks": _ACKNOWLEDGED,
    "delivery.report.only.error": _ACKNOWLEDGED,
    "enable.idempotence": _ONCE,
    "transactional.id": "markers of transactions would take up positions of the log",
    "message.timeout.ms": "how long an append may take is up to its caller",
    "delivery.timeout.ms": "how long an append may take is up to its caller",
    "allow.auto.create.topics": "a topic that a broker makes by itself has its own number of partitions",
    "auto.offset.reset": _POSITIONS,
    "enable.auto.commit": _POSITIONS,
    "enable.auto.offset.store": _POSITIONS,
    "enable.partition.eof": _POSITIONS,
}
_SECRET: Final = ("password", "secret", "key", "pem", "token", "config", "assertion")

# What the user may set otherwise. `log_level`: errors are raised with their reason, so nothing is printed beside them.
_COMMON: Final[dict[str, Value]] = {
    "client.id": "headrace",
    "log_level": 2,
    "reconnect.backoff.max.ms": 1_000,
    "message.max.bytes": _MESSAGE_BYTES,
}
_PRODUCER: Final[dict[str, Value]] = {"linger.ms": 0}
# Short waits: a fetch that waits for one partition holds up one that is added meanwhile, and a full queue should not run empty.
_CONSUMER: Final[dict[str, Value]] = {
    "group.id": "headrace",
    "fetch.wait.max.ms": 50,
    "fetch.queue.backoff.ms": 5,
    "queued.max.messages.kbytes": 16_384,
}


@dataclass(frozen=True)
class KafkaConfig:
    """The topic, and the settings of each kind of client. `passed_through` may hold secrets; `answer_s` is what brokers have to answer."""

    bootstrap: str
    topic: str
    partitions: int
    passed_through: Mapping[str, Value] = field(default_factory=dict, repr=False)
    answer_s: float = 5.0

    @classmethod
    def of(cls, settings: Settings) -> "KafkaConfig":
        """Raises ValueError for a setting that cannot be, naming it and the reason, never its value."""
        config = cls(
            settings.kafka_bootstrap, settings.kafka_topic, settings.log_partitions, _parse(settings.kafka_config)
        )
        if settings.max_event_bytes > config.entry_bytes:
            raise ValueError(
                f"HEADRACE_MAX_EVENT_BYTES={settings.max_event_bytes} does not fit in a message of Kafka: set message.max.bytes "
                f"in HEADRACE_KAFKA_CONFIG and the topic's max.message.bytes to {settings.max_event_bytes + _HEADROOM_BYTES} or more"
            )
        return config

    @property
    def entry_bytes(self) -> int:
        """Largest payload of one message."""
        return int(self.common()["message.max.bytes"]) - _HEADROOM_BYTES

    def common(self) -> dict[str, Value]:
        return _COMMON | dict(self.passed_through) | {"bootstrap.servers": self.bootstrap}

    def producer(self) -> dict[str, Value]:
        ours: dict[str, Value] = {
            "acks": "all",
            "enable.idempotence": True,
            "message.timeout.ms": int(self.answer_s * 1_000),
        }
        return _PRODUCER | self.common() | ours

    def consumer(self, **others: Value) -> dict[str, Value]:
        """Of a consumer of no group's: it joins none, commits nothing, and an offset that is not there is an error."""
        ours: dict[str, Value] = {
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            "auto.offset.reset": "error",
        }
        return _CONSUMER | others | self.common() | ours

    def without_secrets(self, text: str) -> str:
        """Of a text that librdkafka wrote about these settings."""
        for name, value in self.passed_through.items():
            if str(value) and any(word in name for word in _SECRET):
                text = text.replace(str(value), "***")
        return text


def _parse(text: str) -> dict[str, Value]:
    if not text.strip():
        return {}
    try:
        parsed = json.loads(text)
    except json.JSONDecodeError as error:  # `from None`: the error holds the text, the text may hold a password
        raise ValueError(
            f"HEADRACE_KAFKA_CONFIG is no JSON: {error.msg}, line {error.lineno} column {error.colno}"
        ) from None
    if not isinstance(parsed, dict):
        raise ValueError('HEADRACE_KAFKA_CONFIG is no JSON object: write {"security.protocol": "sasl_ssl", ...}')
    for name, value in parsed.items():
        if name in _REFUSED:
            raise ValueError(f"HEADRACE_KAFKA_CONFIG must not set {name}: {_REFUSED[name]}")
        if not isinstance(value, str | int | float):
            raise ValueError(f"HEADRACE_KAFKA_CONFIG: {name} is no text, number or boolean")
    return parsed
