"""Bounded memory: a join in ranges of entities gives what the whole gives, and takes less."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from feast import FeatureStore

from headrace import names
from headrace.events import EVENT_SCHEMA
from headrace.settings import Settings
from headrace.stores import offline_memory, offline_plain, point_in_time
from headrace.stores.lake import EventLake
from tests.conftest import ROOT
from tests.integration.offline.rows import (
    MINUTE,
    NOON,
    append_events,
    append_rows,
    asked,
    fetch,
    generated_events,
    item,
)

USERS = 20_000


@pytest.fixture
def ranges(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Number of label rows of each range that a join takes."""
    taken: list[int] = []

    def watched(*arguments: object) -> object:
        for rows in offline_memory.key_ranges(*arguments):  # type: ignore[arg-type]
            taken.append(len(rows))
            yield rows

    for module in (point_in_time, offline_plain):
        monkeypatch.setattr(module, "key_ranges", watched)
    return taken


def test_a_join_in_ranges_of_entities_equals_the_whole(
    store: FeatureStore, settings: Settings, ranges: list[int]
) -> None:
    append_events(settings, generated_events(200, seed=3))
    prices = [item(f"i{n}", NOON + n * 37 * MINUTE % 600, float(n)) for n in range(6) for _ in range(5)]
    append_rows(settings.lake_dir / names.ITEMS_TABLE, *prices)
    rows = asked([(f"u{n % 6}", f"i{n % 7}", NOON + n * 60 * MINUTE) for n in range(60)])
    rows.loc[7, ["user_id", "item_id"]] = None
    for arrived_only in (False, True):
        store.config.offline_store.memory_mb = None
        whole = fetch(
            store, rows, names.RANKER_SERVICE, full_feature_names=True, filter_by_created_timestamp=arrived_only
        )
        ranges.clear()
        store.config.offline_store.memory_mb = 0.001
        parts = fetch(
            store, rows, names.RANKER_SERVICE, full_feature_names=True, filter_by_created_timestamp=arrived_only
        )
        assert parts.equals(whole)
        assert len(ranges) > 3 * 2  # of each of three views with rows: how entities share ranges is up to their hashes


def test_what_fits_is_joined_at_once(store: FeatureStore, settings: Settings, ranges: list[int]) -> None:
    append_events(settings, generated_events(50, seed=3))
    fetch(store, asked([(f"u{n}", "i1", NOON) for n in range(5)]), ["user_activity:views_1h", "user_profile:age"])
    assert ranges == [5]


def test_the_bound_is_what_is_set_or_half_of_what_the_control_group_leaves(tmp_path: Path) -> None:
    assert offline_memory.memory_bound(3, tmp_path) == 3 * 2**20
    free = offline_memory.memory_bound(None, tmp_path)
    for file, text in {
        "memory.max": str(500 * 2**20),
        "memory.current": str(400 * 2**20),
        "memory.stat": f"anon 1\nactive_file {60 * 2**20}\ninactive_file {40 * 2**20}\n",
    }.items():
        (tmp_path / file).write_text(text)
    assert offline_memory.memory_bound(None, tmp_path) == min(100 * 2**20, free)
    (tmp_path / "memory.current").write_text(str(600 * 2**20))
    assert offline_memory.memory_bound(None, tmp_path) == 32 * 2**20
    (tmp_path / "memory.max").write_text("max\n")
    assert offline_memory.memory_bound(None, tmp_path) > 32 * 2**20


_JOIN = """
import json, sys
from pathlib import Path
import polars as pl
from headrace.stores.feature_store import open_feature_store
from headrace.settings import Settings

store = open_feature_store(Settings(feature_repo=sys.argv[1]))
labels = pl.read_parquet(sys.argv[2])
features = ["user_activity:views_1h", "user_activity:session_count", "user_activity:recent_items"]
def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM:"))
store.get_historical_features(labels.head(1), features).to_arrow()  # loads what is compiled
before = peak()
store.config.offline_store.memory_mb = float(sys.argv[3])
answer = store.get_historical_features(labels, features).to_polars()
sums = [int(answer["views_1h"].sum()), int(answer["session_count"].sum()), int(answer["recent_items"].hash().sum())]
print(json.dumps([peak() - before, *sums]))
"""


@pytest.mark.slow
def test_a_join_of_a_lake_larger_than_the_bound_takes_about_the_bound(
    store: FeatureStore, settings: Settings, tmp_path: Path
) -> None:
    """Three million events, joined at once and within 60 MB: the same answer, and a peak well below that of the whole."""
    rng = np.random.default_rng(1)
    for batch in range(10):
        EventLake(settings.lake_dir).append(many_views(rng, 300_000, batch), {0: batch + 1})
    path = tmp_path / "labels.parquet"
    users = pl.Series("user_id", np.arange(USERS)).cast(pl.String)
    end = pl.Series("event_timestamp", np.full(USERS, NOON + 600 * MINUTE)).cast(pl.Datetime("us", "UTC"))
    pl.DataFrame([users, end]).write_parquet(path)

    def join(memory_mb: float) -> list[float]:
        command = [sys.executable, "-c", _JOIN, str(settings.feature_repo), str(path), str(memory_mb)]
        done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT)
        answer: list[float] = json.loads(done.stdout.splitlines()[-1])
        return answer

    (whole, *expected), (bounded, *got) = join(100_000), join(60)
    print(f"peak above the start: {whole:.0f} MB at once, {bounded:.0f} MB in ranges of 60 MB")
    assert got == expected
    assert bounded < 0.7 * whole


def many_views(rng: np.random.Generator, count: int, batch: int) -> pa.Table:
    """A batch of view events within ten hours."""
    moments = pl.Series(NOON + rng.integers(0, 600 * MINUTE, count)).cast(pl.Datetime("us", "UTC"))
    frame = pl.DataFrame({"event_id": np.arange(batch * count, (batch + 1) * count)}).select(
        pl.col("event_id").cast(pl.String).str.zfill(36),
        type=pl.lit(names.VIEW),
        user_key=pl.Series(rng.integers(0, USERS, count)).cast(pl.String),
        item_id=pl.Series(rng.integers(0, USERS, count)).cast(pl.String),
        timestamp=moments,
        received_at=moments,
        ingested_at=moments,
        log_partition=0,
        log_position=batch + 1,
        log_index=pl.int_range(pl.len()),
    )
    table = frame.to_arrow()
    columns = [
        table[field.name].cast(field.type) if field.name in table.column_names else pa.nulls(count, field.type)
        for field in EVENT_SCHEMA
    ]
    return pa.Table.from_arrays(columns, schema=EVENT_SCHEMA)
