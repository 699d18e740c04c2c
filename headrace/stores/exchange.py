"""One state exchanged for another: new rows are staged beside the old ones, which serve until all of them change places.

Staged rows lie under names of their own. When all are there, the exchange is *decided*: one key says what the new state is. Then each
shard, whose flow is fenced off, renames its rows, some hundreds at a time so that nobody waits long for the server, and at last changes
positions and fingerprints in one script. Meanwhile a reader may meet rows of both states: each names its definition. A process that
dies before the decision leaves the old state; one that dies after it leaves an exchange that the next flow or backfill finishes.

One backfill works at a time, under a lease. One that was stopped for longer than that can harm nothing when it goes on: a shard names
the exchange that its staged rows are for, and refuses all others; and only who holds the lease decides.
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
from headrace.stores.change_feed import ANNOUNCE, EVERYTHING, changes_key
from headrace.stores.row_scan import scan_views
from headrace.stores.shards import RELEASE_SCRIPT, OwnedShard, OwnershipError, ShardStatus, commit_key, shard_tag
from headrace.stores.staged_rows import StagedRows

EXCHANGE_KEY: Final = f"{PROJECT}:{{backfill}}:@exchange"
BACKFILL_KEY: Final = f"{PROJECT}:{{backfill}}:@lease"
_LEASE_MS: Final = 10_000
_BUILT: Final = "built"

_ROWS_AT_ONCE: Final = 100
_SCRIPTS_AT_ONCE: Final = 10
"""In one write, for one wait for the disk; between two of them the server answers others."""

# KEYS: lease   ARGV: owner, lease ms
_RENEW_SCRIPT: Final = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
return redis.call('PEXPIRE', KEYS[1], ARGV[2])
"""
# KEYS: lease, exchange   ARGV: owner, exchange
_DECIDE_SCRIPT: Final = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[2], ARGV[2])
return 1
"""
# KEYS: exchange   ARGV: its name
_FORGET_SCRIPT: Final = """
local decided = redis.call('GET', KEYS[1])
if decided and cjson.decode(decided)['name'] == ARGV[1] then redis.call('DEL', KEYS[1]) end
return 1
"""
# Every script looks at everything before it changes anything: one that fails half-way is not undone.
# KEYS: commit hash, index of staged rows, index of rows in place, then (staged row, row)...   ARGV: exchange, epoch, names...
_PLACE_SCRIPT: Final = """
if redis.call('HGET', KEYS[1], 'epoch') ~= ARGV[2] then return 0 end
if redis.call('HGET', KEYS[1], 'staging') ~= ARGV[1] then return 0 end
for i = 4, #KEYS, 2 do
  if redis.call('EXISTS', KEYS[i]) == 0 then return -1 end
end
redis.call('HSET', KEYS[1], 'exchanging', ARGV[1])
for i = 4, #KEYS, 2 do redis.call('RENAME', KEYS[i], KEYS[i + 1]) end
for i = 3, #ARGV do redis.call('SMOVE', KEYS[2], KEYS[3], ARGV[i]) end
return 1
"""
# KEYS: commit hash, rows...   ARGV: epoch
_DROP_SCRIPT: Final = """
if redis.call('HGET', KEYS[1], 'epoch') ~= ARGV[1] then return 0 end
for i = 2, #KEYS do redis.call('UNLINK', KEYS[i]) end
return 1
"""
# KEYS: commit hash, index of staged rows, index of rows in place, feed of changes
# ARGV: exchange, epoch, number of fields to delete, fields..., field, value, ...
_FINISH_SCRIPT: Final = (
    ANNOUNCE
    + f"""
