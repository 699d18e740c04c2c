"""Rows appended to a view's source: nothing that is there is rewritten."""

import uuid
from pathlib import Path

import numpy as np
import pyarrow as pa
from deltalake import write_deltalake
from feast.infra.offline_stores.file_source import FileSource
from feast.repo_config import RepoConfig

from headrace.clock import Clock, system_clock
from headrace.stores.sources import OfflineStoreError, delta_table, is_delta, source_path, write_parquet


def append_rows(
    config: RepoConfig, source: FileSource, table: pa.Table, writer: str, clock: Clock = system_clock
) -> None:
    """A commit to the source's Delta table, or a new file in its Parquet folder; `writer` says for whom, as in "view 'x'".

    Rows are written last first, since of equal rows the first scanned counts. Raises OfflineStoreError.
    """
    path = source_path(config, source)
    table = table.take(pa.array(np.arange(table.num_rows)[::-1]))
    if is_delta(source):
        existing = delta_table(path, f"{writer}: source '{source.name}' ({path})")
        if existing is not None:
            table = _fitting(table, pa.schema(existing.schema().to_arrow()), f"{writer}: table {path}")
        write_deltalake(path, table, mode="append")
        return
    if Path(path).is_file():
        raise OfflineStoreError(
            f"{writer}: {path} is one Parquet file and cannot be appended to; give the source a folder, or use DeltaFormat"
        )
    # Names sort by time of writing, which is how a scan knows the newest.
    write_parquet([table], Path(path) / f"{clock():020d}-{uuid.uuid4().hex}.parquet")


def _fitting(table: pa.Table, schema: pa.Schema, what: str) -> pa.Table:
    """The rows in the columns and types of a table that is there."""
    if set(table.column_names) != set(schema.names):
        differs = ", ".join(sorted(set(table.column_names) ^ set(schema.names)))
        raise OfflineStoreError(f"{what} has other columns than the rows to append ({differs}): give exactly its own")
    try:
        return table.select(schema.names).cast(schema)
    except pa.ArrowException as error:
        raise OfflineStoreError(
            f"{what} cannot take the rows to append ({str(error).splitlines()[0]}): give them its types, {schema.to_string()}"
        ) from error
