"""A connection to the store that one reader keeps: questions may be sent on it before their answers are wanted.

What waits for its turn has its rows already read by then, so whoever computes never waits for the store while others wait for it.
"""

import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import redis

from headrace.stores.online_wire import NO_BYTES, Answer, ViewKeys, answer_of, command_of, receive, room_for


@dataclass(eq=False)
class Sent:
    """A question on its way, or its answer."""

    wanted: Sequence[ViewKeys]
    statuses: Sequence[int]
    replies: int
    answer: Answer | None = None


class KeptLine:
    """To one server, without TLS. `send` may be called by any thread; `take` and `read` by one, the reader's."""

    def __init__(self, client: "redis.Redis") -> None:
        self._connection = client.connection_pool.make_connection()
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
            try:
                took = self._connection._get_socket().send(command)
            except OSError:
                took = 0
            if took < len(command):
                self._hang_up()
                return None
            sent = Sent(wanted, statuses, replies)
            self._sent.append(sent)
            return sent

    def take(self, sent: Sent, within_s: float | None) -> Answer | None:
        """The answer; None where the line broke since. Answers that come before it are noted where they belong.

        `within_s` may shorten the client's own time-out. Raises redis.RedisError, and then gives the line up.
        """
        while sent.answer is None:
            with self._lock:
                if sent not in self._sent:
                    return None
                first = self._sent[0]
            first.answer = self._receive(first, within_s)
        return sent.answer

    def read(self, wanted: Sequence[ViewKeys], statuses: Sequence[int], within_s: float | None) -> Answer:
        """Ask and take the answer. A line that broke while it lay idle is taken up once more. Raises redis.RedisError."""
        for _ in range(2):
            was_open = self._is_open
            if not was_open:
                self._connection.connect()
                self._is_open = True
            sent = self.send(wanted, statuses)
            try:
                answer = self.take(sent, within_s) if sent is not None else None
            except redis.TimeoutError:
                raise
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

    def _receive(self, first: Sent, within_s: float | None) -> Answer:
        connection = self._connection
        try:
            waits_s = connection.socket_timeout
            connection._get_socket().settimeout(waits_s if within_s is None else min(within_s, waits_s or within_s))
            room = room_for(first.wanted)
            buffer, starts, lengths, behind = receive(connection, first.replies, room, self._begun)
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
