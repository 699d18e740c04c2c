"""What changed in the online state: a stream beside each shard, written in the transactions that write the rows, read by replicas.

An entry names a view and the keys of its entities whose rows were written; or all of the shard (`*`), where rows were exchanged or
dropped. Entries are numbered one by one, `<n>-0`, by a counter in the shard's commit hash: a gap in the numbers says that entries
were trimmed before they were read, and is answered as `*` is, by reading the shard anew.

Only views of items are announced. A user's rows are read from the store with each request.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import redis

from headrace.names import ITEM_ID
from headrace.stores.shards import ShardStatus, commit_key, shard_tag

EVERYTHING: Final = "*"
"""In place of a view: read the shard anew."""
KEPT_ENTRIES: Final = 4_096
FEWEST_ENTRIES: Final = 64
KEPT_BYTES: Final = 4 * 1024**2
"""About what the entries of a shard may take: after a large one fewer than KEPT_ENTRIES are kept, never below FEWEST_ENTRIES."""
_NUMBER: Final = "feed"

ANNOUNCE: Final = f"""
local function announce(commit, changes, view, keys)
  if view == '{EVERYTHING}' then keys = '' end
  local kept = math.max({FEWEST_ENTRIES}, math.min({KEPT_ENTRIES}, math.floor({KEPT_BYTES} / (#keys + 1))))
  local n = redis.call('HINCRBY', commit, '{_NUMBER}', 1)
  redis.call('XADD', changes, 'MAXLEN', '~', kept, string.format('%.0f-0', n), 'v', view, 'k', keys)
end
"""
"""Lua, for the scripts that write rows: keys of commit hash and feed, view, entity keys joined."""


@dataclass(frozen=True)
class Changes:
    """What one reading of the feed brought. What is in it is the reader's to take in: it is not told again.

    `statuses` by shard, read before the entries: whoever has read the rows that `keys` and `reload` name has every event up to the
    positions of these. `keys`: entities by view; `reload`: shards to read anew, whose entities are not among `keys`.
    """

    statuses: Mapping[int, ShardStatus]
    keys: Mapping[str, set[str]]
    reload: frozenset[int]


def changes_key(shard: int) -> str:
    """The stream that holds a shard's feed."""
    return shard_tag(shard) + "@changes"


def is_announced(join_keys: Sequence[str]) -> bool:
    """Whether the rows of a view with these join keys are announced."""
    return list(join_keys) == [ITEM_ID]


def join_entities(view: str, keys: Sequence[str]) -> tuple[str, str]:
    """`v` and `k` of an entry. A key that holds the separator itself, which none from the API does, makes it EVERYTHING."""
    joined = "\n".join(keys)
    return (view, joined) if joined.count("\n") == len(keys) - 1 else (EVERYTHING, "")


class ChangeFeed:
    """Reads the feeds of all shards in one round trip (on a cluster one to each server, side by side).

    A replica calls `start` first, then reads all rows, then applies what each `poll` tells: nothing is missed between them.
    """

    def __init__(self, client: "redis.Redis", shards: int) -> None:
        self._redis = client
        self._shards = range(shards)
        self._reached: dict[int, int] = {}
        self._statuses: dict[int, ShardStatus] = {}

    def start(self) -> dict[int, ShardStatus]:
        """Note where the feeds stand; returns the shards' status. Rows that are read after it hold all that came before it.

        Raises redis.RedisError: then nothing is noted.
        """
        found = self._ask(lambda pipeline, shard: pipeline.hgetall(commit_key(shard)))
        self._reached = {shard: _number_of(raw) for shard, raw in zip(self._shards, found, strict=True)}
        self._statuses = {shard: ShardStatus.parse(raw) for shard, raw in zip(self._shards, found, strict=True)}
        return self._statuses

    def poll(self) -> Changes:
        """What was written since the last call. Raises redis.RedisError: then the next call tells it. `start` must have been called."""
        assert self._reached, "start comes first"

        def ask(pipeline: Any, shard: int) -> None:
            pipeline.hgetall(commit_key(shard))
            pipeline.xrange(changes_key(shard), min=f"({self._reached[shard]}-0")

        answers = self._ask(ask)
        statuses, reached, reload = {}, {}, set()
        keys: dict[str, set[str]] = {}
        for shard, raw, entries in zip(self._shards, answers[::2], answers[1::2], strict=True):
            statuses[shard] = ShardStatus.parse(raw)
            numbers = [int(name.partition(b"-")[0]) for name, _ in entries]
            reached[shard] = max([_number_of(raw), *numbers])
            whole = numbers == list(range(self._reached[shard] + 1, reached[shard] + 1))
            changed = [(fields[b"v"].decode(), fields[b"k"].decode()) for _, fields in entries]
            if not whole or _went_back(self._statuses[shard], statuses[shard]) or EVERYTHING in dict(changed):
                reload.add(shard)
                continue
            for view, joined in changed:
                keys.setdefault(view, set()).update(joined.split("\n"))
        self._reached, self._statuses = reached, statuses
        return Changes(statuses, keys, frozenset(reload))

    def _ask(self, ask: Callable[[Any, int], object]) -> list[Any]:
        pipeline = self._redis.pipeline(transaction=False)
        for shard in self._shards:
            ask(pipeline, shard)
        return list(pipeline.execute())


def _number_of(raw: Mapping[bytes, bytes]) -> int:
    return int(raw.get(_NUMBER.encode(), 0))


def _went_back(before: ShardStatus, now: ShardStatus) -> bool:
    """A store that was emptied, or restored from an older copy, counts anew."""
    return any(now.positions.get(partition, 0) < position for partition, position in before.positions.items())
