"""The stock way from the log to a feature: Bytewax event by event, Feast's `push` into Feast's own Redis store.

`python -m benchmarks.stock_push REPO` reads the stack's event log from its end, counts what each user and each item was part of, by type,
with `stateful_map`, and pushes each batch that Bytewax hands its sink as one data frame a view. It is given what helps it: many events in
an entry of the log, one push for many rows, and running counts in place of windows (Bytewax tells a window's value when the window closes,
so the value of a ten-minute window that moves by the minute is up to a minute old). It leaves out deduplication, dead letters, lists,
sessions and recovery.
"""

import signal
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import bytewax.operators as op
import orjson
import pandas as pd
from bytewax.dataflow import Dataflow
from bytewax.inputs import DynamicSource, StatelessSourcePartition
from bytewax.outputs import DynamicSink, StatelessSinkPartition
from bytewax.run import cli_main
from feast import Entity, FeatureStore, FeatureView, Field, FileSource, PushSource, ValueType
from feast.data_source import PushMode
from feast.repo_config import RepoConfig
from feast.types import Int64

from headrace import names
from headrace.settings import Settings
from headrace.stores.log import EventLog, open_log
from headrace.stores.redis_client import connect

COUNTED: Final = {names.VIEW: "views", names.CLICK: "clicks", names.ADD_TO_CART: "carts", names.PURCHASE: "purchases"}
JOIN_KEYS: Final = {"user": names.USER_ID, "item": names.ITEM_ID}
FEATURE: Final = "user_counts:views"
Counts = dict[str, int]

REST: Final = timedelta(milliseconds=2)
MAX_ENTRIES: Final = 64
READING: Final = "reading the log"


def open_stock_store(repo: Path, settings: Settings) -> FeatureStore:
    """A feature store with Feast's Redis online store, in database 1 of the stack's Valkey."""
    with connect(settings) as client:
        address = client.connection_pool.connection_kwargs
    config = RepoConfig(
        project="stock",
        provider="local",
        registry=str(repo / "registry.db"),
        online_store={"type": "redis", "connection_string": f"{address['host']}:{address['port']},db=1"},
        entity_key_serialization_version=3,
    )
    return FeatureStore(config=config)


def define(store: FeatureStore, repo: Path) -> None:
    """A view of four counts for users and one for items, each with a push source."""
    for kind, join_key in JOIN_KEYS.items():
        entity = Entity(name=kind, join_keys=[join_key], value_type=ValueType.STRING)
        batch = FileSource(name=f"{kind}_file", path=str(repo / "none.parquet"), timestamp_field="event_timestamp")
        view = FeatureView(
            name=f"{kind}_counts",
            entities=[entity],
            schema=[Field(name=count, dtype=Int64) for count in COUNTED.values()],
            source=PushSource(name=f"{kind}_push", batch_source=batch),
            ttl=timedelta(0),
        )
        store.apply([entity, view])


def get_flow(store: FeatureStore, log: EventLog) -> Dataflow:
    flow = Dataflow("stock")
    payloads = op.input("read_log", flow, LogTail(log))  # bytes
    events = op.flat_map("decode", payloads, lambda payload: map(orjson.loads, payload.split(b"\n")))  # dict
    counted = op.filter("keep_what_is_counted", events, lambda event: event["type"] in COUNTED)
    parts = op.flat_map("split_by_entity", counted, entities_of)  # ("user:ID", type)
    counts = op.stateful_map("count", parts, count_one)  # ("user:ID", {count: number})
    op.output("push", counts, PushSink(store))
    return flow


def entities_of(event: dict[str, Any]) -> list[tuple[str, str]]:
    return [(f"user:{event[names.USER_KEY]}", event["type"]), (f"item:{event[names.ITEM_ID]}", event["type"])]


def count_one(counts: Counts | None, event_type: str) -> tuple[Counts, Counts]:
    counts = dict.fromkeys(COUNTED.values(), 0) if counts is None else dict(counts)
    counts[COUNTED[event_type]] += 1
    return counts, counts


class LogTail(DynamicSource[bytes]):  # type: ignore[misc]
    def __init__(self, log: EventLog) -> None:
        self._log = log

    def build(self, step_id: str, worker_index: int, worker_count: int) -> "LogTailPartition":
        return LogTailPartition(self._log)


class LogTailPartition(StatelessSourcePartition[bytes]):  # type: ignore[misc]
    def __init__(self, log: EventLog) -> None:
        self._log = log
        self._positions = log.end()
        self._rest = REST
        print(READING, flush=True)

    def next_batch(self) -> list[bytes]:
        entries = self._log.read(self._positions, MAX_ENTRIES)
        self._positions |= {entry.partition: entry.position for entry in entries}
        self._rest = timedelta(0) if entries else REST
        return [entry.payload for entry in entries]

    def next_awake(self) -> datetime | None:
        return datetime.now(UTC) + self._rest if self._rest else None


class PushSink(DynamicSink[tuple[str, Counts]]):  # type: ignore[misc]
    def __init__(self, store: FeatureStore) -> None:
        self._store = store

    def build(self, step_id: str, worker_index: int, worker_count: int) -> "PushPartition":
        return PushPartition(self._store)


class PushPartition(StatelessSinkPartition[tuple[str, Counts]]):  # type: ignore[misc]
    def __init__(self, store: FeatureStore) -> None:
        self._store = store

    def write_batch(self, items: list[tuple[str, Counts]]) -> None:
        newest = dict(items)
        for kind, join_key in JOIN_KEYS.items():
            rows = [
                {join_key: key.partition(":")[2], **counts, "event_timestamp": datetime.now(UTC)}
                for key, counts in newest.items()
                if key.startswith(kind)
            ]
            if rows:
                self._store.push(f"{kind}_push", pd.DataFrame(rows), to=PushMode.ONLINE)


def main() -> None:
    settings = Settings()
    store = open_stock_store(Path(sys.argv[1]), settings)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    cli_main(get_flow(store, open_log(connect(settings), settings)))


if __name__ == "__main__":
    main()
