"""Whether the files of a table are whole. A Parquet file cut short makes its reader panic, or worse: look before reading."""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import DeltaTable

_READ_ERRORS = (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError)
_MARK = b"PAR1"
_TAIL_BYTES = 8
"""Length of the footer, and the mark."""


class DamagedLakeError(RuntimeError):
    """A file of the lake cannot be read."""


def check_files(table: DeltaTable | None) -> None:
    """Raises DamagedLakeError naming the first file that is missing or of another size than when it was written."""
    for path, size in _local_files(table):
        found = path.stat().st_size if path.exists() else None
        if found != size:
            what = "is missing" if found is None else f"has {found} bytes, it was written with {size}"
            raise DamagedLakeError(f"{path} {what}: restore it from a copy, or the lake to an earlier version")


def check_parquet(paths: Iterable[Path]) -> None:
    """Raises DamagedLakeError naming the first file that does not end as a Parquet file does: with its footer, and a mark."""
    for path in paths:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _TAIL_BYTES))
            tail = file.read()
        if not tail.endswith(_MARK) or int.from_bytes(tail[:4], "little") + _TAIL_BYTES + len(_MARK) > size:
            raise DamagedLakeError(
                f"{path} was cut short, or is no Parquet file ({size} bytes, without a footer): restore it from a copy, or write it again"
            )


@contextmanager
def reading(table: DeltaTable | None) -> Iterator[None]:
    """Inside, a failed read of the table becomes a DamagedLakeError that names the file."""
    try:
        yield
    except _READ_ERRORS as error:
        path = next((path for path, _ in _local_files(table) if not _is_readable(path)), None)
        what = f"{path} cannot be read" if path else "the lake cannot be read"
        raise DamagedLakeError(f"{what}: {str(error).splitlines()[0]}; restore it from a copy") from error


def _local_files(table: DeltaTable | None) -> Iterator[tuple[Path, int]]:
    """Files and their sizes as the table's log has them; none for a table on an object store, which is whole or absent."""
    if table is None or "://" in table.table_uri.removeprefix("file://"):
        return
    root = Path(unquote(table.table_uri.removeprefix("file://")))
    actions = pa.table(table.get_add_actions(flatten=True))
    for name, size in zip(actions["path"].to_pylist(), actions["size_bytes"].to_pylist(), strict=True):
        yield root / unquote(name), size


def _is_readable(path: Path) -> bool:
    try:
        pq.ParquetFile(path).read()
    except (pa.ArrowException, OSError):
        return False
    return True
