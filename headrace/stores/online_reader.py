"""The fast online read: packed rows to NumPy columns, without protobuf. What the request path uses."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import redis

from headrace.aggregates.layout import Layout
from headrace.aggregates.read import StreamRows
from headrace.identity import shard_of
from headrace.settings import Settings
from headrace.stores.definitions import Definitions
from headrace.stores.plain_rows import PlainRows
from headrace.stores.shards import ShardStatus, check_deployment, commit_key, row_key


@dataclass(frozen=True)
class Snapshot:
    """Rows of several views fetched in one round trip. `complete_us`: every event appended before that is in the stream rows."""

    streams: dict[str, StreamRows]
    plain: dict[str, PlainRows]
    complete_us: int

    @property
    def newest_us(self) -> int:
        """Time of the newest event in the stream rows, 0 if there is none."""
        return max((rows.newest_us for rows in self.streams.values()), default=0)


class OnlineReader:
    """Reads the online store's rows. One per thread or process; holds a client, opens nothing itself."""

    def __init__(self, client: "redis.Redis", definitions: Definitions, settings: Settings) -> None:
        self._redis = client
        self._layouts = {name: Layout(spec) for name, spec in definitions.streams.items()}
        self._plain = definitions.plain
        self._settings = settings
        self._checked = False

    def fetch(self, wanted: Mapping[str, Sequence[str]]) -> Snapshot:
        """Rows of `{view: entity keys}`, in one round trip.

        Raises DeploymentError where the store was made with another number of shards, redis.RedisError when the store does
        not answer, StateMismatchError on rows of another definition.
        """
        shards = self._settings.shards
        if not self._checked:
            check_deployment(self._redis, record=False, shards=shards)
            self._checked = True
        placed = {view: [shard_of(key, shards) for key in keys] for view, keys in wanted.items()}
        stream_shards = sorted(
            {shard for view, numbers in placed.items() if view in self._layouts for shard in numbers}
        )
        keys = [
            row_key(shard, view, key) for view in wanted for shard, key in zip(placed[view], wanted[view], strict=True)
        ]
        # The status is read before the rows: a commit in between makes rows newer than it says, never older.
        pipeline = self._redis.pipeline(transaction=False)
        for shard in stream_shards:
            pipeline.hgetall(commit_key(shard))
        if keys:
            pipeline.mget(keys)
        answers = pipeline.execute()
        statuses = [ShardStatus.parse(raw) for raw in answers[: len(stream_shards)]]
        rows = iter(answers[-1] if keys else [])
        streams, plain = {}, {}
        for view, entity_keys in wanted.items():
            own = [next(rows) for _ in entity_keys]
            if view in self._layouts:
                streams[view] = StreamRows(self._layouts[view], own)
            else:
                plain[view] = self._plain[view].rows(own)
        complete = min((status.complete_us(self._settings.log_partitions) for status in statuses), default=0)
        return Snapshot(streams, plain, complete)
