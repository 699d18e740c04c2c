"""A connection to the store that one reader keeps: questions may be sent on it before their answers are wanted.

What waits for its turn has its rows already read by then, so whoever computes never waits for the store while others wait for it.
"""

import select
import socket
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import redis

from headrace.stores.online_wire import (
    NO_BYTES,
    Answer,
    UnfinishedError,
    ViewKeys,
    answer_of,
    command_of,
    place_of,
    receive,
    room_for,
)


class LateError(redis.RedisError):  # type: ignore[misc]
    """The time that a question could wait ended before that which the store is given: no failure of the store's."""


@dataclass(eq=False)
class Sent:
    """A question on its way, or its answer. `at`: when it was sent, as `time.monotonic` says."""

    wanted: Sequence[ViewKeys]
    statuses: Sequence[int]
    replies: int
    at: float
    answer: Answer | None = None


class KeptLine:
    """To one server, without TLS. `send` may be called by any thread; `take` and `read` by one, the reader's."""

    def __init__(self, client: "redis.Redis") -> None:
        self._connection = client.connection_pool.make_connection()
        self._connection.driver_info = None  # which the server would be told in two more round trips
        self._connect_s, self._answer_s = self._connection.socket_connect_timeout, self._connection.socket_timeout
        self._place = place_of(self._connection)
        self._lock = threading.Lock()  # of sending, and of what was sent
        self._sent: deque[Sent] = deque()
        self._begun = NO_BYTES
        self._is_open = False

    def send(self, wanted: Sequence[ViewKeys], statuses: Sequence[int]) -> Sent | None:
        """Ask, if the line is open; never waits. None where it is not, or takes no more."""
        with self._lock:
            if not self._is_open:
                return None
            command, replies = command_of(wanted, statuses)
            line = self._connection._get_socket()
            try:
                took = line.send(command) if _takes_more(line) else 0
            except (OSError, ValueError):  # ValueError: the other thread has closed it just now
                took = 0
            if took < len(command):
                self._hang_up()
                return None
            sent = Sent(wanted, statuses, replies, time.monotonic())
            self._sent.append(sent)
            return sent

    def take(self, sent: Sent, deadline: float | None) -> Answer | None:
        """The answer; None where the line broke since. Answers that come before it are noted where they belong.

        `deadline`, in `time.monotonic`'s seconds, may shorten the client's own time-out: LateError, and the line goes on. Raises
        redis.RedisError for all else, and then gives the line up.
        """
        while sent.answer is None:
            with self._lock:
                if sent not in self._sent:
                    return None
                first, line = self._sent[0], self._connection._get_socket()
            first.answer = self._receive(first, line, deadline)
        return sent.answer

    def read(self, wanted: Sequence[ViewKeys], statuses: Sequence[int], deadline: float | None) -> Answer:
        """Ask and take the answer. A line that broke while it lay idle is taken up once more. Raises redis.RedisError."""
        for _ in range(2):
            was_open = self._is_open
            if not was_open:
                self._connect(deadline)
            sent = self.send(wanted, statuses)
            try:
                answer = self.take(sent, deadline) if sent is not None else None
            except redis.ConnectionError:
                if not was_open:
                    raise
                continue
            if answer is not None:
                return answer
        raise redis.ConnectionError("the line to the store broke twice in a row")

    def close(self) -> None:
        with self._lock:
            self._hang_up()

    def _connect(self, deadline: float | None) -> None:
        self._connection.socket_connect_timeout = _left_s(self._connect_s, deadline)
        self._connection.socket_timeout = _left_s(self._answer_s, deadline)
        try:
            self._connection.connect()
        finally:
            self._connection.socket_timeout = self._answer_s
        self._is_open = True

    def _receive(self, first: Sent, line: socket.socket, deadline: float | None) -> Answer:
        waits_s = _left_s(self._answer_s, deadline)
        try:
            line.settimeout(waits_s)
            room = room_for(first.wanted)
            buffer, starts, lengths, behind = receive(line, self._place, first.replies, room, self._begun)
        except UnfinishedError as error:
            if self._answer_s is None or time.monotonic() - first.at < self._answer_s:
                with self._lock:
                    if self._sent and self._sent[0] is first:
                        self._begun = error.begun
                raise LateError(str(error)) from error
            self.close()
            raise
        except OSError as error:  # the other thread has closed it just now
            self.close()
            raise redis.ConnectionError(f"{self._place} broke off: {error}") from error
        except BaseException:
            self.close()  # what is left of the answer must not be taken for the next one's
            raise
        with self._lock:
            if self._sent and self._sent[0] is first:  # else the line broke since, and what came behind is of no line
                self._sent.popleft()
                self._begun = behind
        return answer_of(buffer, starts, lengths, first.wanted, first.statuses)

    def _hang_up(self) -> None:
        self._is_open = False
        self._connection.disconnect()
        self._sent.clear()
        self._begun = NO_BYTES


def _takes_more(line: socket.socket) -> bool:
    """Whether something can be sent without waiting."""
    ready = select.poll()
    ready.register(line, select.POLLOUT)
    return any(event & select.POLLOUT for _, event in ready.poll(0))


def _left_s(most_s: float | None, deadline: float | None) -> float | None:
    """Raises LateError where none is left."""
    if deadline is None:
        return most_s
    left_s = deadline - time.monotonic()
    if left_s <= 0:
        raise LateError("no time is left to wait for the store")
    return min(left_s, most_s or left_s)
