"""A stack of a test's own, whose processes may be killed: server, flows, feature store, and what stands in log, store and lake."""

import os
import runpy
import signal
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from shutil import copytree, ignore_patterns
from typing import Any

import orjson
import polars as pl
import pytest
import redis
from feast import Entity, FeatureService, FeatureStore, FeatureView

from headrace import names
from headrace.events import RECORD_SCHEMA, encode_records
from headrace.identity import shard_of
from headrace.ops.child import Child, environment_of
from headrace.ops.ports import free_port
from headrace.ops.valkey import ValkeyServer
from headrace.settings import Settings
from headrace.stores.definitions import Definitions, load_definitions
from headrace.stores.feature_store import open_feature_store, quieten_feast
from headrace.stores.lake import EventLake
from headrace.stores.log import EventLog, open_log
from headrace.stores.online_reader import OnlineReader
from headrace.stores.redis_client import connect
from headrace.stores.shards import ShardStatus, read_status
from tests.conftest import ROOT
from tests.laws.definitions import ITEM, USER, stream_views
from tests.laws.feed import Feed
from tests.oracles import Event


@dataclass(frozen=True)
class Progress:
    """How far the online state and the lake are."""

    events: int
    """Distinct events in the online state, by the flow's own count."""
    positions: dict[tuple[int, int], int]
    """Log position by shard and partition."""
    lake: dict[int, int]

    def started(self, flow: str) -> bool:
        return any(self.lake.values()) if flow == "lake" else self.events > 0

    def within(self, later: "Progress") -> bool:
        """True where nothing is further here than there."""
        positions = all(position <= later.positions[place] for place, position in self.positions.items())
        lake = all(position <= later.lake[partition] for partition, position in self.lake.items())
        return self.events <= later.events and positions and lake

    def short_of(self, end: "Progress", flow: str) -> bool:
        """True where that flow had committed less than it has at the end."""
        here, there = (self.lake, end.lake) if flow == "lake" else (self.events, end.events)
        return here != there and self.within(end)


