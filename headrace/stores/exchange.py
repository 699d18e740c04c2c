"""One state exchanged for another: new rows are staged beside the old ones, which serve until all of them change places.

Staged rows lie under names of their own. When all are there, the exchange is *decided*: one key says what the new state is. Then each
shard renames its rows, moves its positions and changes its fingerprints in one script. A process that dies before the decision
leaves the old state; one that dies after it leaves an exchange that anybody may finish, and the next flow or backfill does.
"""

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Final

import redis

from headrace.names import PROJECT
from headrace.stores.row_scan import scan_views, unlink
from headrace.stores.shards import OwnedShard, OwnershipError, ShardStatus, commit_key, shard_tag

EXCHANGE_KEY: Final = f"{PROJECT}:@exchange"
BACKFILL_KEY: Final = f"{PROJECT}:@backfill"
_STAGED_AT_ONCE: Final = 1_000
_LEASE_MS: Final = 10_000
_BUILT: Final = "built"

# KEYS: commit hash, index of staged rows, then (staged row, row)..., then rows to delete
# ARGV: exchange, epoch, number of pairs, number of fields to delete, fields..., field, value, ...
# Everything is looked at before anything is changed: a script that fails half-way is not undone.
_EXCHANGE_SCRIPT: Final = """
if redis.call('HGET', KEYS[1], 'built') == ARGV[1] then return 1 end
if redis.call('HGET', KEYS[1], 'epoch') ~= ARGV[2] then return 0 end
local pairs_end = 2 + 2 * tonumber(ARGV[3])
for i = 3, pairs_end, 2 do
  if redis.call('EXISTS', KEYS[i]) == 0 then return -1 end
end
for i = 3, pairs_end, 2 do redis.call('RENAME', KEYS[i], KEYS[i + 1]) end
for i = pairs_end + 1, #KEYS do redis.call('UNLINK', KEYS[i]) end
redis.call('UNLINK', KEYS[2])
local old_end = 4 + tonumber(ARGV[4])
for i = 5, old_end do redis.call('HDEL', KEYS[1], ARGV[i]) end
for i = old_end + 1, #ARGV, 2 do redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1]) end
redis.call('HSET', KEYS[1], 'built', ARGV[1])
return 1
"""


class ExchangeError(RuntimeError):
    """The staged state cannot be put in place."""


@dataclass(frozen=True)
class Exchange:
    """A decided exchange. Fingerprints by view; positions and `complete` by log partition, as a shard's status has them."""

    name: str
    fingerprints: Mapping[str, int]
    positions: Mapping[int, int]
    complete: Mapping[int, int]

    @classmethod
    def parse(cls, text: str | bytes) -> "Exchange":
        raw = json.loads(text)
        numbers = {key: {int(p): value for p, value in raw[key].items()} for key in ("positions", "complete")}
        return cls(raw["name"], raw["fingerprints"], **numbers)


class StagedRows:
    """The new rows of one shard."""

    def __init__(self, client: "redis.Redis", shard: int) -> None:
        self._redis = client
        self.shard = shard
        self._prefix = f"{shard_tag(shard)}@staged:"
        self.index_key = f"{shard_tag(shard)}@staged"

    def clear(self) -> None:
        """Drop what an exchange that was never decided has left."""
        names = [self.staged_key(name.decode()) for name in self._redis.sscan_iter(self.index_key, count=10_000)]
        unlink(self._redis, self.shard, names)
        self._redis.unlink(self.index_key)

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
        """`view:entity key` of all staged rows."""
        return {name.decode() for name in self._redis.sscan_iter(self.index_key, count=10_000)}

    def hold(self, names: Sequence[str]) -> list[bool]:
        """Which of the names are staged."""
        return [bool(found) for found in self._redis.smismember(self.index_key, list(names))] if names else []

    def staged_key(self, name: str) -> str:
        return self._prefix + name


def decide(client: "redis.Redis", exchange: Exchange) -> None:
    """From here on the new state is the one: it is put in place by `finish`, whoever calls it."""
    client.set(EXCHANGE_KEY, json.dumps(asdict(exchange)))


def decided(client: "redis.Redis") -> Exchange | None:
    """An exchange that is decided and not finished."""
    text = client.get(EXCHANGE_KEY)
    return Exchange.parse(text) if text is not None else None


def finish(client: "redis.Redis", exchange: Exchange, shards: int, owner: str) -> None:
    """Put the staged rows of every shard in place. Each shard is fenced off first: its flow ends, and goes on from the new state.

    Raises OwnershipError where somebody else takes a shard meanwhile, ExchangeError where staged rows are gone.
    """
    with _owned(client, [shard for shard in range(shards) if not _is_done(client, shard, exchange)], owner) as owned:
        stale = _stale(client, exchange, [each.shard for each in owned])
        for each in owned:
            _exchange_shard(client, exchange, each, stale.get(each.shard, []))
    client.delete(EXCHANGE_KEY)


