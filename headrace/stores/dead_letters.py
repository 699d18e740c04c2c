"""Events that were refused after they had been accepted, or while a file was loaded: kept with the reason, counted, never dropped."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass

import orjson
import redis

from headrace import names

KEY = f"{names.PROJECT}:dead"


@dataclass(frozen=True)
class DeadLetter:
    key: str
    origin: str
    field: str
    reason: str
    raw: str


class DeadLetters:
    """A hash by key. The key says where the event came from (a log position, a file's line), so a replay adds nothing twice."""

    def __init__(self, client: "redis.Redis") -> None:
        self._redis = client

    def add(self, letters: list[DeadLetter]) -> int:
        """Keep letters; returns how many were new."""
        pipeline = self._redis.pipeline(transaction=False)
        for letter in letters:
            pipeline.hsetnx(KEY, letter.key, orjson.dumps(asdict(letter)))
        return sum(pipeline.execute())

    def count(self) -> int:
        return int(self._redis.hlen(KEY))

    def __iter__(self) -> Iterator[DeadLetter]:
        for _, raw in self._redis.hscan_iter(KEY):
            yield DeadLetter(**orjson.loads(raw))
