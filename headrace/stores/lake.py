"""The event lake: Delta tables under one folder. Events partitioned by day; each commit records how far into the log it reaches.

Exactly once: a commit carries an application transaction per log partition at its position, so what was appended and up to
where is one atomic fact, and a replay is cut to what is new.
"""

import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
from deltalake import CommitProperties, DeltaTable, Transaction, write_deltalake
from deltalake.exceptions import CommitFailedError, DeltaError, TableNotFoundError

from headrace import names
from headrace.events import EVENT_SCHEMA

_APP = "headrace-log-"

LAKE_SCHEMA = EVENT_SCHEMA.append(pa.field(names.DAY, pa.string()))


class LakeConflictError(RuntimeError):
    """Another writer of the same log partitions was faster; nothing was written."""


class LakeBehindError(RuntimeError):
    """The lake does not cover what the log holds."""


class EventLake:
    """The `events` table. Two writers of one log partition cannot both commit: the second is refused, or finds it all covered."""

    def __init__(self, lake_dir: Path) -> None:
        self.path = lake_dir / names.EVENTS_TABLE

    def create(self) -> DeltaTable:
        """The table, made empty if there is none."""
        keep = {"delta.logRetentionDuration": "interval 1 days", "delta.enableExpiredLogCleanup": "true"}
        return DeltaTable.create(
            str(self.path), schema=LAKE_SCHEMA, partition_by=[names.DAY], mode="ignore", configuration=keep
        )

    def append(self, events: pa.Table, positions: Mapping[int, int]) -> int:
        """Append events (EVENT_SCHEMA) and record, in the same commit, the log position reached in each partition.

        What the table covers already is left out; returns the number of rows written. Raises LakeConflictError, and OSError
        where the disk does not take it.
        """
        beyond = pc.invert(_within(events, positions))
        if pc.any(beyond).as_py():
            raise ValueError(f"{pc.sum(beyond).as_py()} events have no log position, or one beyond {dict(positions)}")
        table = self.table() or self.create()
        before = _positions(table, positions)
        moved = {partition: position for partition, position in positions.items() if position > before[partition]}
        if not moved:
            return 0
        fresh = events.select(EVENT_SCHEMA.names).filter(pc.invert(_within(events, before)))
        days = pc.strftime(fresh[names.TIMESTAMP], format="%Y-%m-%d")
        transactions = [Transaction(f"{_APP}{partition}", position) for partition, position in moved.items()]
        try:
            # Through the very version whose positions were read: a commit of these partitions in between refuses this one.
            write_deltalake(
                table,
                fresh.append_column(names.DAY, days).cast(LAKE_SCHEMA),
                mode="append",
                commit_properties=CommitProperties(app_transactions=transactions),
            )
        except CommitFailedError as error:
            raise LakeConflictError(f"{self.path} was written by somebody else at the same time: {error}") from error
        except (OSError, DeltaError) as error:
            raise OSError(f"{self.path} could not be written, nothing of it counts: {error}") from error
        return int(fresh.num_rows)

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
        return _positions(table, partitions) if table else dict.fromkeys(partitions, 0)

    def wait_for(self, positions: Mapping[int, int], timeout_s: float) -> None:
        """Return once the lake covers the positions. Raises LakeBehindError after `timeout_s`."""
        deadline = time.monotonic() + timeout_s
        while any(reached < positions[p] for p, reached in self.positions(positions).items()):
            if time.monotonic() > deadline:
                raise LakeBehindError(
                    f"after {timeout_s:.0f} s the lake stands at {self.positions(positions)}, the log went on to {dict(positions)}: "
                    "is the lake flow running (`headrace status`)?"
                )
            time.sleep(0.1)

    def scan(self, columns: Sequence[str] | None = None, upto: Mapping[int, int] | None = None) -> pl.LazyFrame:
        """The events, lazily; with `upto`, only those at or below a log position in each partition."""
        table = self.table()
        frame = pl.LazyFrame(schema=_polars_schema()) if table is None else scan_table(table)
        if upto is not None:
            frame = frame.filter(covered(upto))
        return frame.select(list(columns)) if columns is not None else frame


def scan_table(table: DeltaTable) -> pl.LazyFrame:
    """The rows of a Delta table, lazily. delta-rs names the folder by a URI, and Polars takes the "%20" in it for letters: a path that has
    to be quoted is read by pyarrow.
    """
    return pl.scan_delta(table, use_pyarrow="%" in table.table_uri)


def _positions(table: DeltaTable, partitions: Iterable[int]) -> dict[int, int]:
    return {partition: table.transaction_version(f"{_APP}{partition}") or 0 for partition in partitions}


def _within(events: pa.Table, positions: Mapping[int, int]) -> pa.Array:
    """True for events at or below the position of their log partition, as an Arrow mask."""
    frame = pl.from_arrow(events.select([names.LOG_PARTITION, names.LOG_POSITION]))
    assert isinstance(frame, pl.DataFrame)
    return frame.select(covered(positions).fill_null(False).alias("within"))["within"].to_arrow()


def _polars_schema() -> pl.Schema:
    frame = pl.from_arrow(LAKE_SCHEMA.empty_table())
    assert isinstance(frame, pl.DataFrame)
    return frame.schema


def covered(positions: Mapping[int, int]) -> pl.Expr:
    """True for events at or below the position of their log partition."""
    below = [
        (pl.col(names.LOG_PARTITION) == partition) & (pl.col(names.LOG_POSITION) <= position)
        for partition, position in positions.items()
    ]
    return pl.any_horizontal(below) if below else pl.lit(False)


def append_rows(lake_dir: Path, table: str, rows: pa.Table) -> None:
    """Append plain feature rows (`items`, `profiles`) to their Delta table, making it if need be.

    Columns that only the table has are null in them; columns that only they have are added to it.
    """
    write_deltalake(str(lake_dir / table), rows, mode="append", schema_mode="merge")
