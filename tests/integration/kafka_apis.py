"""What the built-in cluster lacks, at a port before it: topics are made, records deleted and times looked up as Kafka's protocol has it.

Every other request is handed on. Formats: https://kafka.apache.org/protocol, versions before the compact ones.
"""

import socket
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from io import BytesIO
from typing import Any, Final

from confluent_kafka import Consumer, TopicPartition

from tests.integration.kafka import LIST_OFFSETS, KafkaCluster

API_VERSIONS: Final = 18
CREATE_TOPICS: Final = 19
DELETE_RECORDS: Final = 21
OURS: Final = {CREATE_TOPICS: 4, DELETE_RECORDS: 1}
LIST_OFFSETS_VERSION: Final = 5
TOPIC_EXISTS: Final = 36
OUT_OF_RANGE: Final = 1


class Reader(BytesIO):
    """Kafka's types from bytes."""

    def number(self, form: str) -> int:
        return int(struct.unpack(f">{form}", self.read(struct.calcsize(form)))[0])

    def text(self) -> str | None:
        length = self.number("h")
        return self.read(length).decode() if length >= 0 else None

    def array(self, item: Callable[[], Any]) -> list[Any]:
        return [item() for _ in range(self.number("i"))]


def text(value: str) -> bytes:
    return struct.pack(">h", len(value)) + value.encode()


def array(items: list[bytes]) -> bytes:
    return struct.pack(">i", len(items)) + b"".join(items)


class FullKafka(KafkaCluster):
    """The cluster behind such a port. `created`: the settings of each topic that was made through it."""

    def __init__(self) -> None:
        super().__init__()
        self.created: dict[str, dict[str, str]] = {}
        self._behind = self.bootstrap
        self._partitions: dict[tuple[str, int], Timestamps] = {}
        self._one_at_a_time = threading.Lock()
        self._door = socket.create_server(("127.0.0.1", 0))
        port = self._door.getsockname()[1]
        self.bootstrap = f"127.0.0.1:{port}"
        self.advertise(port)
        self.speak_at_most(LIST_OFFSETS, LIST_OFFSETS_VERSION)
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._door.close()
        for timestamps in self._partitions.values():
            timestamps.close()
        super().close()

    def answer(self, request: int, version: int, body: Reader) -> bytes | None:
        """The body of the answer, None for what the cluster answers by itself."""
        match request:
            case _ if request == CREATE_TOPICS and version == OURS[request]:
                return bytes(4) + array(body.array(lambda: self._create(body)))
            case _ if request == DELETE_RECORDS and version == OURS[request]:
                return bytes(4) + array(body.array(lambda: self._delete(body)))
            case _ if request == LIST_OFFSETS and version == LIST_OFFSETS_VERSION:
                return self._list_offsets(body)
        return None

    def _create(self, body: Reader) -> bytes:
        name, partitions, _ = body.text(), body.number("i"), body.number("h")
        body.array(lambda: (body.number("i"), body.array(lambda: body.number("i"))))
        settings = body.array(lambda: (body.text(), body.text()))
        with self._one_at_a_time:
            known = name in self.created
            if not known:
                self.create_topic(name, partitions)
                self.created[name] = dict(settings)
        return text(name) + struct.pack(">hh", TOPIC_EXISTS if known else 0, -1)

    def _delete(self, body: Reader) -> bytes:
        topic = body.text()

        def delete() -> bytes:
            partition, offset = body.number("i"), body.number("q")
            if offset > self._timestamps(topic, partition).end():
                return struct.pack(">iqh", partition, -1, OUT_OF_RANGE)
            self.delete_before(topic, partition, offset)
            return struct.pack(">iqh", partition, offset, 0)

        return text(topic) + array(body.array(delete))

    def _list_offsets(self, body: Reader) -> bytes | None:
        body.number("i"), body.number("b")
        asked = body.array(
            lambda: (body.text(), body.array(lambda: (body.number("i"), body.number("i"), body.number("q"))))
        )
        if any(timestamp < 0 for _, partitions in asked for _, _, timestamp in partitions):
            return None
        topics = []
        for topic, partitions in asked:
            found = [(p, *self._timestamps(topic, p).first_at(timestamp)) for p, _, timestamp in partitions]
            topics.append(text(topic) + array([struct.pack(">ihqqi", p, 0, time, at, -1) for p, at, time in found]))
        return bytes(4) + array(topics)

    def _timestamps(self, topic: str, partition: int) -> "Timestamps":
        with self._one_at_a_time:
            if (topic, partition) not in self._partitions:
                self._partitions[topic, partition] = Timestamps(self.bootstrap, topic, partition)
            return self._partitions[topic, partition]

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._door.accept()
            except OSError:  # closed
                return
            host, port = self._behind.split(":")
            try:
                broker = socket.create_connection((host, int(port)))
            except OSError:  # stopped
                hang_up(client)
                continue
            for connection in (client, broker):
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            asked_versions: set[int] = set()
            for target in (self._forth, self._back):
                threading.Thread(target=target, args=(client, broker, asked_versions), daemon=True).start()

    def _forth(self, client: socket.socket, broker: socket.socket, asked_versions: set[int]) -> None:
        try:
            while frame := receive(client):
                body = Reader(frame)
                request, version, number = body.number("h"), body.number("h"), body.number("i")
                body.text()
                if request == API_VERSIONS:
                    asked_versions.add(number)
                answer = self.answer(request, version, body)
                if answer is None:
                    send(broker, frame)
                else:
                    send(client, struct.pack(">i", number) + answer)
        finally:
            hang_up(broker)

    def _back(self, client: socket.socket, broker: socket.socket, asked_versions: set[int]) -> None:
        try:
            while frame := receive(broker):
                if struct.unpack(">i", frame[:4])[0] in asked_versions:
                    frame = with_our_versions(frame)
                send(client, frame)
        finally:
            hang_up(client)


