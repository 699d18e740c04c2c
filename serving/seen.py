"""Read your own writes: a request waits until what was acknowledged to its client is in what it will read."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import redis

from headrace.stores.shards import read_status

_EVERY_S: Final = 0.002
MOST_WAITING: Final = 500
"""Beyond so many at a time a request does not wait: all of them are looked through at every turn."""

Positions = Mapping[int, int]


class Seen:
    """Asks the store for the shards that anybody waits for, once for all of them. Lives on one event loop."""

    def __init__(self, client_of: Callable[[], "redis.Redis | None"], columns_reach: Callable[[], Positions]) -> None:
        """`columns_reach`: by log partition, up to where the replica's columns have everything."""
        self._client_of = client_of
        self._columns_reach = columns_reach
        self._waiting: dict[asyncio.Future[None], tuple[int | None, Positions]] = {}
        """Shard and positions of each request that waits; no shard where it waits for the columns."""
        self._looking: asyncio.Task[None] | None = None

    async def events(self, shard: int, positions: Positions, within_s: float) -> bool:
        """Whether a shard includes the positions, waited for at most so long."""
        return _covers({}, positions) or await self._wait(shard, positions, within_s)

    async def items(self, positions: Positions, within_s: float) -> bool:
        """Whether the replica's columns include the positions, waited for at most so long."""
        return _covers(self._columns_reach(), positions) or await self._wait(None, positions, within_s)

    async def _wait(self, shard: int | None, positions: Positions, within_s: float) -> bool:
        if len(self._waiting) >= MOST_WAITING or within_s <= 0:
            return False
        seen: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[seen] = shard, positions
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._look())
        try:
            await asyncio.wait_for(seen, within_s)
        except TimeoutError:
            return False
        finally:
            del self._waiting[seen]
        return True

    async def _look(self) -> None:
        while self._waiting:
            shards = {shard for shard, _ in self._waiting.values() if shard is not None}
            reached = await self._reached(list(shards)) if shards else {}
            columns = self._columns_reach()
            for seen, (shard, positions) in self._waiting.items():
                if not seen.done() and _covers(columns if shard is None else reached.get(shard, {}), positions):
                    seen.set_result(None)
            await asyncio.sleep(_EVERY_S)

    async def _reached(self, shards: Sequence[int]) -> dict[int, Positions]:
        client = self._client_of()
        if client is None:
            return {}
        try:
            found = await asyncio.to_thread(read_status, client, shards)
        except redis.RedisError:
            return {}  # waiters wait on: what is not seen in time is named in their answers
        return {shard: status.positions for shard, status in found.items()}


def _covers(reached: Positions, wanted: Positions) -> bool:
    return all(reached.get(partition, -1) >= position for partition, position in wanted.items())
