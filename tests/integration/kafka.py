"""A Kafka cluster of a test's own: the one that is built into librdkafka, reachable over loopback by every process.

It takes produce, fetch and metadata requests as Kafka does. It does not make topics, delete records or look up times, and its messages
carry the producer's time: tests.integration.kafka_apis adds the first three. It keeps 5 MB of each partition.
"""

import ctypes
from pathlib import Path
from typing import Any, Final

import confluent_kafka

PRODUCE: Final = 0
LIST_OFFSETS: Final = 2

_PRODUCER: Final = 0
_ALL: Final = -1
_FUNCTIONS: Final = {  # name: (what it returns, what it takes)
    "conf_new": (ctypes.c_void_p, []),
    "conf_set": (ctypes.c_int, [ctypes.c_void_p, *[ctypes.c_char_p] * 3, ctypes.c_size_t]),
    "new": (ctypes.c_void_p, [ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t]),
    "destroy": (None, [ctypes.c_void_p]),
    "handle_mock_cluster": (ctypes.c_void_p, [ctypes.c_void_p]),
    "mock_cluster_bootstraps": (ctypes.c_char_p, [ctypes.c_void_p]),
    "mock_topic_create": (ctypes.c_int, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int, ctypes.c_int]),
    "mock_topic_delete": (ctypes.c_int, [ctypes.c_void_p, ctypes.c_char_p]),
    "mock_partition_delete_records": (
        ctypes.c_int,
        [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int32, ctypes.c_int64],
    ),
    "mock_broker_set_down": (ctypes.c_int, [ctypes.c_void_p, ctypes.c_int32]),
    "mock_broker_set_up": (ctypes.c_int, [ctypes.c_void_p, ctypes.c_int32]),
    "mock_broker_set_host_port": (
        ctypes.c_int,
        [ctypes.c_void_p, ctypes.c_int32, ctypes.c_char_p, ctypes.c_int32],
    ),
    "mock_set_apiversion": (ctypes.c_int, [ctypes.c_void_p, *[ctypes.c_int16] * 3]),
    "mock_set_controller_id": (ctypes.c_int, [ctypes.c_void_p, ctypes.c_int32]),
    "mock_clear_request_errors": (None, [ctypes.c_void_p, ctypes.c_int16]),
    "mock_push_request_errors_array": (
        None,
        [ctypes.c_void_p, ctypes.c_int16, ctypes.c_size_t, ctypes.POINTER(ctypes.c_int)],
    ),
}


def _load() -> dict[str, Any]:
    """librdkafka as the wheel of confluent-kafka brings it along."""
    libraries = Path(confluent_kafka.__file__).parent.parent / "confluent_kafka.libs"
    library = ctypes.CDLL(str(next(libraries.glob("librdkafka*"))))
    functions = {}
    for name, (returned, taken) in _FUNCTIONS.items():
        functions[name] = getattr(library, f"rd_kafka_{name}")
        functions[name].restype, functions[name].argtypes = returned, taken
    return functions


class KafkaCluster:
    """One broker with number 1, which is the controller. It is gone with `close()`."""

    def __init__(self) -> None:
        self._call = _load()
        settings = self._call["conf_new"]()
        said = ctypes.create_string_buffer(512)
        for name, value in {b"test.mock.num.brokers": b"1", b"log_level": b"0"}.items():
            assert self._call["conf_set"](settings, name, value, said, len(said)) == 0, said.value
        self._client = self._call["new"](_PRODUCER, settings, said, len(said))
        assert self._client, said.value
        self._cluster = self._call["handle_mock_cluster"](self._client)
        self._call["mock_set_controller_id"](self._cluster, 1)
        self.bootstrap: str = self._call["mock_cluster_bootstraps"](self._cluster).decode()

    def create_topic(self, name: str, partitions: int) -> None:
        assert self._call["mock_topic_create"](self._cluster, name.encode(), partitions, 1) == 0

    def delete_topic(self, name: str) -> None:
        assert self._call["mock_topic_delete"](self._cluster, name.encode()) == 0

    def delete_before(self, topic: str, partition: int, offset: int) -> None:
        """What retention does, or a request to delete records."""
        assert self._call["mock_partition_delete_records"](self._cluster, topic.encode(), partition, offset) == 0

    def stop(self) -> None:
        """Every connection ends, and none can be made."""
        self._call["mock_broker_set_down"](self._cluster, _ALL)

    def go_on(self) -> None:
        self._call["mock_broker_set_up"](self._cluster, _ALL)

    def fail(self, request: int, *errors: int) -> None:
        """The next requests of that kind are answered with these errors, one each."""
        codes = (ctypes.c_int * len(errors))(*errors)
        self._call["mock_push_request_errors_array"](self._cluster, request, len(errors), codes)

    def stop_failing(self, request: int) -> None:
        self._call["mock_clear_request_errors"](self._cluster, request)

    def speak_at_most(self, request: int, version: int) -> None:
        assert self._call["mock_set_apiversion"](self._cluster, request, 0, version) == 0

    def advertise(self, port: int) -> None:
        """Clients are told to find the broker at that port."""
        assert self._call["mock_broker_set_host_port"](self._cluster, 1, b"127.0.0.1", port) == 0

    def close(self) -> None:
        self._call["destroy"](self._client)
