"""The as-of read: packed rows and a time t turned into feature values. The same state gives fewer views as t moves on."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from headrace.aggregates import spec as sp
from headrace.aggregates.distinct import distinct_since
from headrace.aggregates.histories import Histories, read_histories
from headrace.aggregates.layout import Layout, Reading
from headrace.aggregates.rows import NEVER, StateMismatchError, check, damaged, joined
from headrace.aggregates.sessions import current_sessions
from headrace.arrays import Floats, Int, Ints, Mask
from headrace.clock import from_micros
from headrace.settings import MICROS

Values = Ints | Floats | Sequence[object]
"""One value a row: integers, floats with NaN for null, or Python values (lists, strings) with None for null."""


class TooEarlyError(ValueError):
    """A read at or before an event that the state already holds: tiles cannot subtract."""


class StreamRows:
    """State of some entities of one view, fetched at one moment; values come out for any t after `newest_us`."""

    def __init__(self, layout: Layout, raws: Sequence[bytes | None]) -> None:
        """Raises StateMismatchError for rows of another definition, or damaged ones."""
        self.layout = layout
        self._rows, self._begins = joined(layout.spec, raws)
        self._newest, newest_us = check(layout.spec, len(layout.parts), self._rows, self._begins)
        self.newest_us = max(0, newest_us)
        """Time of the newest event in these rows, 0 if there is none."""
        self._histories: dict[int, Histories] = {}

    def __len__(self) -> int:
        return len(self._newest)

    @property
    def newest_each_us(self) -> Ints:
        """Time of the newest event of each row, NEVER where there is none. Shape (len(rows),)."""
        return self._newest

    def values(self, t_us: int, features: Sequence[str] | None = None) -> dict[str, Values]:
        """The named features (all by default) as of t. Raises TooEarlyError unless t is after the newest event."""
        alive, reading = self._alive(t_us), self.layout.reading(features)
        values: dict[str, Values] = {**self._numbers(reading, t_us, alive)}
        picked: dict[tuple[int, int, int], list[tuple[int, int]]] = {}
        for one in reading.listed:
            part, which = self.layout.list_of[one.name]
            same = part, one.window_start(t_us), one.n
            if same not in picked:
                begins, ends = self._history(part).newest(*same[1:], alive)
                picked[same] = list(zip(begins.tolist(), ends.tolist(), strict=True))
            column = self._history(part).column(which)
            if one.function == sp.LAST_N:
                values[one.name] = [column[begin:end] for begin, end in picked[same]]
            else:
                values[one.name] = [column[end - 1] if begin < end else None for begin, end in picked[same]]
        return {one.name: values[one.name] for one in reading.wanted}

    def table(self, t_us: int, features: Sequence[str] | None = None) -> pa.Table:
        """As `values`, in the columns of the as-of batch engine (`arrow_type`)."""
        alive, reading = self._alive(t_us), self.layout.reading(features)
        columns: dict[str, pa.Array] = {
            name: pa.array(column, sp.arrow_type(self.layout.spec.aggregate(name)), from_pandas=True)  # NaN is null
            for name, column in self._numbers(reading, t_us, alive).items()
        }
        for one in reading.listed:
            part, which = self.layout.list_of[one.name]
            begins, ends = self._history(part).newest(one.window_start(t_us), one.n, alive)
            columns[one.name] = self._history(part).arrow(which, begins, ends, sp.arrow_type(one))
        return pa.table({one.name: columns[one.name] for one in reading.wanted})

    def _numbers(self, reading: Reading, t_us: int, alive: Mask) -> dict[str, Ints | Floats]:
        """Values of all that is no list."""
        layout = self.layout
        rows = (self._rows, self._begins, self._newest, alive)
        found: dict[str, Ints | Floats] = {}
        if reading.question is not None:
            answer = reading.question.answer(layout.plan, len(layout.parts), *rows, t_us)
            if answer is None:
                raise StateMismatchError(damaged(layout.spec))
            found = answer
        sessions: dict[int, tuple[Ints, Ints]] = {}
        for one in reading.of_sets:
            part = layout.part_of[one.name]
            if one.function == sp.COUNT_DISTINCT:
                found[one.name], bad_row = distinct_since(*rows, len(layout.parts), part, one.window_start(t_us))
                self._refuse(bad_row)
                continue
            if part not in sessions:
                gap_us = layout.spec.session_gap_us
                counts, lengths_us, bad_row = current_sessions(*rows, len(layout.parts), part, gap_us, t_us)
                self._refuse(bad_row)
                sessions[part] = counts, lengths_us
            counts, lengths_us = sessions[part]
            found[one.name] = counts if one.function == sp.SESSION_COUNT else lengths_us / MICROS
        return found

    def _alive(self, t_us: int) -> Mask:
        """Rows that are there, and not past the view's TTL. Raises TooEarlyError."""
        spec = self.layout.spec
        if t_us <= self.newest_us:
            raise TooEarlyError(
                f"view '{spec.name}' cannot be read as of {from_micros(t_us).isoformat()}: its state holds an event at "
                f"{from_micros(self.newest_us).isoformat()}; give a time after that"
            )
        alive = self._newest != NEVER
        return alive if spec.ttl_us is None else np.asarray(alive & (t_us - self._newest <= spec.ttl_us))

    def _history(self, part: int) -> Histories:
        layout = self.layout
        if part not in self._histories:
            kinds = layout.lists[part].kinds
            self._histories[part] = read_histories(
                layout.spec, kinds, self._rows, self._begins, len(layout.parts), part
            )
        return self._histories[part]

    def _refuse(self, bad_row: Int) -> None:
        if bad_row >= 0:
            raise StateMismatchError(damaged(self.layout.spec))
