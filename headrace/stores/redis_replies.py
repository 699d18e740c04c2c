"""Large replies of Redis, read from the socket of a redis-py connection without the copies that redis-py makes of them."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import redis

_BUFFER: Final = 1 << 18

Reply = Any
"""Bytes, an integer, None, or a list of replies."""


def ask(server: "redis.Redis", commands: Sequence[Sequence[bytes | int]]) -> list[Reply]:
    """Send commands and read their replies, in order. Raises redis.RedisError, also where one of the commands was refused."""
    connection = server.connection_pool.get_connection()
    try:
        connection.send_packed_command([b"".join(map(_pack, commands))])
        reader = _Reader(connection._get_socket())
        with _errors_of_redis():
            return [reader.reply() for _ in commands]
    except BaseException:
        connection.disconnect()  # what was not read must not be taken for the reply to the next command
        raise
    finally:
        server.connection_pool.release(connection)


def _pack(words: Sequence[bytes | int]) -> bytes:
    raw = [word if isinstance(word, bytes) else b"%d" % word for word in words]
    return b"".join([b"*%d\r\n" % len(raw), *(b"$%d\r\n%b\r\n" % (len(word), word) for word in raw)])


@contextmanager
def _errors_of_redis() -> Iterator[None]:
    try:
        yield
    except TimeoutError as error:
        raise redis.TimeoutError("no answer in time") from error
    except OSError as error:
        raise redis.ConnectionError(f"the connection broke off: {error}") from error


class _Reader:
    """RESP2, and of RESP3 what commands without maps and sets answer."""

    def __init__(self, sock: Any) -> None:
        self._sock = sock
        self._buffer = bytearray(_BUFFER)
        self._at = self._filled = 0

    def reply(self) -> Reply:
        line = self._line()
        kind, rest = line[:1], line[1:]
        if kind == b"*":
            return None if rest == b"-1" else [self.reply() for _ in range(int(rest))]
        if kind == b"$":
            return None if rest == b"-1" else self._bulk(int(rest))
        if kind == b":":
            return int(rest)
        if kind == b"-":
            raise redis.ResponseError(rest.decode(errors="replace"))
        return None if kind == b"_" else rest

    def _line(self) -> bytes:
        while (end := self._buffer.find(b"\r\n", self._at, self._filled)) < 0:
            self._receive()
        line, self._at = bytes(self._buffer[self._at : end]), end + 2
        return line

    def _bulk(self, size: int) -> bytes:
        here = min(size, self._filled - self._at)
        if here == size:
            text = bytes(memoryview(self._buffer)[self._at : self._at + size])
        else:
            whole = memoryview(bytearray(size))
            whole[:here] = memoryview(self._buffer)[self._at : self._at + here]
            done = here
            while done < size:
                done += self._received(whole[done:])
            text = bytes(whole)
        self._at += here
        while self._filled - self._at < 2:
            self._receive()
        self._at += 2
        return text

    def _receive(self) -> None:
        """More of the reply behind what is in the buffer and was not read."""
        left = self._filled - self._at
        self._buffer[:left] = self._buffer[self._at : self._filled]
        self._at, self._filled = 0, left
        self._filled += self._received(memoryview(self._buffer)[left:])

    def _received(self, room: memoryview) -> int:
        count: int = self._sock.recv_into(room)
        if count == 0:
            raise ConnectionError("closed by the server")
        return count
