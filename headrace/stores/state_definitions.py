"""By which definitions the stored state was made. They are kept in the store itself, under their fingerprints.

The registry says what is *applied*. Each shard says by fingerprint what its rows *are*. Between `headrace apply` of a changed view and
the end of `headrace backfill` the two differ: flow and readers go by what the state is, so the old one serves and is never misread.
"""

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import redis

from headrace.aggregates.spec import ViewSpec
from headrace.names import PROJECT
from headrace.settings import Settings
from headrace.stores.change_feed import ANNOUNCE, EVERYTHING, changes_key
from headrace.stores.crew import Crew
from headrace.stores.definitions import Definitions, load_definitions, view_from_json, view_to_json
from headrace.stores.exchange import settle
from headrace.stores.row_scan import scan_views
from headrace.stores.shards import ShardStatus, commit_key, lease_key, read_status

logger = logging.getLogger(__name__)

DEFINITIONS_KEY: Final = f"{PROJECT}:@definitions"

# KEYS: commit hash, lease, feed of changes   ARGV: views. Whoever owns the shard is fenced off: it must not write rows of them again.
_FORGET_SCRIPT: Final = (
    ANNOUNCE
    + f"""
local known = 0
for i = 1, #ARGV do known = known + redis.call('HDEL', KEYS[1], 'fingerprint:' .. ARGV[i]) end
if known > 0 then
  redis.call('HINCRBY', KEYS[1], 'epoch', 1)
  redis.call('DEL', KEYS[2])
  announce(KEYS[1], KEYS[3], '{EVERYTHING}', '')
end
return known
"""
)
# KEYS: commit hash, feed of changes, rows...
_DROP_SCRIPT: Final = (
    ANNOUNCE
    + f"""
announce(KEYS[1], KEYS[2], '{EVERYTHING}', '')
local dropped = 0
for i = 3, #KEYS do dropped = dropped + redis.call('UNLINK', KEYS[i]) end
return dropped
"""
)
_DROPPED_AT_ONCE: Final = 1_000


class StaleStateError(RuntimeError):
    """Stored state that cannot be gone on with."""


class ExchangedError(StaleStateError):
    """State that a backfill has exchanged: a flow that is started again goes on from it."""


@dataclass(frozen=True)
class StateDefinitions:
    """What the stored state can be read by, and what of the applied definitions it does not have yet.

    `waiting` are full names, `view.feature`: those features read as null, or by the old definition where the old one has them.
    """

    definitions: Definitions
    waiting: tuple[str, ...] = ()

    @property
    def streams(self) -> Mapping[str, ViewSpec]:
        return self.definitions.streams

    def explain(self) -> str:
        """One line for a log or a status page, empty if nothing waits."""
        if not self.waiting:
            return ""
        shown = ", ".join(self.waiting[:5]) + (f" and {len(self.waiting) - 5} more" if len(self.waiting) > 5 else "")
        return f"applied, but not in the stored state yet: {shown}; run `headrace backfill`"


def state_definitions(
    client: "redis.Redis", settings: Settings, applied: Definitions | None = None
) -> StateDefinitions:
    """What readers go by. An empty store takes what is applied.

    A view is in the state if every shard that holds events names a definition of it which this code can read. Shards differ while
    a backfill exchanges them one by one; the applied definition then stands for both, and rows of the other name theirs.
    Raises DefinitionError where the registry holds a view that cannot be computed, redis.RedisError.
    """
    applied = applied or load_definitions(settings)
    filled = _with_events(read_status(client, range(settings.shards)).values())
    if not filled:
        return StateDefinitions(applied)
    stored = _fingerprints(filled)
    known = known_definitions(client, set().union(*stored.values())) | {
        s.fingerprint: s for s in applied.streams.values()
    }
    streams = {}
    for view, fingerprints in stored.items():
        specs = [known[each] for each in sorted(fingerprints) if each in known]
        wanted = applied.streams.get(view)
        if len(specs) == len(fingerprints):
            streams[view] = wanted if wanted in specs else specs[0]
    return StateDefinitions(replace(applied, streams=streams), _waiting(applied.streams, streams))


def definitions_to_fold(client: "redis.Redis", settings: Settings, owner: str) -> dict[str, ViewSpec]:
    """What a flow folds: the views that the state has, by the definitions that it was made by. If it is empty, all that is
    applied, or what another worker that is alive has begun by.

    Finishes an exchange that a killed backfill has left. A view that only some shards have is nobody's any more: its state stays
    out until `headrace backfill`. Raises StaleStateError for state that this code cannot go on with, DefinitionError.
    """
    settle(client, settings.shards, owner)
    applied = load_definitions(settings).streams
    statuses = read_status(client, range(settings.shards)).values()
    filled = _with_events(statuses)
    whole = {view: min(found) for view, found in _fingerprints(filled).items() if len(found) == 1}
    known = known_definitions(client, whole.values()) | {spec.fingerprint: spec for spec in applied.values()}
    unreadable = sorted(view for view, fingerprint in whole.items() if fingerprint not in known)
    if unreadable:
        raise StaleStateError(
            f"the stored state of {', '.join(unreadable)} was made by another version of Headrace: run `headrace backfill`"
        )
    if filled:
        specs = {view: known[fingerprint] for view, fingerprint in whole.items()}
    else:
        specs = _agreed(client, applied, Crew(client, owner, int(settings.flow_lease_s * 1_000)))
    waiting = StateDefinitions(Definitions(specs, {}), _waiting(applied, specs)).explain()
    if waiting:
        logger.warning("%s", waiting)
    forget_views(client, settings, {view for status in statuses for view in status.fingerprints} - set(specs))
    record_definitions(client, specs.values())
    return specs


