"""Rows of a state that is being built, beside those of the state that serves."""

from collections.abc import Mapping, Sequence
from typing import Final

import redis

from headrace.stores.row_scan import unlink
from headrace.stores.shards import shard_tag

_STAGED_AT_ONCE: Final = 1_000


class StagedRows:
    """The new rows of one shard."""

    def __init__(self, client: "redis.Redis", shard: int) -> None:
        self._redis = client
        self.shard = shard
        self._prefix = f"{shard_tag(shard)}@staged:"
        self.index_key = f"{shard_tag(shard)}@staged"
        self.placed_key = f"{shard_tag(shard)}@placed"

    def clear(self) -> None:
        """Drop what an exchange that was never decided has left."""
        names = [self.staged_key(name.decode()) for name in self._redis.sscan_iter(self.index_key, count=10_000)]
        unlink(self._redis, self.shard, names)
        self._redis.execute_command("UNLINK", self.index_key, self.placed_key)

    def put(self, view: str, rows: Mapping[str, bytes]) -> None:
        """Stage rows by entity key, replacing those that are staged."""
        keys = list(rows)
        for start in range(0, len(keys), _STAGED_AT_ONCE):
            batch = keys[start : start + _STAGED_AT_ONCE]
            # The index first: whatever is staged can be found again.
            self._redis.execute_command("SADD", self.index_key, *(f"{view}:{key}" for key in batch))
            pairs = [part for key in batch for part in (self.staged_key(f"{view}:{key}"), rows[key])]
            self._redis.execute_command("MSET", *pairs)

    def get(self, view: str, keys: Sequence[str]) -> list[bytes | None]:
        """Staged rows, None where there is none."""
        rows: list[bytes | None] = []
        for start in range(0, len(keys), _STAGED_AT_ONCE):
            batch = [self.staged_key(f"{view}:{key}") for key in keys[start : start + _STAGED_AT_ONCE]]
            rows += self._redis.execute_command("MGET", *batch)
        return rows

    def names(self) -> set[str]:
        """`view:entity key` of all rows that are staged and not in place yet."""
        return {name.decode() for name in self._redis.sscan_iter(self.index_key, count=10_000)}

    def hold(self, names: Sequence[str]) -> list[bool]:
        """Which of the names belong to the new state, staged or in place."""
        found = [self._redis.smismember(key, list(names)) for key in (self.index_key, self.placed_key) if names]
        return [any(each) for each in zip(*found, strict=True)]

    def staged_key(self, name: str) -> str:
        return self._prefix + name
