"""What HEADRACE_KAFKA_CONFIG may hold, and that what it holds is never shown."""

import json

import pytest
from confluent_kafka import Producer

from headrace.settings import Settings
from headrace.stores.kafka_config import KafkaConfig
from headrace.stores.kafka_topic import open_client

SASL = {
    "security.protocol": "sasl_ssl",
    "sasl.mechanism": "SCRAM-SHA-512",
    "sasl.username": "headrace",
    "sasl.password": "hunter2hunter2",
    "ssl.ca.location": "/etc/kafka/ca.pem",
}


def settings_with(config: object, **others: object) -> Settings:
    text = config if isinstance(config, str) else json.dumps(config)
    return Settings(kafka_bootstrap="kafka-1:9093,kafka-2:9093", kafka_config=text, **others)  # type: ignore[arg-type]


def test_sasl_and_tls_are_passed_to_every_client_beside_what_is_ours() -> None:
    config = KafkaConfig.of(settings_with(SASL | {"compression.type": "zstd"}))
    for settings in (config.producer(), config.consumer(), config.common()):
        assert settings["bootstrap.servers"] == "kafka-1:9093,kafka-2:9093"
        assert {name: settings[name] for name in SASL} == SASL
    assert config.producer() | {"acks": "all", "enable.idempotence": True, "linger.ms": 0} == config.producer()
    assert config.consumer()["auto.offset.reset"] == "error"


def test_defaults_give_way_to_what_the_user_sets() -> None:
    config = KafkaConfig.of(settings_with({"fetch.wait.max.ms": 500, "linger.ms": 5, "group.id": "mine"}))
    assert config.consumer()["fetch.wait.max.ms"] == 500
    assert config.consumer()["group.id"] == "mine"
    assert config.producer()["linger.ms"] == 5


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("acks", "acknowledged once every in-sync replica has it"),
        ("request.required.acks", "acknowledged once every in-sync replica has it"),
        ("enable.idempotence", "twice or out of order"),
        ("transactional.id", "markers of transactions"),
        ("auto.offset.reset", "positions are kept with the state"),
        ("bootstrap.servers", "HEADRACE_KAFKA_BOOTSTRAP"),
        ("message.timeout.ms", "how long an append may take"),
    ],
)
def test_what_would_break_a_guarantee_is_refused_with_the_reason(name: str, reason: str) -> None:
    with pytest.raises(ValueError, match=f"must not set {name}: .*{reason}"):
        KafkaConfig.of(settings_with({name: "1"}))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"sasl.password": "hunter2hunter2"', "is no JSON: Expecting ',' delimiter, line 1 column 35"),
        ('["hunter2hunter2"]', "is no JSON object"),
        ('{"sasl.password": {"hunter2hunter2": 1}}', "sasl.password is no text, number or boolean"),
    ],
)
def test_what_is_no_object_of_settings_is_refused_without_quoting_it(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        KafkaConfig.of(settings_with(text))
    assert "hunter2" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_what_librdkafka_refuses_is_said_without_secrets() -> None:
    config = KafkaConfig.of(settings_with({"security.protocol": "hunter2hunter2", "sasl.password": "hunter2hunter2"}))
    with pytest.raises(ValueError, match=r'HEADRACE_KAFKA_CONFIG: Invalid value "\*\*\*" .* "security.protocol"'):
        open_client(Producer, config, config.producer())


def test_no_secret_is_in_what_settings_look_like() -> None:
    settings = settings_with(SASL)
    assert "hunter2" not in repr(settings) + repr(KafkaConfig.of(settings))


def test_an_event_that_may_be_larger_than_a_message_is_refused_at_start() -> None:
    assert KafkaConfig.of(settings_with("", max_event_bytes=900_000)).entry_bytes == 995_904
    with pytest.raises(ValueError, match=r"HEADRACE_MAX_EVENT_BYTES=999999 .* message.max.bytes .* to 1004095 or more"):
        KafkaConfig.of(settings_with("", max_event_bytes=999_999))
    assert KafkaConfig.of(settings_with({"message.max.bytes": 2_000_000}, max_event_bytes=999_999))