if redis.call('HGET', KEYS[1], 'epoch') ~= ARGV[2] then return 0 end
if redis.call('HGET', KEYS[1], 'staging') ~= ARGV[1] then return 0 end
if redis.call('SCARD', KEYS[2]) > 0 then return -1 end
local old_end = 3 + tonumber(ARGV[3])
for i = 4, old_end do redis.call('HDEL', KEYS[1], ARGV[i]) end
for i = old_end + 1, #ARGV, 2 do redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1]) end
redis.call('HSET', KEYS[1], 'built', ARGV[1])
redis.call('HDEL', KEYS[1], 'exchanging')
redis.call('UNLINK', KEYS[3])
announce(KEYS[1], KEYS[4], '{EVERYTHING}', '')
return 1
"""
)


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


def decide(client: "redis.Redis", exchange: Exchange, owner: str) -> None:
    """From here on the new state is the one: it is put in place by `finish`, whoever calls it.

    Raises OwnershipError where the lease of this backfill has run out.
    """
    text = json.dumps(asdict(exchange))
    if client.eval(_DECIDE_SCRIPT, 2, BACKFILL_KEY, EXCHANGE_KEY, owner, text) != 1:
        raise OwnershipError(
            f"the lease of {owner} ran out before its state was complete: run `headrace backfill` again"
        )


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
    client.eval(_FORGET_SCRIPT, 1, EXCHANGE_KEY, exchange.name)


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
    """Inside, no other backfill runs, as long as this process is not stopped for longer than the lease.

    `owner` is no other's name. Raises OwnershipError naming the backfill that runs.
    """
    if not client.set(BACKFILL_KEY, owner, nx=True, px=_LEASE_MS):
        holder = (client.get(BACKFILL_KEY) or b"another process").decode()
        raise OwnershipError(
            f"{holder} is at work: one backfill at a time; a killed one is forgotten after {_LEASE_MS // 1_000} s"
        )
    try:
        with _repeating(lambda: client.eval(_RENEW_SCRIPT, 1, BACKFILL_KEY, owner, _LEASE_MS)):
            yield
    finally:
        client.eval(RELEASE_SCRIPT, 1, BACKFILL_KEY, owner)


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
    staged, commit = StagedRows(client, owned.shard), commit_key(owned.shard)
    indexes = [commit, staged.index_key, staged.placed_key]
    _run(client, owned, [_script(_PLACE_SCRIPT, indexes, exchange.name, owned.epoch)])  # marks the shard
    placing = []
    for names in _batches(list(staged.names())):
        pairs = [part for name in names for part in (staged.staged_key(name), shard_tag(owned.shard) + name)]
        placing.append(_script(_PLACE_SCRIPT, [*indexes, *pairs], exchange.name, owned.epoch, *names))
    _run(client, owned, placing)
    _run(client, owned, [_script(_DROP_SCRIPT, [commit, *keys], owned.epoch) for keys in _batches(stale)])
    raw = client.hgetall(commit)
    replaced = [name for name in raw if name.partition(b":")[0] in (b"position", b"complete", b"fingerprint")]
    fields = [len(replaced), *replaced, *_fields(exchange, raw)]
    finishing = _script(_FINISH_SCRIPT, [*indexes, changes_key(owned.shard)], exchange.name, owned.epoch, *fields)
    _run(client, owned, [finishing])


def _batches(names: Sequence[str]) -> list[Sequence[str]]:
    return [names[start : start + _ROWS_AT_ONCE] for start in range(0, len(names), _ROWS_AT_ONCE)]


def _script(script: str, keys: Sequence[str], *arguments: str | int | bytes) -> list[str | int | bytes]:
    return ["EVAL", script, len(keys), *keys, *arguments]


def _run(client: "redis.Redis", owned: OwnedShard, scripts: Sequence[Sequence[str | int | bytes]]) -> None:
    """Some scripts of one shard, in order. Raises OwnershipError, ExchangeError."""
    for start in range(0, len(scripts), _SCRIPTS_AT_ONCE):
        pipeline = client.pipeline(transaction=False)
        for command in scripts[start : start + _SCRIPTS_AT_ONCE]:
            pipeline.execute_command(*command)
        answers = pipeline.execute()
        if 0 in answers:
            raise OwnershipError(f"shard {owned.shard} was taken over while its rows were exchanged")
        if -1 in answers:
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
