"""The baseline of `asof_aggregates`: the best SQL that we could write for DuckDB.

It does no row-by-row work either: cumulative counts by window functions, and an ASOF join for each edge of a window.
"""

from pathlib import Path
from typing import Final

import pyarrow as pa
from deltalake import DeltaTable

from headrace import names

_MINUTE_US: Final = 60_000_000
COUNTED: Final = {
    "views": names.VIEW,
    "clicks": names.CLICK,
    "carts": names.ADD_TO_CART,
    "purchases": names.PURCHASE,
}
WINDOWS: Final = {"10m": (10, 1), "1h": (60, 5), "1d": (1_440, 60), "7d": (10_080, 360)}
"""Minutes of each window and of its hop."""
GAP_US: Final = 30 * _MINUTE_US
HORIZON_US: Final = 1_440 * _MINUTE_US


def asof_sql(directory: Path) -> pa.Table:
    """The counts and the session for each label row, from the same files of the lake."""
    import duckdb

    files = [
        uri.removeprefix("file://") for uri in DeltaTable(directory / "var" / "lake" / names.EVENTS_TABLE).file_uris()
    ]
    connection = duckdb.connect()
    connection.execute(
        f"""CREATE VIEW events AS SELECT user_key, type, epoch_us(timestamp) AS ts, epoch_us(received_at) AS received
        FROM read_parquet({files})"""
    )
    connection.execute(
        f"""CREATE VIEW labels AS SELECT user_id, label, epoch_us(event_timestamp) AS t
        FROM read_parquet('{directory / "labels.parquet"}')"""
    )
    return connection.sql(_query()).to_arrow_table()


def _query() -> str:
    running = ", ".join(f"count(*) FILTER (type = '{kind}') OVER seen AS {plural}" for plural, kind in COUNTED.items())
    starts, joins, counts = [], [], []
    for label, minutes in WINDOWS.items():
        window, hop = (each * _MINUTE_US for each in minutes)
        starts.append(f"(t - {window}) // {hop} * {hop} AS start_{label}")
        joins.append(
            f"ASOF LEFT JOIN cumulative w{label} ON l.user_id = w{label}.user_key AND l.start_{label} > w{label}.ts"
        )
        counts += [f"coalesce(now.{each}, 0) - coalesce(w{label}.{each}, 0) AS {each}_{label}" for each in COUNTED]
    return f"""
        WITH cumulative AS MATERIALIZED (
            SELECT DISTINCT ON (user_key, ts) user_key, ts, {running} FROM events
            WINDOW seen AS (PARTITION BY user_key ORDER BY ts)
        ),
        numbered AS (
            SELECT user_key, ts, sum(CASE WHEN gap > {GAP_US} THEN 1 ELSE 0 END) OVER mine AS number
            FROM (
                SELECT user_key, ts, ts - lag(ts) OVER (PARTITION BY user_key ORDER BY ts) AS gap
                FROM events WHERE received - ts <= {HORIZON_US}
            )
            WINDOW mine AS (PARTITION BY user_key ORDER BY ts)
        ),
        sessions AS MATERIALIZED (
            SELECT DISTINCT ON (user_key, ts) user_key, ts, count(*) OVER mine AS size, min(ts) OVER mine AS begin
            FROM numbered WINDOW mine AS (PARTITION BY user_key, number ORDER BY ts)
        ),
        l AS (SELECT user_id, label, t, {", ".join(starts)} FROM labels)
        SELECT l.label, {", ".join(counts)},
            CASE WHEN l.t - s.ts <= {GAP_US} THEN s.size ELSE 0 END AS session_count,
            CASE WHEN l.t - s.ts <= {GAP_US} THEN (s.ts - s.begin) / 1e6 ELSE 0 END AS session_seconds
        FROM l ASOF LEFT JOIN cumulative now ON l.user_id = now.user_key AND l.t > now.ts
        {" ".join(joins)}
        ASOF LEFT JOIN sessions s ON l.user_id = s.user_key AND l.t > s.ts
        """
