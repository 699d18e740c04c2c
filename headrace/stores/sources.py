"""Feast's `FileSource`s as Polars reads them: Delta tables and Parquet, a source that does not exist yet as None.

A scan yields the newest write first; of rows that agree in keys, timestamp and created time the first scanned counts,
here as in Feast's own `materialize`.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from urllib.parse import unquote

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError, TableNotFoundError
from feast.data_format import DeltaFormat, ParquetFormat
from feast.data_source import DataSource
from feast.infra.offline_stores.file_source import FileSource
from feast.repo_config import RepoConfig

from headrace.stores.lake import scan_table
from headrace.stores.lake_files import DamagedLakeError, check_files, check_parquet


class OfflineStoreError(ValueError):
    """A request that the store cannot answer: says what, and what to do instead."""


@dataclass(frozen=True)
class Source:
    """The rows of a source at one moment: what is written to it later is not seen."""

    name: str
    """For messages: who asked, and where the source lies."""
    rows: pl.LazyFrame
    files: tuple[str, ...]
    count: Callable[[], int]
    """Number of rows, without reading them."""

    @cached_property
    def schema(self) -> pl.Schema:
        with self.reading():
            return self.rows.collect_schema()

    def column(self, name: str, what: str) -> pl.Expr:
        """A column that must be there; `what` says what for."""
        if name not in self.schema:
            raise OfflineStoreError(
                f"{self.name} has no column '{name}' ({what}); it has {', '.join(self.schema.names())}: "
                "correct the definition, or write the source with that column"
            )
        return pl.col(name)

    def time(self, name: str, what: str) -> pl.Expr:
        """A time column as Datetime[us, UTC]; naive times are UTC, as Feast has it."""
        expression, kind = self.column(name, what), self.schema[name]
        if not isinstance(kind, pl.Datetime | pl.Date):
            raise OfflineStoreError(
                f"{self.name}: column '{name}' ({what}) is {kind}, not a time: store it as a timestamp"
            )
        return utc(expression, kind)

    def collect(self, rows: pl.LazyFrame) -> pl.DataFrame:
        with self.reading():
            return rows.collect(engine="streaming")

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Says which file is at fault where the rows cannot be read."""
        try:
            yield
        except (pl.exceptions.ComputeError, pl.exceptions.PanicException, OSError) as error:
            found = _damage(self.files) or str(error).splitlines()[0]
            raise OfflineStoreError(
                f"{self.name} cannot be read: {found}. Put the file back from a copy; a Delta table can also be taken back "
                "to a version before the damage with DeltaTable.restore"
            ) from error


def open_source(config: RepoConfig, source: DataSource, reader: str) -> Source | None:
    """A source as it stands now; None where nothing has been written yet. `reader` says for whom, as in "view 'x'"."""
    source = file_source(source)
    path = source_path(config, source)
    name = f"{reader}: source '{source.name}' ({path})"
    if is_delta(source):
        table = delta_table(path, name)
        return None if table is None else _delta(table, name)
    if "://" in path:
        return _parquet(name, (path,), pl.scan_parquet(path))
    place = Path(path)
    found = [place] if place.is_file() else [file for file in place.rglob("*.parquet") if file.is_file()]
    files = sorted(found, reverse=True)  # the newest write first
    with _whole(name):
        check_parquet(files)
    if not files:
        return None
    return _parquet(name, tuple(map(str, files)), pl.scan_parquet(files, hive_partitioning=place.is_dir()))


def _parquet(name: str, files: tuple[str, ...], rows: pl.LazyFrame) -> Source:
    return Source(name, rows, files, lambda: _length(rows))


def _delta(table: DeltaTable, name: str) -> Source:
    """Raises OfflineStoreError where a file is missing or not as long as the table's log says."""
    with _whole(name):
        check_files(table)
    files = tuple(unquote(uri.removeprefix("file://")) for uri in table.file_uris())
    rows = scan_table(table)
    counts = pl.Series(pa.table(table.get_add_actions())["num_records"])
    return Source(name, rows, files, lambda: _length(rows) if counts.null_count() else int(counts.sum()))


@contextmanager
def _whole(name: str) -> Iterator[None]:
    """Says of which source a file is damaged."""
    try:
        yield
    except (DamagedLakeError, OSError) as error:
        raise OfflineStoreError(f"{name} is damaged: {error}") from error


def _length(rows: pl.LazyFrame) -> int:
    return int(rows.select(pl.len()).collect().item())


def _damage(files: Iterable[str]) -> str | None:
    """The first file that cannot be read whole. Reads them all: for when something has failed."""
    for file in files:
        try:
            with pq.ParquetFile(file) as parquet:
                for _ in parquet.iter_batches():
                    pass
        except FileNotFoundError:
            return f"{file} is missing"
        except (pa.ArrowException, OSError) as error:
            return f"{file} is damaged ({str(error).splitlines()[0]})"
    return None


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


def source_path(config: RepoConfig, source: FileSource) -> str:
    return str(FileSource.get_uri_for_file_path(config.repo_path, source.path))


def is_delta(source: FileSource) -> bool:
    return isinstance(source.file_format, DeltaFormat)


def delta_table(path: str, name: str) -> DeltaTable | None:
    """The current version; None before the first write."""
    try:
        return DeltaTable(path)
    except TableNotFoundError:
        return None
    except DeltaError as error:
        raise OfflineStoreError(
            f"{name}: its Delta log cannot be read ({str(error).splitlines()[0]}): put _delta_log back from a copy"
        ) from error


def utc(expression: pl.Expr, kind: pl.DataType) -> pl.Expr:
    """A Date or Datetime as Datetime[us, UTC]; naive times are UTC."""
    if kind == pl.Date:
        return expression.cast(pl.Datetime("us")).dt.replace_time_zone("UTC")
    assert isinstance(kind, pl.Datetime)
    zoned = expression.dt.replace_time_zone("UTC") if kind.time_zone is None else expression.dt.convert_time_zone("UTC")
    return zoned.dt.cast_time_unit("us")


def write_parquet(batches: Iterable[pa.Table], path: Path) -> None:
    """Write beside and rename, so that no reader sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    tables = iter(batches)
    first = next(tables)
    with pq.ParquetWriter(partial, first.schema) as writer:
        writer.write_table(first)
        for table in tables:
            writer.write_table(table)
    partial.replace(path)