def settle(client: "redis.Redis", shards: int, owner: str, wait_s: float = 600.0) -> None:
    """Leave no exchange half done: wait while a backfill is at it, finish it where the backfill has died.

    Raises OwnershipError after `wait_s`.
    """
    deadline = time.monotonic() + wait_s
    while (exchange := decided(client)) is not None:
        holder = client.get(BACKFILL_KEY)
        if holder is None:
            finish(client, exchange, shards, owner)
        elif time.monotonic() > deadline:
            raise OwnershipError(
                f"{holder.decode()} has been exchanging the state for {wait_s:.0f} s: end that backfill"
            )
        else:
            time.sleep(0.05)


@contextmanager
def one_backfill(client: "redis.Redis", owner: str) -> Iterator[None]:
    """Inside, no other backfill runs. Raises OwnershipError naming the one that does."""
    if not client.set(BACKFILL_KEY, owner, nx=True, px=_LEASE_MS):
        holder = (client.get(BACKFILL_KEY) or b"another process").decode()
        raise OwnershipError(
            f"{holder} is at work: one backfill at a time; a killed one is forgotten after {_LEASE_MS // 1_000} s"
        )
    try:
        with _repeating(lambda: client.set(BACKFILL_KEY, owner, xx=True, px=_LEASE_MS)):
            yield
    finally:
        client.delete(BACKFILL_KEY)


@contextmanager
def _owned(client: "redis.Redis", shards: Sequence[int], owner: str) -> Iterator[list[OwnedShard]]:
    """The shards, taken from whoever has them and kept while the work goes on."""
    owned = [OwnedShard(client, shard, owner, _LEASE_MS) for shard in shards]
    for shard in owned:
        shard.acquire(force=True)
    try:
        with _repeating(*(shard.renew for shard in owned)):
            yield owned
    finally:
        for shard in owned:
            shard.release()


@contextmanager
def _repeating(*renewals: Callable[[], object]) -> Iterator[None]:
    """Call each again and again in a thread. One that has failed is not called again: the work itself will see what was lost."""
    done = threading.Event()

    def renew() -> None:
        left = list(renewals)
        while not done.wait(_LEASE_MS / 5_000):
            for renewal in list(left):
                try:
                    renewal()
                except (OwnershipError, redis.RedisError):
                    left.remove(renewal)

    keeper = threading.Thread(target=renew, name="leases", daemon=True)
    keeper.start()
    try:
        yield
    finally:
        done.set()
        keeper.join()


def _is_done(client: "redis.Redis", shard: int, exchange: Exchange) -> bool:
    return bool(client.hget(commit_key(shard), _BUILT) == exchange.name.encode())


def _stale(client: "redis.Redis", exchange: Exchange, shards: Sequence[int]) -> dict[int, list[str]]:
    """Rows of the old state that have no successor. Complete, because nobody writes into a shard that is fenced off."""
    views = set(exchange.fingerprints)
    for shard in shards:
        views |= set(ShardStatus.parse(client.hgetall(commit_key(shard))).fingerprints)
    stale: dict[int, list[str]] = {}
    for shard, keys in scan_views(client, views):
        if shard in shards:
            held = StagedRows(client, shard).hold([key.removeprefix(shard_tag(shard)) for key in keys])
            stale.setdefault(shard, []).extend(key for key, is_held in zip(keys, held, strict=True) if not is_held)
    return stale


def _exchange_shard(client: "redis.Redis", exchange: Exchange, owned: OwnedShard, stale: Sequence[str]) -> None:
    staged = StagedRows(client, owned.shard)
    raw = client.hgetall(commit_key(owned.shard))
    pairs = [part for name in staged.names() for part in (staged.staged_key(name), shard_tag(owned.shard) + name)]
    replaced = [name for name in raw if name.partition(b":")[0] in (b"position", b"complete", b"fingerprint")]
    head = [exchange.name, owned.epoch, len(pairs) // 2, len(replaced), *replaced, *_fields(exchange, raw)]
    keys = [commit_key(owned.shard), staged.index_key, *pairs, *stale]
    answer = int(client.eval(_EXCHANGE_SCRIPT, len(keys), *keys, *head))
    if answer == 0:
        raise OwnershipError(f"shard {owned.shard} was taken over while its rows were exchanged")
    if answer < 0:
        raise ExchangeError(f"shard {owned.shard} has lost rows that were staged: run `headrace backfill` again")


def _fields(exchange: Exchange, raw: Mapping[bytes, bytes]) -> list[str | int]:
    """The shard's status afterwards. Its counters stay, and with them how far into the log they have counted."""
    old = ShardStatus.parse(raw)
    fields = {f"fingerprint:{view}": value for view, value in exchange.fingerprints.items()}
    for partition, position in exchange.positions.items():
        before = old.positions.get(partition, 0)
        fields[f"position:{partition}"] = position
        fields[f"counted:{partition}"] = max(before, int(raw.get(b"counted:%d" % partition, 0)))
        complete = exchange.complete.get(partition, 0)
        fields[f"complete:{partition}"] = (
            complete if position < before else max(complete, old.complete.get(partition, 0))
        )
    return [part for pair in fields.items() for part in pair]
