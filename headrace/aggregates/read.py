"""The as-of read: packed rows and a time t turned into feature values. The same state gives fewer views as t moves on."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from headrace.aggregates import spec as sp
from headrace.aggregates.distinct import distinct_since
from headrace.aggregates.histories import Column, Histories, read_histories
from headrace.aggregates.layout import Layout
from headrace.aggregates.rows import NEVER, StateMismatchError, check, damaged, joined
from headrace.aggregates.sessions import current_sessions
from headrace.aggregates.spec import AggregateSpec
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
        self._newest = check(layout.spec, len(layout.parts), self._rows, self._begins)
        self._histories: dict[int, Histories] = {}

    def __len__(self) -> int:
        return len(self._newest)

    @property
    def newest_us(self) -> int:
        """Time of the newest event in these rows, 0 if there is none."""
        return max(0, int(self._newest.max(initial=0)))

    @property
    def newest_each_us(self) -> Ints:
        """Time of the newest event of each row, NEVER where there is none. Shape (len(rows),)."""
        return self._newest

    def values(self, t_us: int, features: Sequence[str] | None = None) -> dict[str, Values]:
        """The named features (all by default) as of t. Raises TooEarlyError unless t is after the newest event."""
        alive, wanted = self._alive(t_us), self._wanted(features)
        values: dict[str, Values] = {**self._tiled(tuple(one for one in wanted if one.tiled), t_us, alive)}
        for one in wanted:
            if one.function in sp.LISTED:
                column = self._listed(one, t_us, alive)
                values[one.name] = column.lists() if one.function == sp.LAST_N else column.lasts()
            elif not one.tiled:
                values[one.name] = self._number(one, t_us, alive)
        return {one.name: values[one.name] for one in wanted}

    def table(self, t_us: int, features: Sequence[str] | None = None) -> pa.Table:
        """As `values`, in the columns of the as-of batch engine (`arrow_type`)."""
        alive, wanted = self._alive(t_us), self._wanted(features)
        numbers = self._tiled(tuple(one for one in wanted if one.tiled), t_us, alive)
        columns = []
        for one in wanted:
            if one.function in sp.LISTED:
                columns.append(self._listed(one, t_us, alive).arrow(sp.arrow_type(one)))
            else:
                values = numbers[one.name] if one.tiled else self._number(one, t_us, alive)
                columns.append(pa.array(values, sp.arrow_type(one), from_pandas=True))  # NaN is null
        return pa.Table.from_arrays(columns, names=[one.name for one in wanted])

    def _wanted(self, features: Sequence[str] | None) -> Sequence[AggregateSpec]:
        spec = self.layout.spec
        return spec.aggregates if features is None else [spec.aggregate(name) for name in features]

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

    def _tiled(self, aggregates: tuple[AggregateSpec, ...], t_us: int, alive: Mask) -> dict[str, Ints | Floats]:
        if not aggregates:
            return {}
        layout = self.layout
        answer = layout.question(aggregates).answer(
            layout.plan, len(layout.parts), self._rows, self._begins, self._newest, alive, t_us
        )
        if answer is None:
            raise StateMismatchError(damaged(layout.spec))
        return answer

    def _number(self, aggregate: AggregateSpec, t_us: int, alive: Mask) -> Ints | Floats:
        layout = self.layout
        rows = (self._rows, self._begins, self._newest, alive, len(layout.parts))
        if aggregate.function == sp.COUNT_DISTINCT:
            counts, bad_row = distinct_since(*rows, layout.distinct_part(aggregate), aggregate.window_start(t_us))
            self._refuse(bad_row)
            return counts
        gap_us = layout.spec.session_gap_us
        counts, lengths_us, bad_row = current_sessions(*rows, layout.session_part(aggregate), gap_us, t_us)
        self._refuse(bad_row)
        return counts if aggregate.function == sp.SESSION_COUNT else lengths_us / MICROS

    def _listed(self, aggregate: AggregateSpec, t_us: int, alive: Mask) -> Column:
        layout = self.layout
        part, which = layout.list_of(aggregate)
        if part not in self._histories:
            self._histories[part] = read_histories(
                layout.spec, layout.lists[part].kinds, self._rows, self._begins, self._newest, len(layout.parts), part
            )
        return self._histories[part].column(which, aggregate.window_start(t_us), aggregate.n, alive)

    def _refuse(self, bad_row: Int) -> None:
        if bad_row >= 0:
            raise StateMismatchError(damaged(self.layout.spec))