def _agreed(client: "redis.Redis", applied: Mapping[str, ViewSpec], crew: Crew) -> dict[str, ViewSpec]:
    """What a crew folds into an empty store: what was applied when the first of those that are alive began."""
    record_definitions(client, applied.values())
    agreed: dict[str, int] = json.loads(crew.agree(word_for(applied)))
    known = known_definitions(client, agreed.values())
    if set(known) != set(agreed.values()):
        raise StaleStateError("a worker of another version of Headrace is at work on the empty store: end it first")
    return {view: known[fingerprint] for view, fingerprint in agreed.items()}


def word_for(specs: Mapping[str, ViewSpec]) -> str:
    """What a member of a flow's crew says that it folds."""
    return json.dumps({view: specs[view].fingerprint for view in sorted(specs)})


def check_state(shard: int, status: ShardStatus, specs: Mapping[str, ViewSpec]) -> None:
    """Whether a shard that a flow has just taken is still what `definitions_to_fold` said. Raises ExchangedError."""
    folded = {name: spec.fingerprint for name, spec in specs.items()}
    if status.exchanging:
        raise ExchangedError(
            f"shard {shard} is in the middle of an exchange: it is finished when this flow is started again"
        )
    if any(status.positions.values()) and status.fingerprints != folded:
        differing = sorted(set(folded.items()) ^ set(status.fingerprints.items()))
        raise ExchangedError(
            f"the state of shard {shard} was exchanged since this flow started (views: {', '.join({v for v, _ in differing})}): "
            "it goes on by the new definitions when it is started again"
        )


def record_definitions(client: "redis.Redis", specs: Iterable[ViewSpec]) -> None:
    """Keep definitions in the store. Must be done before a row made by them is committed."""
    content = {f"{spec.fingerprint:016x}": view_to_json(spec) for spec in specs}
    if content:
        client.hset(DEFINITIONS_KEY, mapping=content)


def known_definitions(client: "redis.Redis", fingerprints: Iterable[int]) -> dict[int, ViewSpec]:
    """Definitions by fingerprint; those left out that are not kept, or that this version of the code computes otherwise."""
    wanted = list(fingerprints)
    texts = client.hmget(DEFINITIONS_KEY, [f"{each:016x}" for each in wanted]) if wanted else []
    specs = {each: view_from_json(text) for each, text in zip(wanted, texts, strict=True) if text is not None}
    return {each: spec for each, spec in specs.items() if spec is not None and spec.fingerprint == each}


def stored_fingerprints(client: "redis.Redis", settings: Settings) -> set[int]:
    """What the shards say that their rows are made by."""
    statuses = read_status(client, range(settings.shards)).values()
    return {fingerprint for status in statuses for fingerprint in status.fingerprints.values()}


def forget_definitions(client: "redis.Redis", keep: Iterable[int]) -> None:
    """Drop definitions but those with the fingerprints in `keep`.

    Those of the state that has just been exchanged belong to them: a reader may hold rows of it, and ask only now what they are.
    """
    kept = {f"{fingerprint:016x}".encode() for fingerprint in keep}
    gone = [each for each in client.hkeys(DEFINITIONS_KEY) if each not in kept]
    if gone:
        client.hdel(DEFINITIONS_KEY, *gone)


def stored_views(client: "redis.Redis", settings: Settings) -> set[str]:
    """Stream views that any shard has state of."""
    return {view for status in read_status(client, range(settings.shards)).values() for view in status.fingerprints}


def forget_views(client: "redis.Redis", settings: Settings, views: Iterable[str]) -> None:
    """Let no shard say any more that it has state of the views. A running flow that folds one of them is fenced off."""
    names = sorted(set(views))
    for shard in range(settings.shards) if names else ():
        client.eval(_FORGET_SCRIPT, 3, commit_key(shard), lease_key(shard), changes_key(shard), *names)


def drop_views(client: "redis.Redis", settings: Settings, views: Iterable[str]) -> int:
    """Delete the rows of views, stream or plain, and what shards say of them; returns how many rows.

    A running flow that folds one of them is fenced off, and goes on without it when it starts again.
    """
    names = set(views)
    if not names:
        return 0
    forget_views(client, settings, names)
    return sum(_drop_rows(client, shard, keys) for shard, keys in scan_views(client, names))


def _drop_rows(client: "redis.Redis", shard: int, keys: Sequence[str]) -> int:
    dropped = 0
    for start in range(0, len(keys), _DROPPED_AT_ONCE):
        names = [commit_key(shard), changes_key(shard), *keys[start : start + _DROPPED_AT_ONCE]]
        dropped += int(client.eval(_DROP_SCRIPT, len(names), *names))
    return dropped


def _with_events(statuses: Iterable[ShardStatus]) -> list[ShardStatus]:
    return [status for status in statuses if any(status.positions.values())]


def _fingerprints(filled: Sequence[ShardStatus]) -> dict[str, set[int]]:
    """Of each view that all the shards have: what they say it is."""
    views = set.intersection(*(set(status.fingerprints) for status in filled)) if filled else set()
    return {view: {status.fingerprints[view] for status in filled} for view in sorted(views)}


def _waiting(applied: Mapping[str, ViewSpec], stored: Mapping[str, ViewSpec]) -> tuple[str, ...]:
    names = []
    for view, spec in applied.items():
        old = stored.get(view)
        same = old is not None and replace(spec, aggregates=old.aggregates) == old
        known = set(old.aggregates) if old is not None and same else set()
        names += [f"{view}.{each.name}" for each in spec.aggregates if each not in known]
    return tuple(names)
