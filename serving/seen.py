"""Read your own writes: a request waits until what was acknowledged to its client is in what it will read."""

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Final

import redis

from headrace.stores.shards import read_status

_EVERY_S: Final = 0.002

Positions = Mapping[int, int]


class Seen:
    """Asks the store for the shards that anybody waits for, once for all of them. Lives on one event loop."""

    def __init__(self, client_of: Callable[[], "redis.Redis | None"], columns_reach: Callable[[], Positions]) -> None:
        """`columns_reach`: by log partition, up to where the replica's columns have everything."""
        self._client_of = client_of
        self._columns_reach = columns_reach
        self._wanted: dict[int, int] = {}
        self._reached: dict[int, Positions] = {}
        self._asking: asyncio.Task[None] | None = None

    async def events(self, shard: int, positions: Positions, within_s: float) -> bool:
        """Whether a shard includes the positions, waited for at most so long."""
        self._wanted[shard] = self._wanted.get(shard, 0) + 1
        try:
            if self._asking is None or self._asking.done():
                self._asking = asyncio.create_task(self._ask())
            return await _until(lambda: _covers(self._reached.get(shard, {}), positions), within_s)
        finally:
            self._wanted[shard] -= 1
            if not self._wanted[shard]:
                del self._wanted[shard]
                self._reached.pop(shard, None)

    async def items(self, positions: Positions, within_s: float) -> bool:
        """Whether the replica's columns include the positions, waited for at most so long."""
        return await _until(lambda: _covers(self._columns_reach(), positions), within_s)

    async def _ask(self) -> None:
        while self._wanted:
            client = self._client_of()
            if client is not None:
                try:
                    found = await asyncio.to_thread(read_status, client, list(self._wanted))
                except redis.RedisError:
                    found = {}  # waiters wait on: what is not seen in time is named in their answers
                self._reached |= {shard: status.positions for shard, status in found.items()}
            await asyncio.sleep(_EVERY_S)


async def _until(condition: Callable[[], bool], within_s: float) -> bool:
    deadline = time.perf_counter() + within_s
    while not condition():
        if time.perf_counter() >= deadline:
            return False
        await asyncio.sleep(_EVERY_S)
    return True


def _covers(reached: Positions, wanted: Positions) -> bool:
    return all(reached.get(partition, -1) >= position for partition, position in wanted.items())
