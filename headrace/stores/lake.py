"""The event lake: Delta tables under one folder. Events partitioned by day; each commit records how far into the log it reaches.

Exactly once: a commit carries an application transaction per log partition at its position, so what was appended and up to
where is one atomic fact, and a replay can be cut to what is new.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
from deltalake import CommitProperties, DeltaTable, Transaction, write_deltalake
from deltalake.exceptions import TableNotFoundError

from headrace import names
from headrace.events import EVENT_SCHEMA

_APP = "headrace-log-"

LAKE_SCHEMA = EVENT_SCHEMA.append(pa.field(names.DAY, pa.string()))


class EventLake:
    """The `events` table. One writer for each log partition at a time (Delta refuses the second commit)."""

    def __init__(self, lake_dir: Path) -> None:
        self.path = lake_dir / names.EVENTS_TABLE

    def create(self) -> None:
        """Make the empty table if there is none."""
        DeltaTable.create(str(self.path), schema=LAKE_SCHEMA, partition_by=[names.DAY], mode="ignore")

    def append(self, events: pa.Table, positions: Mapping[int, int]) -> None:
        """Append events (EVENT_SCHEMA) and record, in the same commit, the log position reached in each partition."""
        days = pc.strftime(events[names.TIMESTAMP], format="%Y-%m-%d")
        write_deltalake(
            str(self.path),
            events.select(EVENT_SCHEMA.names).append_column(names.DAY, days).cast(LAKE_SCHEMA),
            mode="append",
            partition_by=[names.DAY],
            commit_properties=CommitProperties(
                app_transactions=[
                    Transaction(f"{_APP}{partition}", position) for partition, position in positions.items()
                ]
            ),
        )

    def compact(self) -> None:
        """Merge small files, and drop files that no reader of the last hour can need."""
        table = DeltaTable(str(self.path))
        table.optimize.compact()
        table.vacuum(retention_hours=1, enforce_retention_duration=False, dry_run=False)

    def table(self) -> DeltaTable | None:
        """The current version, or None before the first write."""
        try:
            return DeltaTable(str(self.path))
        except TableNotFoundError:
            return None

    def positions(self, partitions: Iterable[int]) -> dict[int, int]:
        """Log position covered in each partition (BULK_PARTITION: number of the last bulk load); 0 where nothing is."""
        table = self.table()
        return {p: (table.transaction_version(f"{_APP}{p}") or 0) if table else 0 for p in partitions}

    def scan(self, columns: Sequence[str] | None = None, upto: Mapping[int, int] | None = None) -> pl.LazyFrame:
        """The events, lazily; with `upto`, only those at or below a log position in each partition."""
        table = self.table()
        frame = pl.LazyFrame(schema=_polars_schema()) if table is None else pl.scan_delta(table)
        if upto is not None:
            covered = [
                (pl.col(names.LOG_PARTITION) == partition) & (pl.col(names.LOG_POSITION) <= position)
                for partition, position in upto.items()
            ]
            frame = frame.filter(pl.any_horizontal(covered))
        return frame.select(list(columns)) if columns is not None else frame


def _polars_schema() -> pl.Schema:
    frame = pl.from_arrow(LAKE_SCHEMA.empty_table())
    assert isinstance(frame, pl.DataFrame)
    return frame.schema


def append_rows(lake_dir: Path, table: str, rows: pa.Table) -> None:
    """Append plain feature rows (`items`, `profiles`) to their Delta table, making it if need be."""
    write_deltalake(str(lake_dir / table), rows, mode="append")
