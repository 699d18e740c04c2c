"""A shard of the online state: its rows and the log positions that they include, committed together, by one owner at a time.

Ownership is a *lease* (a key that expires) and an *epoch* (a number that grows with each owner). A commit under an older epoch is
refused by the server, so a flow that was paused, or started twice, cannot overwrite what its successor wrote.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import redis

from headrace.names import PROJECT

_COMMIT, _LEASE = "@commit", "@lease"
_DEPLOYMENT = f"{PROJECT}:@deployment"

# KEYS: commit hash, rows...
_READ_SCRIPT = """
local found = {redis.call('HGETALL', KEYS[1])}
for i = 2, #KEYS do found[i] = redis.call('GET', KEYS[i]) end
return found
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
# KEYS: lease   ARGV: owner
RELEASE_SCRIPT = "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0"


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
    counted: dict[int, int] = field(default_factory=dict)
    """Positions up to which `counters` have counted, where a backfill has put positions back."""
    exchanging: bool = False
    """Rows are of two states at this moment (headrace.stores.exchange); positions are those of the old one."""

    def complete_us(self, partitions: int) -> int:
        """Time up to which every partition is included, 0 if one is not known yet."""
        return min((self.complete.get(p, 0) for p in range(partitions)), default=0)

    @classmethod
    def parse(cls, raw: Mapping[bytes, bytes]) -> "ShardStatus":
        status = cls(exchanging=b"exchanging" in raw)
        by_number = {"position": status.positions, "complete": status.complete, "counted": status.counted}
        by_name = {"fingerprint": status.fingerprints, "count": status.counters}
        for field_name, value in raw.items():
            kind, name, number = _field(field_name)
            if kind in by_number:
                by_number[kind][number] = int(value)
            elif kind in by_name:
                by_name[kind][name] = int(value)
        return status


@lru_cache(maxsize=10_000)
def _field(name: bytes) -> tuple[str, str, int]:
    """What a field of a status says, and of what: the name, and the number that it is, if it is one."""
    kind, _, rest = name.decode().partition(":")
    return kind, rest, int(rest) if rest.lstrip("-").isdecimal() else 0


def shard_tag(shard: int) -> str:
    """Prefix of every key of a shard; the braces put them in one slot of a cluster."""
    return f"{PROJECT}:{{s{shard}}}:"


def commit_key(shard: int) -> str:
    """The hash that holds a shard's positions, epoch and completeness."""
    return shard_tag(shard) + _COMMIT


def lease_key(shard: int) -> str:
    """The key that names a shard's owner while its lease lasts."""
    return shard_tag(shard) + _LEASE


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
    names = [commit_key(shard), *(row_key(shard, view, key) for view, key in keys)]
    fields, *rows = client.eval(_READ_SCRIPT, len(names), *names)
    return ShardStatus.parse(dict(zip(fields[::2], fields[1::2], strict=True))), rows


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
    """One shard, owned: acquire, then commit (headrace.stores.commits) until released or superseded."""

    def __init__(self, client: "redis.Redis", shard: int, owner: str, lease_ms: int) -> None:
        self._redis = client
        self.shard = shard
        self.owner = owner
        self.lease_ms = lease_ms
        self.epoch = 0
        self.keys = (commit_key(shard), lease_key(shard))

    def acquire(self, force: bool = False) -> ShardStatus:
        """Take the shard; with `force`, from whoever has it. Raises OwnershipError while another owner's lease lasts."""
        if force:
            self._redis.delete(self.keys[1])
        self.epoch = int(self._redis.eval(_ACQUIRE_SCRIPT, 2, *self.keys, self.owner, self.lease_ms))
        if not self.epoch:
            holder = (self._redis.get(self.keys[1]) or b"somebody").decode()
            raise OwnershipError(f"shard {self.shard} is owned by {holder} until it lets go, or its lease ends")
        return read_status(self._redis, [self.shard])[self.shard]

    def renew(self) -> None:
        """Keep the lease without a commit. Raises OwnershipError if another owner has taken the shard."""
        self.check_answer(int(self._redis.eval(_RENEW_SCRIPT, 2, *self.keys, self.epoch, self.owner, self.lease_ms)))

    def release(self) -> None:
        self._redis.eval(RELEASE_SCRIPT, 1, self.keys[1], self.owner)

    def check_answer(self, answer: int) -> None:
        """Raises OwnershipError if another owner has taken the shard."""
        if answer != 1:
            raise OwnershipError(f"shard {self.shard} was taken over by another flow; epoch {self.epoch} is past")
