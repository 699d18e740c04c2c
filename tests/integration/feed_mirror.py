"""A replica in small: the rows of items' views as it holds them by what the change feed tells."""

from collections.abc import Iterable

import redis

from headrace.identity import shard_of
from headrace.stores.change_feed import ChangeFeed, Changes
from headrace.stores.row_scan import scan_views
from headrace.stores.shards import row_key

Rows = dict[tuple[str, str], bytes]
"""By view and entity key."""


def stored_rows(client: "redis.Redis", shards: int, views: Iterable[str], only: frozenset[int] | None = None) -> Rows:
    """What the store itself holds, of some shards or of all."""
    found: Rows = {}
    for view in views:
        for shard, keys in scan_views(client, [view]):
            for key in keys if only is None or shard in only else ():
                row = client.get(key)
                if row is not None:
                    found[view, key.removeprefix(row_key(shard, view, ""))] = row
    return found


class Mirror:
    """Starts as a replica does: the feed's place first, then all rows."""

    def __init__(self, client: "redis.Redis", shards: int, *views: str) -> None:
        self._client, self._shards, self._views = client, shards, views
        self.feed = ChangeFeed(client, shards)
        self.feed.start()
        self.rows = stored_rows(client, shards, views)

    def follow(self) -> Changes:
        """Apply what the feed tells since the last time."""
        changes = self.feed.poll()
        if changes.reload:
            self.rows = {
                place: row for place, row in self.rows.items() if shard_of(place[1], self._shards) not in changes.reload
            } | stored_rows(self._client, self._shards, self._views, changes.reload)
        for view in changes.keys.keys() & set(self._views):
            for key in changes.keys[view]:
                row = self._client.get(row_key(shard_of(key, self._shards), view, key))
                if row is None:
                    self.rows.pop((view, key), None)
                else:
                    self.rows[view, key] = row
        return changes

    def is_true(self) -> bool:
        return self.rows == stored_rows(self._client, self._shards, self._views)
