"""Rows of the towers, those of one user that share a history side by side: the history is encoded once for all of them.

The user tower lets no place of a history see what comes after it. So where the history of one row is the beginning of a later row's,
what the tower makes of the first stands inside the second, and a window of 50 events teaches 50 times as much as it costs. A window is
the history of its last row, as Feast gave it; an earlier row joins where the window's events before its time are its own newest ones,
and half a history of them or all that it has: what it then reads is what a request at its time would have read, at worst cut short.

Shapes: W windows, R rows, L places of a history, F and C numbers and categories of users.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import polars as pl
import pyarrow as pa
import torch
from torch import Tensor

from headrace import names
from headrace.arrays import Ints, Mask
from headrace.kernel import kernel
from headrace.models import columns
from headrace.models.inputs import UserInputs
from headrace.models.preprocessing import Preprocessing, gaps_of
from training.dataset import T_US
from training.rows import Table, TableWriter, Values, as_kept, lengths_of, of_users

_HISTORIES: Final = "histories"
_USERS: Final = "users"
_LAST: Final = "last_row"
_SEEN: Final = "seen"
_OF_ROWS: Final = ("categories_BC", "numbers_BF")
_OF_HISTORY: Final = ("items_BL", "types_BL", "gaps_BL")


class WindowBatch(NamedTuple):
    """R rows of some windows: their counts and profile, which window each is of, and how many of its events it has seen."""

    histories: UserInputs
    users: UserInputs
    window_R: Tensor
    seen_R: Tensor

    def to(self, device: str) -> "WindowBatch":
        return WindowBatch(*(part.to(device) for part in self))


@dataclass(frozen=True)
class Windows:
    """Windows on disk, and their rows: those of a window one after the other, in the order of windows."""

    histories: Table
    users: Table
    starts_W: Ints
    """Where the rows of each window begin, and where the last one's end. Shape (W + 1,)."""
    lengths_W: Ints
    """Events in each."""

    @classmethod
    def open(cls, folder: Path) -> "Windows":
        histories, users = Table.open(folder / _HISTORIES), Table.open(folder / _USERS)
        starts_W = np.concatenate([[0], 1 + np.asarray(histories.columns[_LAST])]).astype(np.int64)
        return cls(histories, users, starts_W, lengths_of(histories))

    def __len__(self) -> int:
        return len(self.histories)

    @property
    def rows(self) -> int:
        return len(self.users)

    @property
    def sizes_W(self) -> Ints:
        """Rows of each."""
        return np.diff(self.starts_W)

    def rows_of(self, windows: Ints) -> Ints:
        """Row numbers, window by window."""
        sizes = self.sizes_W[windows]
        ends = np.cumsum(sizes)
        return np.repeat(self.starts_W[windows] - (ends - sizes), sizes) + np.arange(ends[-1] if len(ends) else 0)

    def take(self, windows: Ints) -> WindowBatch:
        """Without the places that all of these leave empty."""
        rows_R = self.rows_of(windows)
        of_rows = self.users.take(rows_R)
        nothing = torch.zeros((len(windows), 0))
        history = {name: values for name, values in self.histories.take(windows).items() if name in _OF_HISTORY}
        histories = UserInputs(nothing.long(), nothing, **history).trimmed(int(self.lengths_W[windows].max(initial=1)))
        no_history = torch.zeros((len(rows_R), 0), dtype=torch.int64)
        users = UserInputs(of_rows["categories_BC"], of_rows["numbers_BF"], no_history, no_history, no_history)
        window_R = torch.from_numpy(np.repeat(np.arange(len(windows)), self.sizes_W[windows]))
        return WindowBatch(histories, users, window_R, of_rows[_SEEN])


def write_windows(
    folder: Path,
    rows: pl.DataFrame,
    chunks: Iterator[pa.Table],
    preprocessing: Preprocessing,
    code_of_item: Callable[[object], int],
) -> Windows:
    """Windows of rows (user_id, t_us) that are sorted by user and time. `chunks` are the rows' features in their order. Raises OSError."""
    users = TableWriter(folder / _USERS, rows.height)
    histories = TableWriter(folder / _HISTORIES, rows.height)
    at = 0
    for chunk in chunks:
        some = rows.slice(at, chunk.num_rows)
        of_rows, of_windows = _encoded(some, columns.by_name(chunk), preprocessing, code_of_item)
        of_windows[_LAST] += at
        users.put(of_rows)
        histories.put(of_windows)
        at += chunk.num_rows
    users.close()
    histories.close()
    return Windows.open(folder)


def _encoded(
    rows: pl.DataFrame, features: columns.Columns, preprocessing: Preprocessing, code_of_item: Callable[[object], int]
) -> tuple[dict[str, Values], dict[str, Values]]:
    """Columns of rows, and of the windows that they fall into."""
    t_us = rows[T_US].to_numpy()
    items_BL, types_BL, times_BL, present_BL = preprocessing.histories(features, len(t_us), code_of_item)
    user_B = rows[names.USER_ID].rle_id().to_numpy().astype(np.int64)
    gaps_BL = gaps_of(times_BL, present_BL, t_us)
    seen_B, is_last_B = windows_of(user_B, t_us, items_BL, types_BL, times_BL, gaps_BL)
    # Histories are read already, and those of windows alone are kept.
    rest = {name: column for name, column in features.items() if name != names.RECENT_ITEMS}
    every = of_users(preprocessing.users(rest, t_us, code_of_item), _OF_ROWS)
    last_W = np.flatnonzero(is_last_B)
    history = zip(_OF_HISTORY, (items_BL, types_BL, gaps_BL), strict=True)
    of_windows = {name: as_kept(name, values[last_W]) for name, values in history}
    return every | {_SEEN: seen_B.astype(np.int16)}, of_windows | {_LAST: last_W}


@kernel
def windows_of(
    user_B: Ints, t_us: Ints, items_BL: Ints, types_BL: Ints, times_BL: Ints, gaps_BL: Ints
) -> tuple[Ints, Mask]:
    """Of rows sorted by user and time: how many events of its window each has seen, and whether it is its window's last row."""
    rows, length = items_BL.shape
    seen_B = np.zeros(rows, np.int64)
    is_last_B = np.zeros(rows, np.bool_)
    last, first_place = -1, 0
    for row in range(rows - 1, -1, -1):
        own = 0
        while own < length and items_BL[row, length - 1 - own] > 0:
            own += 1
        seen = -1
        if last >= 0 and user_B[last] == user_B[row]:
            place = first_place
            while place < length and times_BL[last, place] < t_us[row]:
                place += 1
            seen = place - first_place
            if seen < min(own, (length + 1) // 2):
                seen = -1
            for back in range(1, max(seen, 0) + 1):
                a, b = place - back, length - back
                same_gap = gaps_BL[last, a] == gaps_BL[row, b]
                same = items_BL[last, a] == items_BL[row, b] and types_BL[last, a] == types_BL[row, b]
                if back > own or not same or not same_gap or times_BL[last, a] != times_BL[row, b]:
                    seen = -1
                    break
        if seen < 0:
            last, first_place, seen = row, length - own, own
            is_last_B[row] = True
        seen_B[row] = seen
    return seen_B, is_last_B
