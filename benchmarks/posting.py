"""Posts to the API over kept-alive connections, as many at once as the schedule asks for: no post waits for another."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Self

from headrace import names
from headrace.settings import Settings

PATIENCE_S: Final = 30.0


@dataclass(frozen=True)
class Answer:
    """Status, body and headers of one post; status 0 where the connection broke or nothing came for `PATIENCE_S`."""

    status: int
    body: bytes
    headers: Mapping[bytes, bytes] = field(default_factory=dict)


class Poster:
    """`POST path` of these settings. Lives on one event loop; opens a connection more where all are busy."""

    def __init__(self, settings: Settings, path: str = names.EVENTS_PATH) -> None:
        self._host, self._port = settings.http_host, settings.http_port
        own = {names.EVENTS_PATH: settings.event_keys, names.ITEMS_PATH: settings.admin_keys}
        keys = own.get(path, settings.read_keys)
        self._head = (
            f"POST {path} HTTP/1.1\r\nhost: {self._host}:{self._port}\r\n"
            f"authorization: Bearer {keys.split(',')[0]}\r\ncontent-type: application/json\r\n"
        ).encode()
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_exception: object) -> None:
        for _, writer in self._idle:
            writer.close()

    async def post(self, body: bytes) -> Answer:
        """Sent once more on a new connection where the server had closed an idle one: an event_id counts once."""
        reused = bool(self._idle)
        writer: asyncio.StreamWriter | None = None
        try:
            async with asyncio.timeout(PATIENCE_S):
                reader, writer = self._idle.pop() if reused else await asyncio.open_connection(self._host, self._port)
                writer.write(self._head + b"content-length: %d\r\n\r\n" % len(body) + body)
                answer, stays_open = await _read_answer(reader)
        except (OSError, EOFError) as error:
            if writer is not None:
                writer.close()
            again = reused and not isinstance(error, TimeoutError)
            return await self.post(body) if again else Answer(0, b"")
        if stays_open:
            self._idle.append((reader, writer))
        else:
            writer.close()
        return answer


async def _read_answer(reader: asyncio.StreamReader) -> tuple[Answer, bool]:
    """An answer that names its length, as the API's do, and whether the connection may be used again.

    Raises EOFError where the connection ends before.
    """
    status, *lines = (await reader.readuntil(b"\r\n\r\n")).lower().split(b"\r\n")
    headers = dict(line.split(b": ", 1) for line in lines if line)
    body = await reader.readexactly(int(headers[b"content-length"]))
    return Answer(int(status.split()[1]), body, headers), headers.get(b"connection") != b"close"
