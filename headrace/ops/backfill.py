"""`headrace backfill`: rebuild the online state of every stream view from the lake, with the engine that the flow uses.

The old state serves until the new one stands beside it; then both change places in one transaction for each shard, together with the
log positions that the lake version covers. The flow goes on from there: no gap, no overlap.
"""

import os
import socket
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import polars as pl
import redis

from headrace import names
from headrace.aggregates.fold import ViewState, events_of
from headrace.aggregates.layout import Layout
from headrace.aggregates.spec import ViewSpec
from headrace.identity import shards_of
from headrace.settings import Settings
from headrace.stores.definitions import load_definitions
from headrace.stores.lake import EventLake
from headrace.stores.log import RedisEventLog, open_log
from headrace.stores.redis_client import connect
from headrace.stores.shards import OwnedShard, check_deployment, scan_keys

_FOLD_CHUNK = 100_000
_LEASE_MS = 30_000


class BackfillError(RuntimeError):
    """The state cannot be rebuilt from this lake."""


@dataclass
class BackfillReport:
    """Events read, rows written by view, and the positions that the flow goes on from."""

    events: int = 0
    rows: dict[str, int] = field(default_factory=dict)
    positions: dict[int, int] = field(default_factory=dict)


def backfill(settings: Settings, progress: Callable[[str, int, int], None] | None = None) -> BackfillReport:
    """Rebuild every shard. A running flow is fenced off, ends, and goes on from the new positions when it is started again.

    Raises BackfillError when the log no longer reaches back to the lake.
    """
    client = connect(settings, timeout_s=60.0)
    check_deployment(client, shards=settings.shards, log_partitions=settings.log_partitions)
    specs = load_definitions(settings).streams
    lake = EventLake(settings.lake_dir)
    owner = f"backfill:{socket.gethostname()}:{os.getpid()}"
    # Fence the flow first: from here on nothing moves but the lake, and the lake is read once, at one version.
    shards = [OwnedShard(client, number, owner, _LEASE_MS) for number in range(settings.shards)]
    for shard in shards:
        shard.acquire(force=True)
    with _kept(shards):
        positions = lake.positions([*range(settings.log_partitions), names.BULK_PARTITION])
        _check_reach(open_log(client, settings), positions)
        report = BackfillReport(positions=positions)
        columns = dict.fromkeys(column for spec in specs.values() for column in spec.columns)
        events = lake.scan([*columns], upto=positions).collect()
        report.events = events.height
        for done, shard in enumerate(shards):
            for name, count in _rebuild(client, shard, specs, events, positions, settings).items():
                report.rows[name] = report.rows.get(name, 0) + count
            if progress:
                progress("shards", done + 1, len(shards))
        return report


@contextmanager
def _kept(shards: Sequence[OwnedShard]) -> Iterator[None]:
    """Renew the leases of all shards while the work goes on, then release them."""
    done = threading.Event()

    def renew() -> None:
        while not done.wait(_LEASE_MS / 3_000):
            for shard in shards:
                shard.renew()

    keeper = threading.Thread(target=renew, name="leases", daemon=True)
    keeper.start()
    try:
        yield
    finally:
        done.set()
        keeper.join()
        for shard in shards:
            shard.release()


def _check_reach(log: RedisEventLog, positions: Mapping[int, int]) -> None:
    for partition, trimmed in log.trimmed_below().items():
        if trimmed > positions[partition]:
            raise BackfillError(
                f"log partition {partition} begins after position {trimmed}, the lake ends at {positions[partition]}: "
                "events between are gone from the log; restore the lake to a version that reaches it"
            )


def _rebuild(
    client: "redis.Redis",
    shard: OwnedShard,
    specs: Mapping[str, ViewSpec],
    events: pl.DataFrame,
    positions: Mapping[int, int],
    settings: Settings,
) -> dict[str, int]:
    """One shard: stage the new rows, then put them in place with their positions."""
    fresh: dict[tuple[str, str], bytes] = {}
    stale: set[tuple[str, str]] = set()
    for name, spec in specs.items():
        own = _events_of_shard(spec, events, shard.shard, settings.shards)
        fresh |= {(name, key): row for key, row in _fold(spec, own).items()}
        stale |= {(name, key) for key in scan_keys(client, shard.shard, name)}
    shard.replace(fresh, stale - set(fresh), positions, {name: spec.fingerprint for name, spec in specs.items()})
    return {name: sum(view == name for view, _ in fresh) for name in specs}


def _events_of_shard(spec: ViewSpec, events: pl.DataFrame, shard: int, shards: int) -> pl.DataFrame:
    own = events_of(spec, events)
    keys = own[spec.entity_column].unique()
    members = keys.filter(pl.Series(shards_of(keys, shards) == shard))
    return own.filter(pl.col(spec.entity_column).is_in(members.to_list()))


def _fold(spec: ViewSpec, events: pl.DataFrame) -> dict[str, bytes]:
    state = ViewState(Layout(spec))
    for key in state.missing(events[spec.entity_column]):
        state.load(key, None)
    for chunk in events.iter_slices(_FOLD_CHUNK):
        state.fold(chunk)
    return state.take_changed()
