"""Rows that the tests of the offline store write and ask about. Times in microseconds."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from deltalake import write_deltalake
from feast import FeatureStore

from headrace import names
from headrace.clock import from_micros
from headrace.events import EVENT_SCHEMA
from headrace.settings import MICROS, Settings
from headrace.stores.lake import EventLake
from tests import oracles

MINUTE = 60 * MICROS
HOUR = 60 * MINUTE
DAY = 24 * HOUR
NOON = 1_700_049_600 * MICROS  # 2023-11-15 12:00 UTC
TIME = pa.timestamp("us", "UTC")


def generated_events(count: int, seed: int) -> list[oracles.Event]:
    """Events of five users and six items round NOON: ties, nights between sessions, late arrivals."""
    rng = np.random.default_rng(seed)
    types = [names.VIEW, names.VIEW, names.CLICK, names.ADD_TO_CART, names.PURCHASE, names.IMPRESSION]
    events = []
    for number in range(count):
        at = NOON + int(rng.choice([0, DAY, 2 * DAY])) + int(rng.integers(0, 240)) * MINUTE // 2
        delay = int(rng.choice([0, 0, 0, MICROS, DAY + 1]))
        events.append(
            {
                "event_id": f"e{int(rng.integers(10**9))}-{number}",
                "type": str(rng.choice(types)),
                "user_key": f"u{rng.integers(5)}",
                "item_id": f"i{rng.integers(6)}",
                "timestamp": at,
                "received_at": at + delay,
                "ingested_at": at + delay,
                "log_partition": 0,
                "log_position": number + 1,
                "log_index": 0,
                "schema_version": 1,
            }
        )
    return events


def view_event(user_key: str, item_id: str, at: int, delay: int = 0) -> oracles.Event:
    times = {"timestamp": at, "received_at": at + delay, "ingested_at": at + delay}
    log = {"log_partition": 0, "log_position": 1, "log_index": 0}
    return {"event_id": "a", "type": names.VIEW, "user_key": user_key, "item_id": item_id} | times | log


def append_events(settings: Settings, events: list[oracles.Event]) -> None:
    lake = EventLake(settings.lake_dir)
    position = lake.positions([0])[0] + 1
    rows = [
        {name: e.get(name) for name in EVENT_SCHEMA.names} | {"log_partition": 0, "log_position": position}
        for e in events
    ]
    lake.append(pa.Table.from_pylist(rows, schema=EVENT_SCHEMA), {0: position})


def append_rows(path: Path, *rows: dict[str, Any]) -> None:
    """Catalogue or profile rows; `at` and `created` in microseconds."""
    table = pa.Table.from_pylist([{k: v for k, v in row.items() if k not in ("at", "created")} for row in rows])
    for column, field in (("event_timestamp", "at"), ("created", "created")):
        table = table.append_column(column, pa.array([row[field] for row in rows], pa.int64()).cast(TIME))
    write_deltalake(str(path), table, mode="append")


def item(item_id: str | None, at: int, price: float, created: int | None = None) -> dict[str, Any]:
    row = {
        "item_id": item_id,
        "title": "t",
        "category": "c",
        "brand": "b",
        "price": price,
        "available": True,
        "attributes": ["red", "round"],
        "listed_at": at,
    }
    return row | {"at": at, "created": at if created is None else created}


def asked(rows: list[tuple[str | None, str | None, int]]) -> pd.DataFrame:
    """Users, items and times, numbered in a column `label`."""
    return pd.DataFrame(
        {
            "user_id": [user for user, _, _ in rows],
            "item_id": [item for _, item, _ in rows],
            "event_timestamp": [from_micros(t) for _, _, t in rows],
            "label": range(len(rows)),
        }
    )


def fetch(store: FeatureStore, entity_df: Any, features: Any, **options: Any) -> pa.Table:
    if isinstance(features, str):
        features = store.get_feature_service(features)
    return store.get_historical_features(entity_df=entity_df, features=features, **options).to_arrow()
