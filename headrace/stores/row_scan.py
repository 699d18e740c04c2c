"""Walking over the rows of all shards: one pass over the server's keys, however many shards there are."""

from collections.abc import Collection, Iterator
from typing import Final

import redis

from headrace.names import PROJECT
from headrace.stores.shards import row_key

_BATCH: Final = 10_000
_UNLINKED_AT_ONCE: Final = 1_000


def scan_views(client: "redis.Redis", views: Collection[str]) -> Iterator[tuple[int, list[str]]]:
    """(shard, row keys) of the views, some thousands at a time. Rows written meanwhile may be missing."""
    wanted = frozenset(views)
    found: dict[int, list[str]] = {}
    count = 0
    for raw in client.scan_iter(match=f"{PROJECT}:{{s*}}:*", count=_BATCH):
        key = raw.decode()
        tag, _, rest = key.partition("}:")
        shard = tag.removeprefix(f"{PROJECT}:{{s")
        if rest.partition(":")[0] in wanted and shard.isdigit():
            found.setdefault(int(shard), []).append(key)
            count += 1
        if count >= _BATCH:
            yield from found.items()
            found, count = {}, 0
    yield from found.items()


def scan_entities(client: "redis.Redis", view: str) -> Iterator[tuple[int, list[str]]]:
    """(shard, entity keys) of the rows of a view, some thousands at a time. A key may come twice."""
    for shard, keys in scan_views(client, [view]):
        start = len(row_key(shard, view, ""))
        yield shard, [key[start:] for key in keys]


def unlink(client: "redis.Redis", shard: int, keys: list[str]) -> int:
    """Delete keys of one shard; returns how many there were."""
    batches = [keys[start : start + _UNLINKED_AT_ONCE] for start in range(0, len(keys), _UNLINKED_AT_ONCE)]
    return sum(int(client.execute_command("UNLINK", *batch)) for batch in batches)
