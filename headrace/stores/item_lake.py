"""The lake's tables of items: what operations on items became, appended exactly once, each table in transactions of its own.

A commit carries an application transaction for each log partition that its rows are from, at the position up to which they go; a replay
is cut to what is new. The flow appends here before it appends its events: whoever sees a position in the events' table finds here
everything up to it.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import pyarrow as pa
from deltalake import CommitProperties, DeltaTable, Schema, Transaction, write_deltalake
from deltalake.exceptions import CommitFailedError, DeltaError, TableNotFoundError

from headrace import names
from headrace.stores.item_fields import arrow_type
from headrace.stores.item_rows import ItemRow, as_table
from headrace.stores.lake import LakeConflictError
from headrace.stores.plain_rows import PlainLayout

_APP: Final = "headrace-log-"

PlacedRow = tuple[int, int, ItemRow]
"""Log partition and position of the operation, and the row that it becomes."""


class ItemTable:
    """The table of one view of items."""

    def __init__(self, lake_dir: Path, view: str) -> None:
        self.path = lake_dir / names.ITEM_TABLES[view]

    def append(self, rows: Sequence[PlacedRow], positions: Mapping[int, int]) -> int:
        """Append the rows that the table does not cover; returns how many. `positions`: up to where they go in each partition.

        Columns that the table lacks are added to it. Raises LakeConflictError, and OSError where the disk does not take it.
        """
        table = self.table()
        partitions = sorted({partition for partition, _, _ in rows})
        covered = {p: (table.transaction_version(f"{_APP}{p}") or 0) if table else 0 for p in partitions}
        fresh = [(partition, row) for partition, position, row in rows if position > covered[partition]]
        if not fresh:
            return 0
        moved = sorted({partition for partition, _ in fresh})
        transactions = [Transaction(f"{_APP}{partition}", positions[partition]) for partition in moved]
        content = as_table([row for _, row in fresh])
        try:
            table = table or self._create(content.schema)
            write_deltalake(
                table,
                _as_stored(content, table),
                mode="append",
                schema_mode="merge",
                commit_properties=CommitProperties(app_transactions=transactions),
            )
        except CommitFailedError as error:
            raise LakeConflictError(f"{self.path} was written by somebody else at the same time: {error}") from error
        except (OSError, DeltaError) as error:
            raise OSError(f"{self.path} could not be written, nothing of it counts: {error}") from error
        return len(fresh)

    def declare(self, layout: PlainLayout) -> None:
        """Add the columns that a view has come to declare, null so far; a table that is not there is made by the first row."""
        table = self.table()
        if table is None:
            return
        stored = pa.schema(table.schema().to_arrow()).names
        new = [(name, kind) for name, kind in layout.fields if name not in stored]
        if new:
            schema = Schema.from_arrow(pa.schema([(name, arrow_type(kind)) for name, kind in new]))
            table.alter.add_columns(schema.fields)

    def table(self) -> DeltaTable | None:
        """The current version, or None before the first write."""
        try:
            return DeltaTable(str(self.path))
        except TableNotFoundError:
            return None

    def compact(self) -> None:
        """As the table of events does it."""
        table = DeltaTable(str(self.path))
        table.optimize.compact()
        table.vacuum(retention_hours=1, enforce_retention_duration=False, dry_run=False)

    def _create(self, schema: pa.Schema) -> DeltaTable:
        keep = {"delta.logRetentionDuration": "interval 1 days", "delta.enableExpiredLogCleanup": "true"}
        return DeltaTable.create(str(self.path), schema=schema, mode="ignore", configuration=keep)


def _as_stored(content: pa.Table, table: DeltaTable) -> pa.Table:
    """With the types of the columns that the table has: a view may have been declared anew meanwhile, and is read by what it declares."""
    stored = pa.schema(table.schema().to_arrow())
    kinds = {field.name: field.type for field in stored}
    wanted = pa.schema([(field.name, kinds.get(field.name, field.type)) for field in content.schema])
    try:
        return content.cast(wanted)
    except pa.ArrowInvalid as error:
        raise OSError(
            f"a value does not fit its column of {table.table_uri}: {error}; correct the view's schema"
        ) from error
