"""Windowed features of the past: `get_historical_features` over the event lake, against the best SQL we could write for DuckDB.

Asked for: the 16 counts and the session of the default `user_activity` view, for label rows all over a month of events. The lake is
written as the flow writes it (appends of 50,000 events, a tenth late, then compaction); reading and sorting it is inside the clock.
Every case runs in a process of its own. The baseline needs no row-by-row work either: cumulative counts by window functions and an
ASOF join for each edge of a window; a plain range join is shown on a share of the rows. All values are compared.

    python -m benchmarks.asof_aggregates [--events 5000000] [--labels 1000000] [--range-labels 20000]
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import DeltaTable

from benchmarks.children import peak_mb, run_child
from benchmarks.report import CONSOLE, publish
from headrace import names
from headrace.events import EVENT_SCHEMA
from headrace.settings import Settings
from headrace.stores.lake import EventLake

USERS: Final = 20_000
ITEMS: Final = 5_000
APPEND_ROWS: Final = 50_000
START_US: Final = 1_700_006_400_000_000
MINUTE_US: Final = 60_000_000
DAYS: Final = 30
TYPES: Final = (names.VIEW, names.CLICK, names.ADD_TO_CART, names.PURCHASE, names.LIKE)
SHARES: Final = (0.60, 0.25, 0.08, 0.04, 0.03)
COUNTED: Final = dict(zip(("views", "clicks", "carts", "purchases"), TYPES, strict=False))
WINDOWS: Final = {"10m": (10, 1), "1h": (60, 5), "1d": (1_440, 60), "7d": (10_080, 360)}
"""Minutes of each window and of its hop."""
COUNTS: Final = tuple(f"{plural}_{window}" for plural in COUNTED for window in WINDOWS)
SESSIONS: Final = ("session_count", "session_seconds")
LISTS: Final = ("recent_items", "recent_types", "recent_times")


def main() -> None:
    options = _options()
    if options.child:
        CASES[options.child](Path(options.directory), options.range_labels)
        return
    with tempfile.TemporaryDirectory(prefix="asof_") as folder:
        directory = Path(folder)
        _generate(directory, options.events, options.labels)
        for small in ("windows", "lists"):
            _run(small, directory, options, "--first", "1000")  # compiles what this machine has not compiled yet
        cases = {case: _run(case, directory, options) for case in CASES}
        for baseline in ("asof_sql", "range_sql"):
            _compare(directory, baseline)
    _publish(options, cases)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--events", type=int, default=5_000_000)
    parser.add_argument("--labels", type=int, default=1_000_000, help="label rows")
    parser.add_argument("--range-labels", type=int, default=20_000, help="label rows of the plain range join")
    parser.add_argument("--child", choices=CASES, help=argparse.SUPPRESS)
    parser.add_argument("--directory", help=argparse.SUPPRESS)
    parser.add_argument("--first", type=int, help=argparse.SUPPRESS)
    return parser.parse_args()


def _generate(directory: Path, count: int, labels: int) -> None:
    """A lake of `count` events of user-made types and an applied feature repository; labels in no order."""
    rng = np.random.default_rng(3)
    CONSOLE.print(f"writing a lake of {count:,} events")
    times = np.sort(rng.integers(START_US, START_US + DAYS * 1_440 * MINUTE_US, count))
    late = rng.random(count) < 0.1
    times = times - np.where(late, rng.integers(0, 60 * MINUTE_US, count), 0)
    received = times + np.where(late, rng.integers(0, 60 * MINUTE_US, count), rng.integers(0, 2_000_000, count))
    users, items = _pareto(rng, USERS, count), _pareto(rng, ITEMS, count)
    types = rng.choice(len(TYPES), count, p=SHARES)
    ids = rng.integers(0, 2**62, count)
    lake = EventLake(directory / "var" / "lake")
    for start in range(0, count, APPEND_ROWS):
        rows = slice(start, min(count, start + APPEND_ROWS))
        position = start // APPEND_ROWS + 1
        batch = pl.DataFrame(
            {
                "event_id": pl.Series(ids[rows]).cast(pl.String)
                + pl.Series(np.arange(start, rows.stop)).cast(pl.String),
                "type": pl.Series(TYPES).gather(types[rows]),
                "user_key": _named("user", users[rows]),
                "user_id": _named("user", users[rows]),
                "item_id": _named("item", items[rows]),
                "timestamp": _moments(times[rows]),
                "received_at": _moments(received[rows]),
                "ingested_at": _moments(received[rows]),
                "price": items[rows] % 97 * 0.5,
                "quantity": np.ones(rows.stop - start, np.int64),
                "log_position": np.full(rows.stop - start, position),
            }
        ).with_columns(schema_version=1, log_partition=0, log_index=pl.int_range(pl.len()))
        lake.append(_as_events(batch), {0: position})
    lake.compact()
    asked = pl.DataFrame(
        {
            "user_id": _named("user", _pareto(rng, USERS, labels)),
            "event_timestamp": _moments(rng.integers(START_US, START_US + DAYS * 1_440 * MINUTE_US, labels)),
            "label": np.arange(labels),
        }
    )
    asked.write_parquet(directory / "labels.parquet")
    repo = Path(__file__).parents[1] / "feature_repo"
    feast = Path(sys.executable).parent / "feast"
    environment = os.environ | {"HEADRACE_DATA": str(directory / "var")}
    (directory / "feature_repo").mkdir()
    for file in ("features.py", "feature_store.yaml"):
        (directory / "feature_repo" / file).write_text((repo / file).read_text())
    command = [str(feast), "--chdir", str(directory / "feature_repo"), "apply"]
    subprocess.run(command, check=True, env=environment, capture_output=True)


def _pareto(rng: np.random.Generator, kinds: int, count: int) -> Any:
    weights = 1 / np.arange(1, kinds + 1) ** 0.8
    return rng.choice(kinds, count, p=weights / weights.sum())


def _named(kind: str, numbers: Any) -> pl.Series:
    return pl.select(pl.format(f"{kind}-{{}}", pl.lit(pl.Series(numbers)).cast(pl.String).str.zfill(6))).to_series()


def _moments(micros: Any) -> pl.Series:
    return pl.Series(micros).cast(pl.Datetime("us", "UTC"))


def _as_events(batch: pl.DataFrame) -> pa.Table:
    table = batch.to_arrow()
    columns = [
        table[field.name].cast(field.type) if field.name in table.column_names else pa.nulls(len(table), field.type)
        for field in EVENT_SCHEMA
    ]
    return pa.Table.from_arrays(columns, schema=EVENT_SCHEMA)


def _run(case: str, directory: Path, options: argparse.Namespace, *flags: str) -> dict[str, Any]:
    return run_child("asof_aggregates", case, directory, "--range-labels", str(options.range_labels), *flags)


def _windows(directory: Path, _: int) -> None:
    _ours(directory, "windows", (*COUNTS, *SESSIONS))


def _lists(directory: Path, _: int) -> None:
    _ours(directory, "lists", LISTS)


def _ours(directory: Path, case: str, features: tuple[str, ...]) -> None:
    from headrace.stores.feature_store import open_feature_store

    warnings.simplefilter("ignore")
    first = _options().first
    os.environ["HEADRACE_DATA"] = str(directory / "var")
    store = open_feature_store(Settings(feature_repo=directory / "feature_repo"))
    labels = pq.read_table(directory / "labels.parquet").slice(0, first)

    def answer() -> pa.Table:
        return store.get_historical_features(labels, [f"user_activity:{name}" for name in features]).to_arrow()

    _measure(directory, case, answer, keep=case == "windows" and not first)


def _measure(directory: Path, case: str, answer: Callable[[], pa.Table], keep: bool = True) -> None:
    before = peak_mb()
    start, cpu = time.perf_counter(), time.process_time()
    table = answer()
    seconds, cpu_s = time.perf_counter() - start, time.process_time() - cpu
    peak = peak_mb()
    if keep:
        pq.write_table(table.select(["label", *COUNTS, *SESSIONS]), directory / f"{case}.parquet")
    rows, answer_mb = table.num_rows, table.nbytes / 2**20
    print(
        json.dumps(
            {
                "rows": rows,
                "seconds": seconds,
                "cpu_s": cpu_s,
                "rows_per_s": rows / seconds,
                "peak_mb": peak,
                "before_mb": before,
                "answer_mb": answer_mb,
            }
        )
    )


def _asof_sql(directory: Path, _: int) -> None:
    """Cumulative counts of each type, and the row of them that is current at each edge of a window."""
    edges = {label: _window_start(label) for label in WINDOWS}
    counts = ", ".join(
        f"coalesce(now.{plural}, 0) - coalesce(w{label}.{plural}, 0) AS {plural}_{label}"
        for plural in COUNTED
        for label in WINDOWS
    )
    joins = " ".join(
        f"ASOF LEFT JOIN cumulative w{label} ON l.user_id = w{label}.user_key AND l.start_{label} > w{label}.ts"
        for label in WINDOWS
    )
    starts = ", ".join(f"{start} AS start_{label}" for label, start in edges.items())
    running = ", ".join(f"count(*) FILTER (type = '{kind}') OVER seen AS {plural}" for plural, kind in COUNTED.items())
    _sql(
        directory,
        "asof_sql",
        f"""
        WITH cumulative AS MATERIALIZED (
            SELECT DISTINCT ON (user_key, ts) user_key, ts, {running} FROM events
            WINDOW seen AS (PARTITION BY user_key ORDER BY ts)
        ),
        {_SESSIONS_SQL},
        l AS (SELECT user_id, label, t, {starts} FROM labels)
        SELECT l.label, {counts}, {_OPEN_SESSION_SQL}
        FROM l ASOF LEFT JOIN cumulative now ON l.user_id = now.user_key AND l.t > now.ts
        {joins}
        ASOF LEFT JOIN sessions s ON l.user_id = s.user_key AND l.t > s.ts
        """,
        None,
    )


def _range_sql(directory: Path, labels: int) -> None:
    """What one would write first: all events of the longest window joined to each label, counted by FILTER."""
    counts = ", ".join(
        f"count(*) FILTER (e.type = '{kind}' AND e.ts >= {_window_start(label)}) AS {plural}_{label}"
        for plural, kind in COUNTED.items()
        for label in WINDOWS
    )
    _sql(
        directory,
        "range_sql",
        f"""
        WITH {_SESSIONS_SQL},
        counted AS (
            SELECT l.label, l.user_id, l.t, {counts}
            FROM labels l LEFT JOIN events e ON e.user_key = l.user_id AND e.ts < l.t AND e.ts >= {_window_start("7d")}
            GROUP BY l.label, l.user_id, l.t
        )
        SELECT l.* EXCLUDE (user_id, t), {_OPEN_SESSION_SQL}
        FROM counted l ASOF LEFT JOIN sessions s ON l.user_id = s.user_key AND l.t > s.ts
        """,
        labels,
    )


_SESSIONS_SQL: Final = f"""
    numbered AS (
        SELECT user_key, ts, sum(CASE WHEN gap > {30 * MINUTE_US} THEN 1 ELSE 0 END) OVER mine AS number
        FROM (
            SELECT user_key, ts, ts - lag(ts) OVER (PARTITION BY user_key ORDER BY ts) AS gap
            FROM events WHERE received - ts <= {1_440 * MINUTE_US}
        )
        WINDOW mine AS (PARTITION BY user_key ORDER BY ts)
    ),
    sessions AS MATERIALIZED (
        SELECT DISTINCT ON (user_key, ts) user_key, ts, count(*) OVER mine AS size, min(ts) OVER mine AS begin
        FROM numbered WINDOW mine AS (PARTITION BY user_key, number ORDER BY ts)
    )"""
_OPEN_SESSION_SQL: Final = f"""
    CASE WHEN l.t - s.ts <= {30 * MINUTE_US} THEN s.size ELSE 0 END AS session_count,
    CASE WHEN l.t - s.ts <= {30 * MINUTE_US} THEN (s.ts - s.begin) / 1e6 ELSE 0 END AS session_seconds"""


def _window_start(label: str) -> str:
    window, hop = (minutes * MINUTE_US for minutes in WINDOWS[label])
    return f"((t - {window}) // {hop} * {hop})"


def _sql(directory: Path, case: str, query: str, limit: int | None) -> None:
    import duckdb

    files = DeltaTable(str(directory / "var" / "lake" / names.EVENTS_TABLE)).file_uris()
    connection = duckdb.connect()
    connection.execute(
        f"""CREATE VIEW events AS SELECT user_key, type, epoch_us(timestamp) AS ts, epoch_us(received_at) AS received
        FROM read_parquet({[file.removeprefix("file://") for file in files]})"""
    )
    connection.execute(
        f"""CREATE VIEW labels AS SELECT user_id, label, epoch_us(event_timestamp) AS t
        FROM read_parquet('{directory / "labels.parquet"}') {"LIMIT " + str(limit) if limit else ""}"""
    )
    _measure(directory, case, lambda: connection.sql(query).to_arrow_table())


def _compare(directory: Path, case: str) -> None:
    columns = ["label", *COUNTS, *SESSIONS]
    theirs, ours = (
        pl.read_parquet(directory / f"{name}.parquet", columns=columns)
        .select(pl.col("label", *COUNTS, SESSIONS[0]).cast(pl.Int64), pl.col(SESSIONS[1]).cast(pl.Float64))
        .sort("label")
        for name in (case, "windows")
    )
    if not ours.join(theirs.select("label"), on="label", how="semi", maintain_order="left").equals(theirs):
        raise SystemExit(f"{case} and ours differ")


def _publish(options: argparse.Namespace, cases: dict[str, dict[str, Any]]) -> None:
    ours, baseline = cases["windows"], cases["asof_sql"]
    table = [
        (
            name,
            one["rows"],
            one["rows_per_s"],
            one["seconds"],
            one["cpu_s"],
            one["peak_mb"],
            one["before_mb"],
            one["answer_mb"],
        )
        for name, one in cases.items()
    ]
    result = {
        "rows_per_s": ours["rows_per_s"],
        "baseline_rows_per_s": baseline["rows_per_s"],
        "ratio": ours["rows_per_s"] / baseline["rows_per_s"],
        "peak_mb": ours["peak_mb"],
        "baseline_peak_mb": baseline["peak_mb"],
        "events": options.events,
        "label_rows": options.labels,
        "features": len(COUNTS) + len(SESSIONS),
        "cpu_ratio": baseline["cpu_s"] / ours["cpu_s"],
        "range_join_ratio": ours["rows_per_s"] / cases["range_sql"]["rows_per_s"],
        "last_n_rows_per_s": cases["lists"]["rows_per_s"],
        "cases": cases,
    }
    publish(
        "asof_aggregates",
        ["case", "label rows", "rows/s", "s", "CPU s", "peak MB", "MB before", "answer MB"],
        table,
        result,
    )


CASES: Final = {"windows": _windows, "lists": _lists, "asof_sql": _asof_sql, "range_sql": _range_sql}


if __name__ == "__main__":
    main()
