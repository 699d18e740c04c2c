"""A month of events for `asof_aggregates`: a lake as the flow writes it, label rows, and an applied feature repository."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import polars as pl
import pyarrow as pa

from headrace import names
from headrace.events import EVENT_SCHEMA
from headrace.settings import DAY_US, HOUR_US
from headrace.stores.lake import EventLake

TYPES: Final = (names.VIEW, names.CLICK, names.ADD_TO_CART, names.PURCHASE, names.LIKE)
_SHARES: Final = (0.60, 0.25, 0.08, 0.04, 0.03)
_USERS: Final = 20_000
_ITEMS: Final = 5_000
_APPEND_ROWS: Final = 250_000
_START_US: Final = 1_700_006_400_000_000
_SPAN_US: Final = 30 * DAY_US


def generate(directory: Path, events: int, labels: int) -> None:
    """A lake of user-made events below `directory`, a tenth of them up to an hour late; `labels.parquet`, in no order."""
    rng = np.random.default_rng(3)
    lake = EventLake(directory / "var" / "lake")
    for batch, table in enumerate(_batches(rng, events), start=1):
        lake.append(table, {0: batch})
    lake.compact()
    asked = {
        "user_id": _named("user", _pareto(rng, _USERS, labels)),
        "event_timestamp": _moments(_START_US + rng.integers(0, _SPAN_US, labels)),
        "label": np.arange(labels),
    }
    pl.DataFrame(asked).write_parquet(directory / "labels.parquet")
    _apply(directory)


def _batches(rng: np.random.Generator, count: int) -> Iterator[pa.Table]:
    """The events in the order of their arrival, as the lake keeps them."""
    arrivals = np.sort(rng.integers(_START_US, _START_US + _SPAN_US, count))
    times = arrivals - np.where(rng.random(count) < 0.1, rng.integers(0, HOUR_US, count), 0)
    users, items = _pareto(rng, _USERS, count), _pareto(rng, _ITEMS, count)
    types, ids = rng.choice(len(TYPES), count, p=_SHARES), rng.integers(0, 2**62, count)
    for batch, start in enumerate(range(0, count, _APPEND_ROWS), start=1):
        rows = slice(start, min(count, start + _APPEND_ROWS))
        users_of, received = _named("user", users[rows]), _moments(arrivals[rows])
        frame = pl.DataFrame(
            {
                "event_id": pl.Series(ids[rows]).cast(pl.String) + pl.Series(np.arange(start, rows.stop)).cast(pl.String),
                "type": pl.Series(TYPES).gather(types[rows]),
                "user_key": users_of,
                "user_id": users_of,
                "item_id": _named("item", items[rows]),
                "timestamp": _moments(times[rows]),
                "received_at": received,
                "ingested_at": received,
                "price": items[rows] % 97 * 0.5,
                "quantity": np.ones(rows.stop - start, np.int64),
            }
        )  # fmt: skip
        index = pl.int_range(pl.len())
        table = frame.with_columns(log_partition=0, log_position=batch, log_index=index, schema_version=1).to_arrow()
        yield pa.table(
            [
                table[field.name].cast(field.type) if field.name in table.column_names else pa.nulls(len(table), field.type)
                for field in EVENT_SCHEMA
            ],
            schema=EVENT_SCHEMA,
        )  # fmt: skip


def _apply(directory: Path) -> None:
    """`feast apply` of a copy of the default feature repository, with its data below `directory`."""
    repo, copy = Path(__file__).parents[1] / "feature_repo", directory / "feature_repo"
    copy.mkdir()
    for file in ("features.py", "feature_store.yaml"):
        (copy / file).write_text((repo / file).read_text())
    command = [str(Path(sys.executable).parent / "feast"), "--chdir", str(copy), "apply"]
    environment = os.environ | {"HEADRACE_DATA": str(directory / "var")}
    subprocess.run(command, check=True, env=environment, capture_output=True)


def _pareto(rng: np.random.Generator, kinds: int, count: int) -> Any:
    weights = 1 / np.arange(1, kinds + 1) ** 0.8
    return rng.choice(kinds, count, p=weights / weights.sum())


def _named(kind: str, numbers: Any) -> pl.Series:
    return pl.select(pl.format(f"{kind}-{{}}", pl.lit(pl.Series(numbers)).cast(pl.String).str.zfill(6))).to_series()


def _moments(micros: Any) -> pl.Series:
    return pl.Series(micros).cast(pl.Datetime("us", "UTC"))
