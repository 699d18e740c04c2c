"""One worker of the feature flow: takes its share of the shards, folds events into them, commits them, and gives them up.

Workers know of each other only through the store. Each reports in to the crew, takes as many shards as its share is while their leases are
free, and lets go of what is more than its share. A worker that dies loses its leases, and the others take what it had.
"""

import logging
import time
from collections.abc import Mapping, Sequence
from typing import Final

import redis

from flows.shard_state import ShardState, ViewPart
from flows.split import SplitBatch
from headrace.aggregates.layout import Layout
from headrace.aggregates.spec import ViewSpec
from headrace.stores.commits import SentCommits, ShardCommit
from headrace.stores.crew import Crew, share_of
from headrace.stores.exchange import settle as settle_exchange
from headrace.stores.shards import OwnedShard, OwnershipError, lease_key, read_status, row_key
from headrace.stores.state_definitions import StaleStateError, check_state, word_for

logger = logging.getLogger("headrace.flows.features")

# A lease is renewed, and the crew looked at, that many times before it would end.
_TURNS_A_LEASE: Final = 6

Commits = list[tuple[ShardState, ShardCommit]]


class Worker:
    """`until_all`: takes part only while it has its whole share, for a flow that ends at the log's end."""

    def __init__(
        self,
        client: "redis.Redis",
        specs: Mapping[str, ViewSpec],
        *,
        name: str,
        shards: int,
        partitions: int,
        lease_s: float,
        until_all: bool = False,
    ) -> None:
        self._redis = client
        self._specs = specs
        self._layouts = {view: Layout(spec) for view, spec in specs.items()}
        self._fingerprints = {view: spec.fingerprint for view, spec in specs.items()}
        self._name = name
        self._shards = shards
        self._partitions = partitions
        self._lease_ms = int(lease_s * 1_000)
        self._until_all = until_all
        self._crew = Crew(client, name, self._lease_ms)
        self._share = 0
        self._tended_at = -lease_s
        self._sent: SentCommits | None = None
        self.held: dict[int, ShardState] = {}

    def stand(self) -> dict[int, int]:
        """The lowest position by partition of the shards held: what to read on from. Empty while there is none."""
        self.settle()
        self.tend()
        if not self.held or (self._until_all and len(self.held) < self._share):
            return {}
        return {p: min(state.positions.get(p, 0) for state in self.held.values()) for p in range(self._partitions)}

    def tend(self) -> None:
        """Every now and then: report in, keep the leases, take or give up shards. Raises redis.RedisError, StaleStateError."""
        if time.monotonic() - self._tended_at < self._lease_ms / 1_000 / _TURNS_A_LEASE:
            return
        self._share = share_of(self._name, self._crew.report(), self._shards)
        for state in list(self.held.values()):
            try:
                state.owned.renew()
            except OwnershipError as error:
                self._drop(state, str(error))
        for shard in sorted(self.held, reverse=True)[: max(0, len(self.held) - self._share)]:
            self.held[shard].owned.release()
            self._drop(self.held[shard], "given up for another worker")
        if len(self.held) < self._share:
            self._take(self._share - len(self.held))
        self._tended_at = time.monotonic()

    def _take(self, count: int) -> None:
        try:
            settle_exchange(self._redis, self._shards, self._name, wait_s=0.0)
            for shard in self._free()[:count]:
                owned = OwnedShard(self._redis, shard, self._name, self._lease_ms)
                status = owned.acquire()
                check_state(shard, status, self._specs)
                if not any(status.positions.values()) and self._crew.word() not in (None, word_for(self._specs)):
                    self._check_others()
                self.held[shard] = ShardState(owned, status, self._layouts, self._shards)
                logger.info("shard %d is ours, at %s", shard, status.positions)
        except OwnershipError as error:
            # Somebody was faster, or a backfill is at it: it is looked at again at the next turn.
            logger.info("%s", error)

    def _check_others(self) -> None:
        """Whether the word that others have said is of an empty store still. Raises StaleStateError."""
        statuses = read_status(self._redis, range(self._shards)).values()
        if not any(any(status.positions.values()) for status in statuses):
            raise StaleStateError(
                "another worker has begun by other definitions: this one takes them when it is started again"
            )

    def _free(self) -> list[int]:
        """Shards that nobody has a lease of; and those that we have one of still, but have forgotten."""
        others = [shard for shard in range(self._shards) if shard not in self.held]
        pipeline = self._redis.pipeline(transaction=False)
        for shard in others:
            pipeline.get(lease_key(shard))
        free = (None, self._name.encode())
        return [shard for shard, holder in zip(others, pipeline.execute(), strict=True) if holder in free]

    def fold(self, split: SplitBatch) -> Commits:
        """Fold a batch into every shard held."""
        may_empty = self._sent is None
        parts = {state: list(state.parts(split, may_empty)) for state in self.held.values()}
        self._load([(state, part) for state, found in parts.items() for part in found])
        return [(state, state.advance(split, found)) for state, found in parts.items()]

    def _load(self, parts: Sequence[tuple[ShardState, ViewPart]]) -> None:
        """Read the rows of entities that are not in memory, all in one round trip."""
        wanted = [(state, part, part.state.missing(part.entities)) for state, part in parts]
        wanted = [(state, part, keys) for state, part, keys in wanted if keys]
        pipeline = self._redis.pipeline(transaction=False)
        for state, part, keys in wanted:
            pipeline.execute_command("MGET", *(row_key(state.owned.shard, part.view, key) for key in keys))
        for (_, part, keys), rows in zip(wanted, pipeline.execute() if wanted else [], strict=True):
            part.state.load_rows(keys, rows)

    def send(self, commits: Commits) -> None:
        """Begin to commit what was folded, all shards in one write. `settle` must have been called."""
        assert self._sent is None, "one at a time"
        held = [(state.owned, change) for state, change in commits if self.held.get(state.owned.shard) is state]
        self._sent = SentCommits(self._redis, held, self._fingerprints)

    def settle(self) -> None:
        """Wait until what was sent is committed. A shard that somebody else has taken over is dropped."""
        sent, self._sent = self._sent, None
        for owned in sent.finish() if sent else ():
            if owned.shard in self.held and self.held[owned.shard].owned is owned:
                self._drop(self.held[owned.shard], f"taken over by another worker; epoch {owned.epoch} is past")

    def _drop(self, state: ShardState, why: str) -> None:
        del self.held[state.owned.shard]
        logger.info("shard %d is no longer ours: %s", state.owned.shard, why)

    def forget(self) -> None:
        """Drop all shards: what they hold may not be what is committed. They are taken again at the next turn."""
        if self._sent is not None:
            self._sent.drop()
            self._sent = None
        self.held.clear()
        self._tended_at = -self._lease_ms / 1_000

    def close(self) -> None:
        """Commit what was sent, and let the others have the shards at once."""
        try:
            self.settle()
            for state in self.held.values():
                state.owned.release()
            self._crew.leave()
        except redis.RedisError as error:
            logger.warning("leases were left to run out: %s", error)
        self.held.clear()