class Site:
    """Settings, an append-only Valkey and flows as processes, all in one directory."""

    def __init__(self, directory: Path, **settings: Any) -> None:
        self.directory = directory
        self.server = ValkeyServer(directory / "valkey", free_port(), directory / "valkey.log")
        repo = directory / "feature_repo"
        copytree(ROOT / "feature_repo", repo, ignore=ignore_patterns("__pycache__"))
        self.settings = Settings(data=directory / "var", feature_repo=repo, redis_url=self.server.url, **settings)
        self.flows: list[Child] = []
        self._feeds: list[Feed] = []
        self.server.start()
        self.client: redis.Redis = connect(self.settings)
        self.lake = EventLake(self.settings.lake_dir)

    @property
    def log(self) -> EventLog:
        return open_log(self.client, self.settings)

    def apply(self, *, every_function: bool, default_set: bool = False) -> FeatureStore:
        """Register the views of `definitions.py`, those of the product's feature repository, or both."""
        found: list[Any] = []
        if default_set:
            found += self._default_set()
        if every_function:
            found += [USER, ITEM, *stream_views(self.settings.lake_dir)]
        store = open_feature_store(self.settings)
        store.apply(list({one.name: one for one in found}.values()))
        return store

    def _default_set(self) -> list[Any]:
        quieten_feast()
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("HEADRACE_DATA", str(self.settings.data))
            module = runpy.run_path(str(self.settings.feature_repo / "features.py"))
        return [one for one in module.values() if isinstance(one, Entity | FeatureView | FeatureService)]

    def start(self, flow: str = "features") -> Child:
        """`python -m flows.<flow>` as a user starts it; its output in a log file of its own."""
        log = self.directory / f"{flow}-{len(list(self.directory.glob('*.log')))}.log"
        child = Child(flow, [sys.executable, "-m", f"flows.{flow}"], environment_of(self.settings), log)
        child.start()
        self.flows.append(child)
        return child

    def feed(self, events: pl.DataFrame, slice_events: int, repeats: float, seed: int) -> Feed:
        """Feeds this stack's log; see `Feed`."""
        self._feeds.append(Feed(self.log, events, slice_events, repeats, seed))
        return self._feeds[-1]

    def append(self, records: Sequence[Event], entry: int) -> None:
        """Append records in order, `entry` of them at a time, each to its partition."""
        for start in range(0, len(records), entry):
            parts: dict[int, list[Event]] = {}
            for record in records[start : start + entry]:
                parts.setdefault(shard_of(record[names.USER_KEY], self.settings.log_partitions), []).append(record)
            payloads = {p: encode_records(part) for p, part in parts.items()}
            self.log.append(payloads, {p: len(part) for p, part in parts.items()})

    def revive(self) -> list[Child]:
        """Start again what has ended by itself, as the supervisor of `headrace up` does."""
        ended = [child for child in self.flows if not child.is_running()]
        for child in ended:
            child.start()
        return ended

    def progress(self) -> Progress:
        statuses, partitions = self._statuses(), range(self.settings.log_partitions)
        return Progress(
            events=sum(status.counters.get("events", 0) for status in statuses.values()),
            positions={(shard, p): s.positions.get(p, 0) for shard, s in statuses.items() for p in partitions},
            lake=self.lake_positions(),
        )

    def lake_positions(self) -> dict[int, int]:
        return self.lake.positions(range(self.settings.log_partitions))

    def counted(self, kind: str) -> int:
        """What the flow has counted as `events`, `duplicates`, `late` or `dead_letters`."""
        return sum(status.counters.get(kind, 0) for status in self._statuses().values())

    def _statuses(self) -> dict[int, ShardStatus]:
        return read_status(self.client, range(self.settings.shards))

    @property
    def definitions(self) -> Definitions:
        return load_definitions(self.settings)

    def at_the_end(self) -> bool:
        """True when every shard, and the lake if a flow writes it, stand where the log ends."""
        end = self.log.end()
        writes_lake = any(child.name == "lake" for child in self.flows)
        now = self.progress()
        state = all(position == end[partition] for (_, partition), position in now.positions.items())
        return state and (now.lake == end or not writes_lake)

    def caught_up(self, since_us: int) -> bool:
        """True when a flow that has run after `since_us` found every shard at the end of the log."""
        shards = self._statuses().values()
        return all(shard.complete_us(self.settings.log_partitions) > since_us for shard in shards) and self.at_the_end()

    def reader(self) -> OnlineReader:
        return OnlineReader(self.client, self.definitions, self.settings)

    def lake_records(self) -> pl.DataFrame:
        """Events of the lake as records, by event_id."""
        return self.lake.scan(RECORD_SCHEMA.names).collect().sort(names.EVENT_ID)

    def close(self) -> None:
        """End everything; flows that are alive must obey SIGTERM."""
        for feed in self._feeds:
            feed.stop()
        alive = [child for child in self.flows if child.is_running()]
        for child in alive:
            os.kill(child.pid, signal.SIGCONT)
            child.terminate()
        codes = [child.wait(60) for child in alive]
        self.client.close()
        self.server.kill()
        assert codes == [0] * len(alive)


def log_records(log: EventLog) -> list[Event]:
    """Every record that stands in the log, partition by partition in order, with its place and its time of append."""
    records: list[Event] = []
    for partition in range(log.partitions):
        position = 0
        while entries := log.read({partition: position}, 500):
            for entry in entries:
                place = {
                    names.LOG_PARTITION: partition,
                    names.LOG_POSITION: entry.position,
                    names.INGESTED_AT: entry.ingested_at_us,
                }
                lines = entry.payload.split(b"\n")
                records += [orjson.loads(line) | place | {names.LOG_INDEX: index} for index, line in enumerate(lines)]
            position = entries[-1].position
    return records


def distinct(records: Iterable[Event]) -> list[Event]:
    """The first delivery of each event, in order: what `oracles.log_dedup` gives where all lies within the horizon."""
    first: dict[tuple[int, str], Event] = {}
    for record in records:
        first.setdefault((record[names.LOG_PARTITION], record[names.EVENT_ID]), record)
    return list(first.values())
