"""A point-in-time join through Feast: our offline store against Feast's DuckDB store, and its file store on a tenth.

Each store answers `get_historical_features(...).to_arrow()` in a process of its own, over the same Parquet file, applied registry and
pandas entity frame; the clock runs over that call alone, the first of its process, what is loaded then included. The peak is the
process's. Answers are compared value by value.

    python -m benchmarks.pit_join [--rows 5000000] [--labels 1000000] [--no-file-store]
"""

import argparse
import sys
import tempfile
import warnings
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.children import run_child
from benchmarks.offline_side import COLUMNS, cells, compare, headline, report
from benchmarks.report import CONSOLE, publish

STORES: Final = {
    "ours": "headrace.stores.offline.PolarsOfflineStore",
    "duckdb": "duckdb",
    "file": "file",
}
FEATURES: Final = tuple(f"feature_{number}" for number in range(10))
ROWS_PER_DRIVER: Final = 50
START_US: Final = 1_700_006_400_000_000
SPAN_US: Final = 30 * 86_400_000_000


def main() -> None:
    options = _options()
    if options.child:
        _child(options.child, Path(options.directory))
        return
    with tempfile.TemporaryDirectory(prefix="pit_join_") as folder:
        whole, tenth = Path(folder) / "whole", Path(folder) / "tenth"
        for directory, share in ((whole, 1), (tenth, 10)):
            _generate(directory, options.rows // share, options.labels // share)
        compiled = run_child("pit_join", "ours", tenth)["seconds"]
        ours, arrow = run_child("pit_join", "ours", whole), run_child("pit_join", "ours", whole, "--arrow")
        duckdb = run_child("pit_join", "duckdb", whole)
        compare(whole / "ours.parquet", whole / "duckdb.parquet")
        stores = {"ours": ours, "ours, Arrow in": arrow, "duckdb": duckdb}
        if not options.no_file_store:
            stores |= {
                "file (a tenth)": run_child("pit_join", "file", tenth),
                "ours (a tenth)": run_child("pit_join", "ours", tenth),
            }
            came_back = compare(tenth / "ours.parquet", tenth / "file.parquet")
            CONSOLE.print(f"file returned {came_back:,} of {options.labels // 10:,} rows")
    _publish(options, stores, compiled)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rows", type=int, default=5_000_000, help="feature rows")
    parser.add_argument("--labels", type=int, default=1_000_000, help="label rows")
    parser.add_argument("--no-file-store", action="store_true", help="leave out Feast's file store")
    parser.add_argument("--child", choices=STORES, help=argparse.SUPPRESS)
    parser.add_argument("--directory", help=argparse.SUPPRESS)
    parser.add_argument("--arrow", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def _generate(directory: Path, rows: int, labels: int) -> None:
    """A feature table written in the order of time, labels in none; 1% of them name a driver that has no row."""
    directory.mkdir()
    rng = np.random.default_rng(7)
    drivers = max(1, rows // ROWS_PER_DRIVER)
    times = np.sort(rng.integers(START_US, START_US + SPAN_US, rows))
    table: dict[str, Any] = {
        "driver_id": rng.integers(0, drivers, rows),
        "event_timestamp": pa.array(times).cast(pa.timestamp("us", "UTC")),
        "created": pa.array(times + rng.integers(0, 60_000_000, rows)).cast(pa.timestamp("us", "UTC")),
    }
    for number, name in enumerate(FEATURES):
        table[name] = rng.random(rows) if number < 8 else rng.integers(0, 1_000, rows)
    pq.write_table(pa.table(table), directory / "features.parquet")
    asked = {
        "driver_id": rng.integers(0, round(drivers * 1.01), labels),
        "event_timestamp": pa.array(rng.integers(START_US, START_US + SPAN_US, labels)).cast(pa.timestamp("us", "UTC")),
        "label": np.arange(labels),
    }
    pq.write_table(pa.table(asked), directory / "labels.parquet")


def _child(store: str, directory: Path) -> None:
    warnings.simplefilter("ignore")
    feature_store = _open(store, directory)
    labels = pq.read_table(directory / "labels.parquet")
    entity_df: Any = labels if "--arrow" in sys.argv else labels.to_pandas()
    report(
        lambda: feature_store.get_historical_features(entity_df, [f"drivers:{name}" for name in FEATURES]).to_arrow(),
        directory / f"{store}.parquet",
        FEATURES,
        again=store == "ours",
    )


def _open(kind: str, directory: Path) -> Any:
    from feast import Entity, FeatureStore, FeatureView, Field, FileSource, RepoConfig, ValueType
    from feast.repo_config import RegistryConfig
    from feast.types import Float64, Int64

    config = RepoConfig(
        project="pit",
        provider="local",
        registry=RegistryConfig(path=str(directory / f"{kind}.db")),
        online_store={"type": "sqlite", "path": str(directory / "online.db")},
        offline_store={"type": STORES[kind]},
        entity_key_serialization_version=3,
        repo_path=directory,
    )
    store = FeatureStore(config=config)
    driver = Entity(name="driver", join_keys=["driver_id"], value_type=ValueType.INT64)
    source = FileSource(
        name="rows",
        path=str(directory / "features.parquet"),
        timestamp_field="event_timestamp",
        created_timestamp_column="created",
    )
    schema = [Field(name=name, dtype=Float64 if n < 8 else Int64) for n, name in enumerate(FEATURES)]
    view = FeatureView(name="drivers", entities=[driver], ttl=timedelta(days=60), schema=schema, source=source)
    store.apply([driver, view])
    return store


def _publish(options: argparse.Namespace, stores: dict[str, dict[str, Any]], compiled: float) -> None:
    result = headline(stores["ours"], stores["duckdb"]) | {
        "feature_rows": options.rows,
        "label_rows": options.labels,
        "features": len(FEATURES),
        "first_run_seconds": compiled,
        "stores": stores,
    }
    publish("pit_join", COLUMNS, cells(stores), result)


if __name__ == "__main__":
    main()
