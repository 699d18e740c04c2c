"""What the batch engine reads of the events, and the order it brings them into.

Only the columns that the aggregates need are read, of the entities asked about alone; keys and types become numbers
while they are read, so that a million events take tens of megabytes.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from headrace import names
from headrace.aggregates.batch_order import Bools, Ordered, by_entity_and_time
from headrace.aggregates.expressions import evaluate
from headrace.aggregates.spec import COUNT, LISTED, SESSIONS, AggregateSpec, ViewSpec, columns_of, never_null
from headrace.arrays import Floats, Ints
from headrace.events import RECORD_SCHEMA

_KEY, _CODE, _TIME, _TYPE, _RECEIVED = "__key", "__code", "__time", "__type", "__received"

Codes = npt.NDArray[np.uint32]


@dataclass(frozen=True)
class Keys:
    """The entities of the pairs asked about, as numbers."""

    codes: Codes
    """(Q,) the entity of each pair; a null key is an entity without events."""
    frame: pl.DataFrame
    """`_KEY` and `_CODE`, a row for each entity."""

    @classmethod
    def of(cls, keys: pl.Series) -> "Keys":
        return cls(*as_codes(keys.alias(_KEY).to_frame(), _CODE))


def as_codes(rows: pl.DataFrame, code: str) -> tuple[Codes, pl.DataFrame]:
    """(Q,) a number for each row, equal rows having the same one, and the different rows with theirs in the column `code`."""
    different = rows.unique().with_row_index(code)
    codes = rows.join(different, on=rows.columns, how="left", maintain_order="left", nulls_equal=True)[code]
    return codes.to_numpy(), different


@dataclass(frozen=True)
class Events:
    """E events of some entities, each entity's by (timestamp, event_id)."""

    frame: pl.DataFrame
    """The columns that expressions read, in the order of the scan."""
    order: Ordered
    """Places: where each event stands among those of its entity."""
    types: npt.NDArray[np.uint8]
    """(E,) by place: number of the type among `type_names`."""
    received: Ints | None
    """(E,) by place: when it arrived, in microseconds. Read where sessions or arrival ask for it."""
    type_names: tuple[str, ...]

    def timeline(self, types: Sequence[str], expression: str | None, lateness_us: int | None) -> Ordered:
        """Events of the types where the expression is not null, and not later than `lateness_us` if that is given."""
        counted = np.isin(self.type_names, types)
        keep: Bools | None = None if counted.all() else counted[self.types]
        if expression is not None and not never_null(expression, types):
            known = self.known(expression)[self.order.rows]
            keep = known if keep is None else keep & known
        if lateness_us is not None:
            assert self.received is not None
            in_time = self.received - self.order.times <= lateness_us
            keep = in_time if keep is None else keep & in_time
        return self.order if keep is None or keep.all() else self.order.select(keep)

    def numbers(self, expression: str) -> Floats:
        """(rows of `frame`,) an expression's values, NaN for null."""
        columns: dict[str, npt.NDArray[Any]] = {
            name: self.frame[name].cast(pl.Float64).fill_null(np.nan).to_numpy() for name in columns_of(expression)
        }
        return evaluate(expression, columns or {names.TIMESTAMP: np.zeros(self.frame.height)})

    def known(self, expression: str) -> Bools:
        """(rows of `frame`,) where the expression is not null."""
        if expression in RECORD_SCHEMA.names:
            return self.frame[expression].is_not_null().to_numpy()
        return ~np.isnan(self.numbers(expression))


def read_events(
    spec: ViewSpec,
    events: pl.LazyFrame,
    keys: Keys,
    times_us: Ints,
    aggregates: Sequence[AggregateSpec],
    arrived_only: bool,
) -> Events:
    """The events that can matter to these aggregates of these entities at these times."""
    types = _types(spec, aggregates)
    ids = any(aggregate.function in LISTED for aggregate in aggregates)
    arrivals = arrived_only or any(aggregate.function in SESSIONS for aggregate in aggregates)
    wanted = {name for aggregate in aggregates for name in _read_columns(aggregate)}
    frame = (
        events.filter(pl.col(names.TYPE).is_in(types), *_between(aggregates, times_us))
        .join(keys.frame.lazy(), left_on=spec.entity_column, right_on=_KEY)
        .select(
            _CODE,
            pl.col(names.TIMESTAMP).to_physical().alias(_TIME),
            pl.col(names.TYPE).cast(pl.Enum(types)).to_physical().cast(pl.UInt8).alias(_TYPE),
            *([pl.col(names.RECEIVED_AT).to_physical().alias(_RECEIVED)] if arrivals else []),
            *sorted(wanted | ({names.EVENT_ID} if ids else set())),
        )
        .collect(engine="streaming")
        .rechunk()
    )
    order = by_entity_and_time(frame[_CODE].to_numpy(), frame[_TIME].to_numpy(), keys.frame.height)
    if ids:
        order = _ties_by_id(order, frame[names.EVENT_ID])
    return Events(
        frame=frame.select(sorted(wanted)),
        order=order,
        types=frame[_TYPE].to_numpy()[order.rows],
        received=frame[_RECEIVED].to_numpy()[order.rows] if arrivals else None,
        type_names=types,
    )


def bytes_per_event(aggregates: Sequence[AggregateSpec], arrived_only: bool) -> int:
    """About what an event takes at the peak, while its aggregates are computed."""
    columns = {name for aggregate in aggregates for name in _read_columns(aggregate)}
    texts = [name for name in columns if pa.types.is_string(RECORD_SCHEMA.field(name).type)]
    listed = any(aggregate.function in LISTED for aggregate in aggregates)
    plain_counts = all(aggregate.function == COUNT for aggregate in aggregates)
    return 48 + 8 * len(columns) + 56 * len(texts) + 56 * listed + (0 if plain_counts else 48) + 16 * arrived_only


def _types(spec: ViewSpec, aggregates: Iterable[AggregateSpec]) -> tuple[str, ...]:
    """With a TTL, every event of the view keeps its state alive; without, only what is counted matters."""
    if spec.ttl_us is not None:
        return spec.types
    return tuple(sorted({event_type for aggregate in aggregates for event_type in aggregate.types}))


def _read_columns(aggregate: AggregateSpec) -> set[str]:
    counted_alone = aggregate.function == COUNT and never_null(aggregate.expression, aggregate.types)
    return set() if counted_alone else columns_of(aggregate.expression)


def _between(aggregates: Sequence[AggregateSpec], times_us: Ints) -> list[pl.Expr]:
    """Bounds on the timestamp, which spare the files beyond them."""
    if not len(times_us):
        return [pl.lit(False)]
    bounds = [pl.col(names.TIMESTAMP) < _moment(int(times_us.max()))]
    if all(aggregate.window_us is not None for aggregate in aggregates):
        oldest = min((aggregate.window_start(int(times_us.min())) for aggregate in aggregates), default=0)
        bounds.append(pl.col(names.TIMESTAMP) >= _moment(oldest))
    return bounds


def _moment(micros: int) -> pl.Expr:
    return pl.lit(micros).cast(pl.Datetime("us", "UTC"))


def _ties_by_id(order: Ordered, ids: pl.Series) -> Ordered:
    """Events of one entity at one time stand in the order of their ids."""
    places = order.tied()
    if not len(places):
        return order
    tied = pl.DataFrame(
        {
            "place": places,
            "entity": np.searchsorted(order.starts, places, side="right"),
            "time": order.times[places],
            "id": ids.gather(order.rows[places]),
        }
    )
    return order.reordered(places, tied.sort("entity", "time", "id")["place"].to_numpy())
