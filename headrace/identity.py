"""Who an event belongs to, and where its entity lives: user keys, shards and log partitions. One rule each for every engine."""

import xxhash

from headrace.names import ANONYMOUS_PREFIX


def user_key(user_id: str | None, anonymous_id: str | None) -> str:
    """The key that a user's features are kept under: `user_id`, else `anon:` + `anonymous_id`."""
    if user_id is not None:
        return user_id
    if anonymous_id is None:
        raise ValueError("an event needs a user_id or an anonymous_id")
    return ANONYMOUS_PREFIX + anonymous_id


def shard_of(key: str, shards: int) -> int:
    """xxh64(key) mod N, the same in every process and for every view (Python's `hash` differs from run to run)."""
    return int(xxhash.xxh64_intdigest(key.encode())) % shards
