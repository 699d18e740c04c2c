"""Rows of training on disk: written once in order as Feast gives them, read at random while a model learns.

A set that memory does not hold trains all the same: the arrays are files that the kernel pages in and out, and no more than a chunk of
features is held while they are written. Shapes: R rows; the rest as in `headrace.models.inputs`.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch

from headrace.arrays import Ints
from headrace.models.inputs import ItemInputs, UserInputs

Values = npt.NDArray[Any]

_COUNT: Final = "count"
CHUNK: Final = 65_536
"""Rows whose features are held at once while a table is written."""
# Codes of a history's events are few, those of items are below 2^31.
_USER_TYPES: Final = {
    "categories_BC": np.int32,
    "numbers_BF": np.float32,
    "items_BL": np.int32,
    "types_BL": np.int8,
    "gaps_BL": np.int8,
}
_ITEM_TYPES: Final = {
    "id_N": np.int32,
    "categories_NC": np.int32,
    "content_NF": np.float32,
    "activity_NF": np.float32,
    "lists_NA": np.int32,
}


class TableWriter:
    """Rows into a new table, a chunk after the other. `most` is how many there can be: room on disk is taken as it is used."""

    def __init__(self, folder: Path, most: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._most = folder, most
        self._columns: dict[str, Values] = {}
        self._count = 0

    def put(self, chunk: Mapping[str, Values]) -> None:
        """The first chunk says which columns there are. Raises OSError, for want of room before anything is written: a page of a mapped
        file that finds none would end the process.
        """
        for name, values in chunk.items():
            if name not in self._columns:
                file, shape = self._folder / f"{name}.npy", (self._most, *values.shape[1:])
                self._columns[name] = np.lib.format.open_memmap(file, "w+", values.dtype, shape)
            column = self._columns[name]
            _take_room(self._folder / f"{name}.npy", column, self._count, len(values))
            column[self._count : self._count + len(values)] = values
        self._count += len(next(iter(chunk.values())))

    def close(self) -> "Table":
        """What was written, for reading."""
        for column in self._columns.values():
            column.flush()  # type: ignore[attr-defined]
        (self._folder / _COUNT).write_text(str(self._count))
        return Table.open(self._folder)


@dataclass(frozen=True)
class Table:
    """Columns of equal length, each a file `<name>.npy` in a folder."""

    columns: Mapping[str, Values]

    @classmethod
    def write(cls, folder: Path, rows: int, chunks: Iterable[Mapping[str, Values]]) -> "Table":
        """So many rows from chunks in their order. Raises OSError."""
        writer = TableWriter(folder, rows)
        for chunk in chunks:
            writer.put(chunk)
        table = writer.close()
        assert len(table) == rows, f"{len(table)} rows were written of {rows}"
        return table

    @classmethod
    def open(cls, folder: Path) -> "Table":
        count = int((folder / _COUNT).read_text())
        return cls({file.stem: np.load(file, mmap_mode="r")[:count] for file in sorted(folder.glob("*.npy"))})

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def take(self, rows: Ints) -> dict[str, torch.Tensor]:
        """Codes as int64, numbers as float32: what the models read."""
        return {name: _tensor(column[rows]) for name, column in self.columns.items()}


@dataclass(frozen=True)
class UserRows:
    """Users at times."""

    table: Table
    lengths_R: Ints
    """Events in each history."""

    @classmethod
    def of(cls, table: Table) -> "UserRows":
        return cls(table, lengths_of(table))

    def __len__(self) -> int:
        return len(self.table)

    def take(self, rows: Ints) -> UserInputs:
        """Without the places of histories that all of these leave empty."""
        return UserInputs(**self.table.take(rows)).trimmed(int(self.lengths_R[rows].max(initial=1)))


def lengths_of(table: Table) -> Ints:
    """Events in each row's history."""
    items_BL = table.columns["items_BL"]
    lengths = [(items_BL[start : start + CHUNK] > 0).sum(axis=1) for start in range(0, len(table), CHUNK)]
    return np.concatenate([np.zeros(0, np.int64), *lengths])


def of_users(users: UserInputs, columns: Sequence[str] = UserInputs._fields) -> dict[str, Values]:
    """Columns of a chunk."""
    return {name: as_kept(name, getattr(users, name).numpy()) for name in columns}


def as_kept(name: str, values: Values) -> Values:
    """A column of `UserInputs` in the type that a table has."""
    return np.asarray(values, _USER_TYPES[name])


def of_items(items: ItemInputs) -> dict[str, Values]:
    return {name: np.asarray(items._asdict()[name].numpy(), kind) for name, kind in _ITEM_TYPES.items()}


def _take_room(file: Path, column: Values, first: int, count: int) -> None:
    """On disk, for so many rows of a mapped file, where the system can be asked for it."""
    row_bytes = column[0].nbytes if len(column) else 0
    if hasattr(os, "posix_fallocate") and count * row_bytes:
        with file.open("rb+") as opened:
            os.posix_fallocate(opened.fileno(), column.offset + first * row_bytes, count * row_bytes)  # type: ignore[attr-defined]


def _tensor(values: Values) -> torch.Tensor:
    kind = np.float32 if values.dtype.kind == "f" else np.int64
    return torch.from_numpy(np.ascontiguousarray(values, kind))
