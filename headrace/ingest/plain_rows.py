"""Rows of the catalogue and of the profiles: as tables, cut to the rows that change something, and appended once."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

import polars as pl
import pyarrow as pa
from deltalake import DeltaTable
from deltalake.exceptions import TableNotFoundError

from headrace import names
from headrace.ingest.source import ItemRow, ProfileRow
from headrace.stores.lake import append_rows, scan_table

_TIME: Final = pa.timestamp("us", tz="UTC")
_TIMES: Final = [("event_timestamp", _TIME), ("created", _TIME)]
ITEM_SCHEMA: Final = pa.schema(
    [
        ("item_id", pa.string()),
        ("title", pa.string()),
        ("category", pa.string()),
        ("brand", pa.string()),
        ("price", pa.float64()),
        ("available", pa.bool_()),
        ("attributes", pa.list_(pa.string())),
        ("listed_at", pa.int64()),
        *_TIMES,
    ]
)
PROFILE_SCHEMA: Final = pa.schema(
    [
        ("user_id", pa.string()),
        ("country", pa.string()),
        ("age", pa.int64()),
        ("segment", pa.string()),
        *_TIMES,
    ]
)
_SCHEMAS: Final = {names.ITEMS_TABLE: ITEM_SCHEMA, names.PROFILES_TABLE: PROFILE_SCHEMA}
_BETWEEN: Final = "\x1f"  # which no identifier and no sensible text has
_KEYS: Final = {table: names.ITEM_ID for table in names.ITEM_TABLES.values()} | {names.PROFILES_TABLE: names.USER_ID}


def item_table(rows: Sequence[ItemRow], shift_us: int = 0) -> pa.Table:
    """Rows as ITEM_SCHEMA, moved by `shift_us`. History was created when it happened: `created` is that time."""
    moved = [row if row.listed_at is None else row._replace(listed_at=row.listed_at + shift_us) for row in rows]
    return _table(moved, ITEM_SCHEMA, shift_us)


def profile_table(rows: Sequence[ProfileRow], shift_us: int = 0) -> pa.Table:
    """Rows as PROFILE_SCHEMA, moved by `shift_us`."""
    return _table(rows, PROFILE_SCHEMA, shift_us)


def _table(rows: Sequence[NamedTuple], schema: pa.Schema, shift_us: int) -> pa.Table:
    columns = list(zip(*rows, strict=True)) or [()] * (len(schema) - 1)
    key, event_timestamp, *values = columns
    moved = pa.array([time + shift_us for time in event_timestamp], pa.int64()).cast(_TIME)
    arrays = [pa.array(column, kind.type) for column, kind in zip((key, *values), list(schema)[:-2], strict=True)]
    return pa.Table.from_arrays([*arrays, moved, moved], schema=schema)


def add_rows(lake_dir: Path, table: str, rows: pa.Table) -> int:
    """Append the rows that say something new; returns how many. The table is made even if there is nothing to append.

    Passed over are rows that the table holds already, and rows that repeat what it, or an earlier row of `rows`, says
    of their key at that time. Of several rows of one key and time the last counts.
    """
    key, values = rows.schema.names[0], rows.schema.names[1:-2]
    stored = stored_rows(lake_dir, table)
    held = _comparable(_frame(_SCHEMAS[table].empty_table() if stored is None else stored))
    given = _comparable(_frame(rows)).unique([key, "event_timestamp"], keep="last", maintain_order=True)
    unseen = given.join(held, on=[key, "event_timestamp", *values], how="anti", nulls_equal=True)
    history = pl.concat([held.with_columns(new=pl.lit(False)), unseen.with_columns(new=pl.lit(True))])
    history = history.sort(key, "event_timestamp", "created", "new", maintain_order=True)
    repeats = pl.all_horizontal(pl.col(value).eq_missing(pl.col(value).shift(1).over(key)) for value in values)
    kept = history.filter(pl.col("new") & (pl.col(key).is_first_distinct() | ~repeats)).sort("event_timestamp", key)
    if kept.height or stored is None:
        lists = [field.name for field in rows.schema if pa.types.is_list(field.type)]
        written = kept.select(rows.schema.names).with_columns(pl.col(lists).str.split(_BETWEEN))
        append_rows(lake_dir, table, written.to_arrow().cast(rows.schema))
    return kept.height


def _comparable(rows: pl.DataFrame) -> pl.DataFrame:
    """Lists as texts: no join compares lists. An empty list says as little as none."""
    lists = [name for name, kind in rows.schema.items() if isinstance(kind, pl.List)]
    texts = pl.col(lists).list.join(_BETWEEN)
    return rows.with_columns(pl.when(pl.col(lists).list.len() > 0).then(texts)) if lists else rows


def copy_tables(origin: Path, lake_dir: Path) -> None:
    """Copy the plain rows of one lake into another as they are, each once.

    Nothing that repeats what was said before is passed over: an item that is said to be there again after it was deleted is there.
    """
    for table, key in _KEYS.items():
        if not DeltaTable.is_deltatable(str(origin / table)):
            continue
        rows, into = scan_table(DeltaTable(str(origin / table))).collect(), str(lake_dir / table)
        if DeltaTable.is_deltatable(into):
            place = [key, "event_timestamp", "created"]
            rows = rows.join(
                scan_table(DeltaTable(into)).select(place).collect(), on=place, how="anti", nulls_equal=True
            )
        append_rows(lake_dir, table, rows.to_arrow())


def stored_rows(lake_dir: Path, table: str) -> pa.Table | None:
    """What the table holds, in its schema; None if there is no table."""
    try:
        delta = DeltaTable(str(lake_dir / table))
    except TableNotFoundError:
        return None
    schema = _SCHEMAS[table]
    return scan_table(delta).select(_known(delta, schema)).collect().to_arrow().cast(schema)


def _known(delta: DeltaTable, schema: pa.Schema) -> list[pl.Expr]:
    """The columns of the schema, null where a table of long ago lacks one."""
    there, kinds = {field.name for field in delta.schema().fields}, _frame(schema.empty_table()).schema
    return [pl.col(name) if name in there else pl.lit(None, kind).alias(name) for name, kind in kinds.items()]


def _frame(rows: pa.Table) -> pl.DataFrame:
    frame = pl.from_arrow(rows)
    assert isinstance(frame, pl.DataFrame)
    return frame
