"""A shard of the online state: its rows and the log positions that they include, committed together, by one owner at a time.

Ownership is a *lease* (a key that expires) and an *epoch* (a number that grows with each owner). A commit under an older epoch is
refused by the server, so a flow that was paused, or started twice, cannot overwrite what its successor wrote.
"""

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import redis

from headrace.names import PROJECT

_EPOCH, _COMMIT, _LEASE = b"epoch", "@commit", "@lease"
_STAGE_BATCH = 1_000
_DEPLOYMENT = f"{PROJECT}:@deployment"

# KEYS: commit hash, lease, rows...   ARGV: epoch, owner, lease ms, number of hash fields, field, value, ..., counters..., rows...
_COMMIT_SCRIPT = """
if redis.call('HGET', KEYS[1], 'epoch') ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[2], ARGV[2], 'PX', ARGV[3])
local at = 4
local fields = tonumber(ARGV[at])
for i = 1, fields do redis.call('HSET', KEYS[1], ARGV[at + 2 * i - 1], ARGV[at + 2 * i]) end
at = at + 2 * fields + 1
local counters = tonumber(ARGV[at])
for i = 1, counters do redis.call('HINCRBY', KEYS[1], ARGV[at + 2 * i - 1], ARGV[at + 2 * i]) end
at = at + 2 * counters
for i = 3, #KEYS do redis.call('SET', KEYS[i], ARGV[at + i - 2]) end
return 1
"""
# KEYS: commit hash, lease   ARGV: owner, lease ms
_ACQUIRE_SCRIPT = """
local holder = redis.call('GET', KEYS[2])
if holder and holder ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[2], ARGV[1], 'PX', ARGV[2])
return redis.call('HINCRBY', KEYS[1], 'epoch', 1)
"""
# KEYS: commit hash, lease   ARGV: epoch, owner, lease ms
_RENEW_SCRIPT = """
if redis.call('HGET', KEYS[1], 'epoch') ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[2], ARGV[2], 'PX', ARGV[3])
return 1
"""
_RELEASE_SCRIPT = "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0"


class OwnershipError(RuntimeError):
    """The shard belongs to somebody else."""


class DeploymentError(RuntimeError):
    """The stored state was made with other numbers of shards or partitions than the settings say."""


@dataclass(frozen=True)
class ShardStatus:
    """What a shard says of itself. Positions by log partition; `complete_us`: every event appended before is in."""

    positions: dict[int, int] = field(default_factory=dict)
    complete: dict[int, int] = field(default_factory=dict)
    fingerprints: dict[str, int] = field(default_factory=dict)
    counters: dict[str, int] = field(default_factory=dict)

    def complete_us(self, partitions: int) -> int:
        """Time up to which every partition is included, 0 if one is not known yet."""
        return min((self.complete.get(p, 0) for p in range(partitions)), default=0)

    @classmethod
    def parse(cls, raw: Mapping[bytes, bytes]) -> "ShardStatus":
        status = cls()
        kinds: dict[str, dict[int, int] | dict[str, int]] = {"position": status.positions, "complete": status.complete}
        for name, value in raw.items():
            kind, _, rest = name.decode().partition(":")
            if kind in kinds:
                kinds[kind][int(rest)] = int(value)  # type: ignore[index]
            elif kind == "fingerprint":
                status.fingerprints[rest] = int(value)
            elif kind == "count":
                status.counters[rest] = int(value)
        return status


@dataclass(frozen=True)
class ShardCommit:
    """What one commit changes. Row keys are (view, entity key)."""

    rows: Mapping[tuple[str, str], bytes]
    positions: Mapping[int, int]
    complete: Mapping[int, int]
    counters: Mapping[str, int] = field(default_factory=dict)


def shard_tag(shard: int) -> str:
    """Prefix of every key of a shard; the braces put them in one slot of a cluster."""
    return f"{PROJECT}:{{s{shard}}}:"


def commit_key(shard: int) -> str:
    """The hash that holds a shard's positions, epoch and completeness."""
    return shard_tag(shard) + _COMMIT


def row_key(shard: int, view: str, entity_key: str) -> str:
    return f"{shard_tag(shard)}{view}:{entity_key}"


def read_status(client: "redis.Redis", shards: Iterable[int]) -> dict[int, ShardStatus]:
    """Status of several shards in one round trip."""
    numbers = list(shards)
    pipeline = client.pipeline(transaction=False)
    for shard in numbers:
        pipeline.hgetall(commit_key(shard))
    return {shard: ShardStatus.parse(raw) for shard, raw in zip(numbers, pipeline.execute(), strict=True)}


def read_rows(
    client: "redis.Redis", shard: int, keys: Sequence[tuple[str, str]]
) -> tuple[ShardStatus, list[bytes | None]]:
    """Rows of one shard with the status that they belong to, read at one moment."""
    pipeline = client.pipeline(transaction=True)
    pipeline.hgetall(commit_key(shard))
    if keys:
        pipeline.mget([row_key(shard, view, key) for view, key in keys])
    answers = pipeline.execute()
    return ShardStatus.parse(answers[0]), answers[1] if keys else []


def scan_keys(client: "redis.Redis", shard: int, view: str) -> list[str]:
    """Entity keys that have a row of a view in a shard."""
    prefix = row_key(shard, view, "")
    pattern = prefix.replace("[", "\\[").replace("*", "\\*").replace("?", "\\?") + "*"
    return sorted({key.decode()[len(prefix) :] for key in client.scan_iter(match=pattern, count=10_000)})


