"""What has happened to each item: the stored state of its stream view, and its values as of the time of a request.

A window `[floor_to_hop(t - window), t)` has the same value all through a hop, as long as no event is folded in: so values are computed once
a hop and item, when a request first asks or by the sweep behind it, and are those that a read of the store would give.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
import pyarrow as pa

from headrace.aggregates import spec as sp
from headrace.aggregates.rows import StateMismatchError
from headrace.aggregates.spec import ViewSpec, arrow_type
from headrace.arrays import Floats, Ints
from serving.interfaces import Rows

Raw = bytes | None
Read = Callable[[Sequence[Raw]], Rows]
"""Gives stored rows their meaning. Raises what a store may raise (serving.interfaces.STORE_ERRORS)."""

_NEVER_OLD: Final = -1
_READ_ME: Final = -2
# What stands still within a hop; a decayed sum or a session moves with every microsecond.
_STEADY: Final = frozenset({sp.COUNT, sp.SUM, sp.MEAN, sp.MIN, sp.MAX, sp.STD, sp.COUNT_DISTINCT, sp.ZSCORE, sp.LAST})


def numeric_features(spec: ViewSpec) -> list[str]:
    """Those of a view's features that are numbers."""
    kinds = {one.name: arrow_type(one) for one in spec.aggregates}
    return [name for name, kind in kinds.items() if pa.types.is_integer(kind) or pa.types.is_floating(kind)]


def hop_of(spec: ViewSpec) -> int:
    """Microseconds within which no number of the view moves without an event; 1 where some always do."""
    numbers = [spec.aggregate(name) for name in numeric_features(spec)]
    if spec.ttl_us is not None or any(one.function not in _STEADY for one in numbers):
        return 1
    return math.gcd(*(one.hop_us for one in numbers if one.hop_us)) or 1


class Activity:
    """State and values by row of the catalogue. `features` are the columns of `at`, by full name. One thread changes it."""

    def __init__(self, spec: ViewSpec, read: Read, read_at_once: Read | None = None) -> None:
        """`read_at_once`: the same for a request, which waits for nobody; raises StateMismatchError where it would have to."""
        self._names = numeric_features(spec)
        self.features = [f"{spec.name}__{name}" for name in self._names]
        self.hop_us = hop_of(spec)
        self.newest_us = 0
        """Time of the newest event in any row: a request's t must be after it."""
        self._read = read
        self._read_at_once = read_at_once or read
        self._blank = self._table(read([None]).values(1), 1)[0]
        self._raws: list[Raw] = []
        self._values = np.zeros((0, len(self.features)))
        self._hop = np.zeros(0, np.int64)
        self._changes = 0
        self._current = (-1, 0)
        """A hop of which all values are, after so many changes."""

    def __len__(self) -> int:
        return len(self._raws)

    def grow(self, rows: int) -> None:
        """So many rows in all; new ones have no activity."""
        if rows > len(self._raws):
            self._raws.extend([None] * (rows - len(self._raws)))
        if rows > len(self._hop):
            spare = max(1_024, rows // 8) + rows - len(self._hop)
            self._values = np.concatenate([self._values, np.broadcast_to(self._blank, (spare, len(self._blank)))])
            self._hop = np.concatenate([self._hop, np.full(spare, _NEVER_OLD)])

    def put(self, rows: Ints, raws: Sequence[Raw], newest_us: int) -> None:
        """New state of some rows; `newest_us` is the time of the newest event in it."""
        for row, raw in zip(rows.tolist(), raws, strict=True):
            self._raws[row] = raw
        gone = np.array([raw is None for raw in raws], np.bool_)
        self._values[rows[gone]] = self._blank
        self._hop[rows] = np.where(gone, _NEVER_OLD, _READ_ME)
        self.newest_us = max(self.newest_us, newest_us)
        self._changes += 1

    def at(self, rows: Ints, t_us: int) -> Floats:
        """Values as of t, NaN for null. Shape (len(rows), features). `t_us` must be after `newest_us`.

        NaN too for rows made by a definition that is not known yet: the sweep asks for it.
        """
        hops = self._hop.take(rows)  # for rows at random it takes half as long as an index does
        old = rows[(hops != t_us // self.hop_us) & (hops != _NEVER_OLD)]
        if len(old):
            raws = self._raws_of(old)
            try:
                self.keep(old, t_us, raws, self._table(self._read_at_once(raws).values(t_us), len(raws)))
            except (StateMismatchError, LookupError):
                self._values[old] = np.nan
        return self._values.take(rows, axis=0)

    def columns(self, wanted: Sequence[str], rows: Ints, t_us: int) -> Floats:
        """`at`, of the named features in that order; NaN for one that the view does not have. Shape (len(rows), len(wanted))."""
        values = self.at(rows, t_us)
        if list(wanted) == self.features:
            return values
        table = np.full((len(rows), len(wanted)), np.nan)
        for place, name in enumerate(wanted):
            if name in self.features:
                table[:, place] = values[:, self.features.index(name)]
        return table

    def old_rows(self, t_us: int, most: int | None = None) -> Ints:
        """Rows whose values are not those of t; of more than `most`, those that were computed longest ago."""
        hop, changes = t_us // self.hop_us, self._changes
        if self._current == (hop, changes):
            return np.zeros(0, np.int64)
        hops = self._hop[: len(self)]
        old = np.flatnonzero((hops != hop) & (hops != _NEVER_OLD))
        if not len(old):
            self._current = hop, changes
        if most is not None and len(old) > most:
            old = np.sort(old[np.argpartition(hops[old], most - 1)[:most]])
        return old

    def compute(self, rows: Ints, t_us: int) -> tuple[list[Raw], Floats]:
        """Values of some rows and the state they are of. Changes nothing: another thread may do it."""
        raws = self._raws_of(rows)
        return raws, self._table(self._read(raws).values(t_us), len(raws))

    def keep(self, rows: Ints, t_us: int, raws: Sequence[Raw], values: Floats) -> None:
        """Note computed values, unless a row has changed since."""
        same = np.array([self._raws[row] is raw for row, raw in zip(rows.tolist(), raws, strict=True)], np.bool_)
        self._values[rows[same]] = values[same]
        self._hop[rows[same]] = t_us // self.hop_us
        self._changes += 1

    def table(self) -> Floats:
        """The values of all rows as they were last computed. Shape (rows, features)."""
        return self._values[: len(self)]

    def _raws_of(self, rows: Ints) -> list[Raw]:
        return [self._raws[row] for row in rows.tolist()]

    def _table(self, values: Any, count: int) -> Floats:
        table = np.full((count, len(self._names)), np.nan)
        for place, name in enumerate(self._names):
            if name in values:
                table[:, place] = values[name]
        return table
