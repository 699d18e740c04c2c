"""A request waits until what was acknowledged is in what it will read, and no longer than it may."""

import asyncio
import time
from collections.abc import Coroutine
from typing import Any

import pytest
import redis

from headrace.stores.shards import ShardStatus
from serving import seen as module
from serving.seen import Seen


class Shards:
    """Stands for the store: positions by shard, and how often it was asked for which."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.positions: dict[int, dict[int, int]] = {}
        self.asked: list[list[int]] = []
        self.error: redis.RedisError | None = None
        monkeypatch.setattr(module, "read_status", self.read)

    def read(self, client: object, shards: list[int]) -> dict[int, ShardStatus]:
        self.asked.append(shards)
        if self.error is not None:
            raise self.error
        return {shard: ShardStatus(dict(self.positions.get(shard, {}))) for shard in shards}


@pytest.fixture
def shards(monkeypatch: pytest.MonkeyPatch) -> Shards:
    return Shards(monkeypatch)


def seen(columns: dict[int, int] | None = None) -> Seen:
    return Seen(lambda: object(), lambda: columns or {})  # type: ignore[arg-type, return-value]


def run(work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(work)


def test_what_a_shard_includes_is_seen_at_once(shards: Shards) -> None:
    shards.positions[2] = {0: 7, 1: 9}
    assert run(seen().events(2, {0: 7}, 20)) is True
    assert run(seen().events(2, {0: 6, 1: 9}, 20)) is True
    assert run(seen().events(2, {}, 0)) is True


def test_what_it_does_not_include_is_waited_for_until_the_time_is_over(shards: Shards) -> None:
    shards.positions[2] = {0: 7}
    begun = time.monotonic()
    assert run(seen().events(2, {0: 8}, 0.05)) is False
    assert run(seen().events(2, {1: 0}, 0.05)) is False
    assert time.monotonic() - begun >= 0.1
    assert run(seen().events(2, {0: 8}, 0)) is False


def test_a_waiter_goes_on_as_soon_as_it_is_included(shards: Shards) -> None:
    async def story() -> bool:
        waiting = asyncio.create_task(seen().events(2, {0: 8}, 20))
        while len(shards.asked) < 3:
            await asyncio.sleep(0.001)
        assert not waiting.done()
        shards.positions[2] = {0: 8}
        return await waiting

    assert run(story()) is True


def test_all_who_wait_are_asked_for_together_and_nobody_is_asked_for_once_nobody_waits(shards: Shards) -> None:
    async def story() -> tuple[list[bool], int]:
        waits = seen()
        shards.positions = {1: {0: 5}, 2: {0: 5}}
        answers = await asyncio.gather(
            *(waits.events(shard, {0: position}, 0.3) for shard in (1, 2) for position in (4, 5, 6))
        )
        await asyncio.sleep(0.05)
        asked = len(shards.asked)
        await asyncio.sleep(0.05)
        assert len(shards.asked) == asked
        return answers, asked

    answers, _ = run(story())
    assert answers == [True, True, False] * 2
    assert [1, 2] in [sorted(each) for each in shards.asked]
    assert all(len(each) == len(set(each)) for each in shards.asked)


def test_a_store_that_fails_is_asked_again_and_one_that_is_not_there_is_waited_for(shards: Shards) -> None:
    async def story() -> bool:
        shards.error = redis.ConnectionError("gone")
        waiting = asyncio.create_task(seen().events(1, {0: 1}, 20))
        while len(shards.asked) < 3:
            await asyncio.sleep(0.001)
        shards.error, shards.positions[1] = None, {0: 1}
        return await waiting

    assert run(story()) is True
    assert run(Seen(lambda: None, dict).events(1, {0: 1}, 0.05)) is False


def test_beyond_a_bound_nobody_waits(shards: Shards, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_WAITING", 2)

    async def story() -> list[bool]:
        waits = seen()
        waiting = [asyncio.create_task(waits.events(1, {0: 1}, 20)) for _ in range(2)]
        await asyncio.sleep(0.01)
        at_once = await asyncio.wait_for(waits.events(1, {0: 1}, 20), 1)
        shards.positions[1] = {0: 1}
        return [at_once, *await asyncio.gather(*waiting), await waits.events(1, {0: 1}, 20)]

    assert run(story()) == [False, True, True, True]


def test_a_client_that_goes_away_leaves_no_waiter(shards: Shards) -> None:
    async def story() -> int:
        waits = seen()
        waiting = asyncio.create_task(waits.events(1, {0: 1}, 20))
        await asyncio.sleep(0.01)
        waiting.cancel()
        await asyncio.sleep(0.05)
        asked = len(shards.asked)
        await asyncio.sleep(0.05)
        return len(shards.asked) - asked

    assert run(story()) == 0


def test_items_are_seen_when_the_columns_of_this_replica_have_them() -> None:
    async def story() -> bool:
        columns = {0: 3}
        waits = seen(columns)
        assert await waits.items({0: 3}, 0) is True
        assert await waits.items({0: 4}, 0.02) is False
        waiting = asyncio.create_task(waits.items({0: 4}, 20))
        await asyncio.sleep(0.01)
        columns[0] = 4
        return await waiting

    assert run(story()) is True