def check_deployment(client: "redis.Redis", *, record: bool = True, **numbers: int) -> None:
    """Compare `shards` and `log_partitions` with what the store was made with; with `record`, note them where nothing is.

    Raises DeploymentError.
    """
    for name, value in numbers.items():
        if record:
            client.hsetnx(_DEPLOYMENT, name, value)
        stored = int(client.hget(_DEPLOYMENT, name) or value)
        if stored != value:
            raise DeploymentError(
                f"the store was made with {name}={stored}, the settings say {value}: set HEADRACE_{name.upper()}={stored}"
            )


class OwnedShard:
    """One shard, owned: acquire, then commit until released or superseded."""

    def __init__(self, client: "redis.Redis", shard: int, owner: str, lease_ms: int) -> None:
        self._redis = client
        self.shard = shard
        self._owner = owner
        self._lease_ms = lease_ms
        self._keys = [commit_key(shard), shard_tag(shard) + _LEASE]
        self._epoch = 0
        self.in_flight = 0
        """Commits handed on and not confirmed yet."""
        self._commit_script = client.register_script(_COMMIT_SCRIPT)

    def acquire(self, wait_s: float = 0.0, force: bool = False) -> ShardStatus:
        """Take the shard, waiting up to `wait_s` for another owner's lease to end; with `force`, end it. Raises OwnershipError."""
        if force:
            self._redis.delete(self._keys[1])
        deadline = time.monotonic() + wait_s
        while True:
            self._epoch = int(self._redis.eval(_ACQUIRE_SCRIPT, 2, *self._keys, self._owner, self._lease_ms))
            if self._epoch:
                return read_status(self._redis, [self.shard])[self.shard]
            if time.monotonic() >= deadline:
                holder = (self._redis.get(self._keys[1]) or b"somebody").decode()
                raise OwnershipError(
                    f"shard {self.shard} is owned by {holder}: stop that flow first, or wait until its lease ends"
                )
            time.sleep(0.05)

    def renew(self) -> None:
        """Keep the lease without a commit. Raises OwnershipError if another owner has taken the shard."""
        self.check_answer(
            int(self._redis.eval(_RENEW_SCRIPT, 2, *self._keys, self._epoch, self._owner, self._lease_ms))
        )

    def release(self) -> None:
        self._redis.eval(_RELEASE_SCRIPT, 1, self._keys[1], self._owner)

    def queue_commit(
        self, pipeline: "redis.client.Pipeline", commit: ShardCommit, fingerprints: Mapping[str, int]
    ) -> None:
        """Add one atomic commit to a pipeline; its answer must go to `check_answer`."""
        fields: list[str | int] = []
        for kind, numbers in (
            ("position", commit.positions),
            ("complete", commit.complete),
            ("fingerprint", fingerprints),
        ):
            for name, value in numbers.items():
                fields += [f"{kind}:{name}", value]
        counters = [part for name, value in commit.counters.items() if value for part in (f"count:{name}", value)]
        keys = self._keys + [row_key(self.shard, view, key) for view, key in commit.rows]
        head = [self._epoch, self._owner, self._lease_ms, len(fields) // 2, *fields, len(counters) // 2, *counters]
        self._commit_script(keys=keys, args=[*head, *commit.rows.values()], client=pipeline)

    def replace(
        self,
        rows: Mapping[tuple[str, str], bytes],
        stale: Iterable[tuple[str, str]],
        positions: Mapping[int, int],
        fingerprints: Mapping[str, int],
    ) -> None:
        """Exchange the shard's rows and positions for others, in one transaction; the old ones serve until then.

        Rows are staged under other names first, so the transaction only renames. Raises OwnershipError.
        """
        prefix = f"{shard_tag(self.shard)}@staged:"
        for leftover in self._redis.scan_iter(match=f"{prefix}*", count=10_000):
            self._redis.unlink(leftover)
        staged = [(f"{prefix}{view}:{key}", row_key(self.shard, view, key)) for view, key in rows]
        values = list(rows.values())
        for start in range(0, len(staged), _STAGE_BATCH):
            batch = zip(staged[start : start + _STAGE_BATCH], values[start : start + _STAGE_BATCH], strict=True)
            self._redis.mset({name: value for (name, _), value in batch})
        with self._redis.pipeline(transaction=True) as pipeline:
            pipeline.watch(self._keys[0])
            if int(pipeline.hget(self._keys[0], _EPOCH) or 0) != self._epoch:
                raise OwnershipError(
                    f"shard {self.shard} was taken over while it was rebuilt; epoch {self._epoch} is past"
                )
            known = [name for name in pipeline.hkeys(self._keys[0]) if name != _EPOCH]
            pipeline.multi()
            for name, final in staged:
                pipeline.rename(name, final)
            for view, key in stale:
                pipeline.unlink(row_key(self.shard, view, key))
            if known:
                pipeline.hdel(self._keys[0], *known)
            pipeline.hset(
                self._keys[0], mapping={f"position:{partition}": position for partition, position in positions.items()}
            )
            pipeline.hset(self._keys[0], mapping={f"fingerprint:{view}": value for view, value in fingerprints.items()})
            pipeline.execute()

    def check_answer(self, answer: int) -> None:
        """Raises OwnershipError if the commit came too late: another owner has taken the shard."""
        if answer != 1:
            raise OwnershipError(f"shard {self.shard} was taken over by another flow; epoch {self._epoch} is past")
