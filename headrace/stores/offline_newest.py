"""Which row of a plain view counts: the newest by (timestamp, created), of equal ones the later write."""

from collections.abc import Callable
from typing import Final

import numpy as np
import polars as pl

from headrace.aggregates.batch_events import Codes
from headrace.aggregates.batch_order import Ordered, by_entity_and_time, first_places, places_before
from headrace.arrays import Ints

ROW: Final = "__row"
"""Number of a row in the scan, which yields the newest write first."""
CODE: Final = "__code"
TIME: Final = "__time"
"""Of a row, in microseconds."""

Created = Callable[[Ints], pl.Series]
"""The created times, in microseconds, of numbered rows: looked up for those alone that need it to tell them apart."""


def newest_before(
    rows: pl.DataFrame, created: Created, codes: Codes, times_us: Ints, entities: int, arrived_only: bool
) -> tuple[Ints, Ints]:
    """(Q,) number of the row that each pair of entity and time sees, -1 for none, and its age in microseconds.

    `rows` has ROW, CODE and TIME. With `arrived_only`, of rows that had been created by then.
    """
    order = _ordered(rows, created, entities)
    asked = by_entity_and_time(codes, times_us, entities)
    numbers = rows[ROW].to_numpy()
    places = _known_places(order, created(numbers), asked) if arrived_only else _seen_places(order, asked)
    seen = places >= 0
    found, ages = np.full(len(codes), -1, dtype=np.int64), np.zeros(len(codes), dtype=np.int64)
    found[asked.rows[seen]] = numbers[order.rows[places[seen]]]
    ages[asked.rows[seen]] = asked.times[seen] - order.times[places[seen]]
    return found, ages


def newest_of_each(rows: pl.DataFrame, created: Created, entities: int) -> Ints:
    """Number of the newest row of each entity that has one."""
    order = _ordered(rows, created, entities)
    last = order.starts[1:][np.diff(order.starts) > 0] - 1
    return np.asarray(rows[ROW].to_numpy()[order.rows[last]], dtype=np.int64)


def _ordered(rows: pl.DataFrame, created: Created, entities: int) -> Ordered:
    """Each entity's rows, the one that counts last."""
    order = by_entity_and_time(rows[CODE].to_numpy(), rows[TIME].to_numpy(), entities)
    places = order.tied()
    if not len(places):
        return order
    numbers = rows[ROW].to_numpy()[order.rows[places]]
    tied = pl.DataFrame(
        {
            "place": places,
            "entity": np.searchsorted(order.starts, places, side="right"),
            "time": order.times[places],
            "created": created(numbers),
            "number": numbers,
        }
    )
    by_write = tied.sort("entity", "time", "created", "number", descending=[False, False, False, True])
    return order.reordered(places, by_write["place"].to_numpy())


def _seen_places(order: Ordered, asked: Ordered) -> Ints:
    """(Q,) the place of the newest row at or before each time; -1 for none."""
    places = places_before(order, asked, asked.times + 1) - 1
    return np.where(places >= first_places(order, asked), places, -1)


def _known_places(order: Ordered, created: pl.Series, asked: Ordered) -> Ints:
    """As `_seen_places`, of the rows that were known by then. A row that became known late does not hide a newer one."""
    entities = np.repeat(np.arange(len(order.starts) - 1, dtype=np.uint32), np.diff(order.starts))
    known = np.maximum(order.times, created.fill_null(0).to_numpy()[order.rows])
    by_known = by_entity_and_time(entities, known, len(order.starts) - 1)
    newest = np.maximum.accumulate(by_known.rows)  # places of later entities are higher
    at = _seen_places(by_known, asked)
    return np.where(at >= 0, np.append(newest, -1)[at], -1)