class Timestamps:
    """The times of a partition's messages, read up to its end whenever they are asked for."""

    def __init__(self, bootstrap: str, topic: str, partition: int) -> None:
        self._place = TopicPartition(topic, partition)
        self._consumer = Consumer(
            {
                "bootstrap.servers": bootstrap,
                "group.id": "times",
                "enable.auto.commit": False,
                "auto.offset.reset": "earliest",
                "fetch.wait.max.ms": 10,
                "log_level": 0,
            }
        )
        self._consumer.assign([TopicPartition(topic, partition, 0)])
        self._lock = threading.Lock()
        self._found: list[tuple[int, int]] = []

    def end(self) -> int:
        return int(self._consumer.get_watermark_offsets(self._place, timeout=5)[1])

    def first_at(self, timestamp: int) -> tuple[int, int]:
        """(offset, time) of the first message at or after a time, (-1, -1) where there is none."""
        with self._lock:
            end = self.end()
            while end and (not self._found or self._found[-1][0] < end - 1):
                message = self._consumer.poll(5)
                assert message is not None
                assert message.error() is None
                self._found.append((message.offset(), message.timestamp()[1]))
            start = self._consumer.get_watermark_offsets(self._place, timeout=5)[0]
            return next(((at, time) for at, time in self._found if at >= start and time >= timestamp), (-1, -1))

    def close(self) -> None:
        self._consumer.close()


def with_our_versions(frame: bytes) -> bytes:
    """An answer to ApiVersions (number, error, list of kind, lowest and highest version) with our kinds of request in it."""
    number, error, length = struct.unpack(">ihi", frame[:10])
    if error:
        return frame
    entries = b"".join(struct.pack(">hhh", request, 0, version) for request, version in OURS.items())
    return struct.pack(">ihi", number, 0, length + len(OURS)) + entries + frame[10:]


def receive(connection: socket.socket) -> bytes:
    """One frame; nothing where the connection has ended."""
    try:
        head = connection.recv(4, socket.MSG_WAITALL)
        return connection.recv(struct.unpack(">i", head)[0], socket.MSG_WAITALL) if len(head) == 4 else b""
    except OSError:
        return b""


def send(connection: socket.socket, frame: bytes) -> None:
    try:
        connection.sendall(struct.pack(">i", len(frame)) + frame)
    except OSError:  # the other side has gone
        hang_up(connection)


def hang_up(connection: socket.socket) -> None:
    """Both sides learn of it, also who waits in another thread."""
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
    connection.close()
