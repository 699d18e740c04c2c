"""Rows of a state that is being built, beside those of the state that serves."""

from collections.abc import Mapping, Sequence
from typing import Final

import redis

from headrace.stores.row_scan import unlink
from headrace.stores.shards import OwnershipError, commit_key, shard_tag

_STAGED_AT_ONCE: Final = 1_000
# KEYS: commit hash, index, rows...   ARGV: exchange, name, row, name, row...
_PUT_SCRIPT: Final = """
if redis.call('HGET', KEYS[1], 'staging') ~= ARGV[1] then return 0 end
for i = 3, #KEYS do
  redis.call('SADD', KEYS[2], ARGV[2 * i - 4])
  redis.call('SET', KEYS[i], ARGV[2 * i - 3])
end
return 1
"""


class StagedRows:
    """The new rows of one shard, for one exchange at a time."""

    def __init__(self, client: "redis.Redis", shard: int) -> None:
        self._redis = client
        self.shard = shard
        self._prefix = f"{shard_tag(shard)}@staged:"
        self.index_key = f"{shard_tag(shard)}@staged"
        self.placed_key = f"{shard_tag(shard)}@placed"

    def begin(self, exchange: str) -> None:
        """From here on the rows staged are those of this exchange. Drops what one that was never decided has left."""
        self._redis.hset(commit_key(self.shard), "staging", exchange)
        names = [self.staged_key(name.decode()) for name in self._redis.sscan_iter(self.index_key, count=10_000)]
        unlink(self._redis, self.shard, names)
        self._redis.execute_command("UNLINK", self.index_key, self.placed_key)

    def put(self, exchange: str, view: str, rows: Mapping[str, bytes]) -> None:
        """Stage rows by entity key, replacing those that are staged. Raises OwnershipError where another exchange has begun."""
        keys = list(rows)
        for start in range(0, len(keys), _STAGED_AT_ONCE):
            batch = keys[start : start + _STAGED_AT_ONCE]
            names = [f"{view}:{key}" for key in batch]
            places = [commit_key(self.shard), self.index_key, *(self.staged_key(name) for name in names)]
            pairs = [part for name, key in zip(names, batch, strict=True) for part in (name, rows[key])]
            if self._redis.eval(_PUT_SCRIPT, len(places), *places, exchange, *pairs) != 1:
                raise OwnershipError(
                    f"another backfill has begun to build shard {self.shard}: this one has lost its lease"
                )

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
