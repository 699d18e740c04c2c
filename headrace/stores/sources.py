"""Feast's `FileSource`s as Polars reads them: Delta tables and Parquet, a source that does not exist yet as None.

A scan yields the newest write first; of rows that agree in keys, timestamp and created time the first scanned counts,
here as in Feast's own `materialize`.
"""

from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import DeltaTable
from deltalake.exceptions import TableNotFoundError
from feast.data_format import DeltaFormat, ParquetFormat
from feast.data_source import DataSource
from feast.infra.offline_stores.file_source import FileSource
from feast.repo_config import RepoConfig


class OfflineStoreError(ValueError):
    """A request that the store cannot answer: says what, and what to do instead."""


def scan(config: RepoConfig, source: DataSource) -> pl.LazyFrame | None:
    """A source's rows, newest write first; None where nothing has been written yet."""
    source = file_source(source)
    path = FileSource.get_uri_for_file_path(config.repo_path, source.path)
    if is_delta(source):
        table = delta_table(path)
        return None if table is None else pl.scan_delta(table)
    if Path(path).is_dir():
        files = sorted(Path(path).rglob("*.parquet"), reverse=True)
        return pl.scan_parquet(files, hive_partitioning=True) if files else None
    return pl.scan_parquet(path) if "://" in path or Path(path).exists() else None


def file_source(source: DataSource) -> FileSource:
    if not isinstance(source, FileSource):
        raise OfflineStoreError(
            f"source '{source.name}' is a {type(source).__name__}: use FileSource with Delta or Parquet"
        )
    if not isinstance(source.file_format, DeltaFormat | ParquetFormat | None):
        raise OfflineStoreError(
            f"source '{source.name}' is in {type(source.file_format).__name__}: use DeltaFormat or ParquetFormat"
        )
    return source


def is_delta(source: FileSource) -> bool:
    return isinstance(source.file_format, DeltaFormat)


def delta_table(path: str) -> DeltaTable | None:
    try:
        return DeltaTable(path)
    except TableNotFoundError:
        return None


def utc(schema: pl.Schema, column: str) -> pl.Expr:
    """A time column as Datetime[us, UTC]; naive times are UTC, as Feast has it."""
    kind = schema[column]
    expression = pl.col(column)
    if kind == pl.Date:
        expression, kind = expression.cast(pl.Datetime("us")), pl.Datetime("us")
    if not isinstance(kind, pl.Datetime):
        raise OfflineStoreError(f"column '{column}' is {kind}, not a time: store it as a timestamp")
    utc = expression.dt.replace_time_zone("UTC") if kind.time_zone is None else expression.dt.convert_time_zone("UTC")
    return utc.dt.cast_time_unit("us")


def write_parquet(table: pa.Table, path: Path) -> None:
    """Write beside and rename, so that no reader sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    pq.write_table(table, partial)
    partial.replace(path)
