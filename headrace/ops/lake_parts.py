"""The lake's events of one view, a part of the entities at a time: what rebuilding and comparing state read, in bounded memory."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from headrace.aggregates.columns import concerns
from headrace.aggregates.spec import ViewSpec
from headrace.hashing import xxh64
from headrace.stores.lake import EventLake, covered
from headrace.stores.lake_files import reading

PART_EVENTS = 1_000_000
"""Events read at a time, about: some hundred MB."""


@dataclass(frozen=True)
class Part:
    """One of `of` parts of the entities, by the hash of their keys."""

    number: int
    of: int

    def holds(self, keys: pl.Series) -> pl.Series:
        """True for the keys of this part; nothing in particular for null."""
        return pl.Series(xxh64(keys) % np.uint64(self.of) == self.number)


def parts_for(events: int, part_events: int = PART_EVENTS) -> list[Part]:
    """As many parts as keep each near `part_events`. An entity is never divided."""
    of = max(1, -(-events // part_events))
    return [Part(number, of) for number in range(of)]


def count_events(lake: EventLake, upto: Mapping[int, int], after: Mapping[int, int] | None = None) -> int:
    """Events at or below the positions `upto`, above `after`."""
    with reading(lake.table()):
        return int(_between(lake, upto, after).select(pl.len()).collect(engine="streaming").item())


def events_of_part(
    lake: EventLake,
    spec: ViewSpec,
    part: Part,
    upto: Mapping[int, int],
    after: Mapping[int, int] | None = None,
    also: Sequence[str] = (),
) -> pl.DataFrame:
    """The events that change the state of the part's entities, with the view's columns and those named.

    Raises DamagedLakeError.
    """
    frame = _between(lake, upto, after).filter(concerns(spec)).select(*dict.fromkeys([*spec.columns, *also]))
    if part.of > 1:
        key = pl.col(spec.entity_column)
        frame = frame.filter(key.map_batches(part.holds, return_dtype=pl.Boolean, is_elementwise=True))
    with reading(lake.table()):
        return frame.collect(engine="streaming")


def _between(lake: EventLake, upto: Mapping[int, int], after: Mapping[int, int] | None) -> pl.LazyFrame:
    frame = lake.scan(upto=upto)
    return frame if after is None else frame.filter(~covered(after))
