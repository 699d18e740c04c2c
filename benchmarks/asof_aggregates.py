"""Windowed features of the past: `get_historical_features` over the event lake, against the best SQL we could write for DuckDB.

Asked for: the 16 counts and the session of the default `user_activity` view, for label rows all over a month of events; apart
from them, its lists of the last 50. Reading and sorting the lake is inside the clock, and so is what a process loads at its first
call. Every case runs in a process of its own; all values are compared. What is held of the lake at a time is bounded by the
store's `memory_mb`: for a tenth of the label rows, so that the events outweigh the answer, the lake is read at once and within a
bound, which must answer the same.

    python -m benchmarks.asof_aggregates [--events 5000000] [--labels 1000000] [--memory-mb 50]
"""

import argparse
import os
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.asof_lake import generate
from benchmarks.asof_sql import COUNTED, WINDOWS, asof_sql
from benchmarks.children import run_child
from benchmarks.offline_side import COLUMNS, cells, compare, headline, report
from benchmarks.report import CONSOLE, publish

FEATURES: Final = (*[f"{each}_{window}" for each in COUNTED for window in WINDOWS], "session_count", "session_seconds")
LISTS: Final = ("recent_items", "recent_types", "recent_times")
COMPILED: Final = 1_000
"""Label rows of a call beforehand, which compiles what this machine has not compiled yet."""


def main() -> None:
    options = _options()
    if options.child:
        CASES[options.child](options, Path(options.directory))
        return
    with tempfile.TemporaryDirectory(prefix="asof_") as folder:
        directory = Path(folder)
        CONSOLE.print(f"writing a lake of {options.events:,} events")
        generate(directory, options.events, options.labels)
        for case in ("windows", "lists"):
            run_child("asof_aggregates", case, directory, "--first", str(COMPILED))
        flags = ("--labels", str(options.labels), "--memory-mb", str(options.memory_mb))
        cases = {case: run_child("asof_aggregates", case, directory, *flags) for case in CASES}
        for other in ("tenth", "bounded", "asof_sql"):
            compared = compare(directory / "windows.parquet", directory / f"{other}.parquet")
            assert compared == cases[other]["rows"]
    _publish(options, cases)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--events", type=int, default=5_000_000)
    parser.add_argument("--labels", type=int, default=1_000_000, help="label rows")
    parser.add_argument("--memory-mb", type=float, default=50, help="of events held at a time, in the bounded case")
    parser.add_argument("--child", choices=CASES, help=argparse.SUPPRESS)
    parser.add_argument("--directory", help=argparse.SUPPRESS)
    parser.add_argument("--first", type=int, help=argparse.SUPPRESS)
    return parser.parse_args()


def _windows(options: argparse.Namespace, directory: Path) -> None:
    _ours(directory, "windows", FEATURES, options.first)


def _tenth(options: argparse.Namespace, directory: Path) -> None:
    _ours(directory, "tenth", FEATURES, options.labels // 10)


def _bounded(options: argparse.Namespace, directory: Path) -> None:
    _ours(directory, "bounded", FEATURES, options.labels // 10, options.memory_mb)


def _lists(options: argparse.Namespace, directory: Path) -> None:
    _ours(directory, "lists", LISTS, options.first)


def _ours(
    directory: Path, case: str, features: tuple[str, ...], first: int | None, memory_mb: float | None = None
) -> None:
    """The `first` label rows, or all."""
    from headrace.settings import Settings
    from headrace.stores.feature_store import open_feature_store

    warnings.simplefilter("ignore")
    os.environ["HEADRACE_DATA"] = str(directory / "var")
    store = open_feature_store(Settings(feature_repo=directory / "feature_repo"))
    store.config.offline_store.memory_mb = memory_mb
    labels = pq.read_table(directory / "labels.parquet").slice(0, first)

    def answer() -> pa.Table:
        return store.get_historical_features(labels, [f"user_activity:{name}" for name in features]).to_arrow()

    report(answer, directory / f"{case}.parquet" if features == FEATURES else None, features, again=True)


def _asof_sql(_: argparse.Namespace, directory: Path) -> None:
    report(lambda: asof_sql(directory), directory / "asof_sql.parquet", FEATURES)


def _publish(options: argparse.Namespace, cases: dict[str, dict[str, Any]]) -> None:
    result = headline(cases["windows"], cases["asof_sql"]) | {
        "events": options.events,
        "label_rows": options.labels,
        "features": len(FEATURES),
        "last_n_rows_per_s": cases["lists"]["rows_per_s"],
        "bounded_memory_mb": options.memory_mb,
        "tenth_peak_mb": cases["tenth"]["peak_mb"],
        "bounded_peak_mb": cases["bounded"]["peak_mb"],
        "cases": cases,
    }
    publish("asof_aggregates", COLUMNS, cells(cases), result)


CASES: Final[dict[str, Callable[[argparse.Namespace, Path], None]]] = {
    "windows": _windows,
    "tenth": _tenth,
    "bounded": _bounded,
    "lists": _lists,
    "asof_sql": _asof_sql,
}


if __name__ == "__main__":
    main()
