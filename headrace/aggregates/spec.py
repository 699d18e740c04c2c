"""What the features of a stream view mean, in a form that the three engines share. Made by headrace.aggregates.compile.

Plain data: no Feast here, whose import takes seconds and brings torch along, so that flows start at once and never load it.
"""

import ast
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import pyarrow as pa
import xxhash

from headrace import names
from headrace.events import NEEDS_ITEM, RECORD_SCHEMA
from headrace.settings import DAY_US, MICROS

STATE_VERSION: Final = 3
"""Part of every fingerprint: raise it when the layout of stored state changes."""
SESSION_GAP_US: Final = 30 * 60 * MICROS
DEFAULT_LATENESS_US: Final = DAY_US

COUNT, SUM, MEAN, MIN, MAX, STD = "count", "sum", "mean", "min", "max", "std"
DECAYED_SUM, ZSCORE = "decayed_sum", "zscore"
LAST, LAST_N = "last", "last_n"
COUNT_DISTINCT = "count_distinct"
SESSION_COUNT, SESSION_SECONDS = "session_count", "session_seconds"
TILED: Final = frozenset({COUNT, SUM, MEAN, MIN, MAX, STD, DECAYED_SUM, ZSCORE})
"""Functions of tiles: what happened in each hop of event time."""
LISTED: Final = frozenset({LAST, LAST_N})
SESSIONS: Final = frozenset({SESSION_COUNT, SESSION_SECONDS})
FUNCTIONS: Final = TILED | LISTED | SESSIONS | {COUNT_DISTINCT}
MAX_LAST_N: Final = 1_000
MAX_SPAN_US: Final = 36_500 * DAY_US
"""Longest window, half-life or bucket."""
MAX_TILES: Final = 4_096
"""Most hops in a window."""
DISTINCT_BOUND: Final = 256  # compiled into kernels
"""`count_distinct` is exact up to this many values in the window, beyond it an estimate (docs/features.md)."""


class DefinitionError(ValueError):
    """A view that the engines cannot compute: says which view, which aggregation, and what to write instead."""


@dataclass(frozen=True)
class AggregateSpec:
    """One feature of a stream view. Windows and hops in microseconds; no window means all history.

    `n` is the argument of `last_n`, `span_us` that of `decayed_sum` (half-life) and `zscore` (short).
    """

    name: str
    types: tuple[str, ...]
    expression: str | None
    function: str
    n: int
    window_us: int | None
    hop_us: int | None
    span_us: int | None = None

    @property
    def tiled(self) -> bool:
        return self.function in TILED

    def window_start(self, t_us: Any) -> Any:
        """First microsecond of the window that ends (exclusively) at `t_us`; works on integers and on integer arrays."""
        if self.window_us is None or self.hop_us is None:
            return t_us * 0 - 2**62
        return (t_us - self.window_us) // self.hop_us * self.hop_us


@dataclass(frozen=True)
class ViewSpec:
    """A compiled stream view. `join_key` is Feast's, `entity_column` the event column that it is read from."""

    name: str
    join_key: str
    entity_column: str
    aggregates: tuple[AggregateSpec, ...]
    ttl_us: int | None
    session_gap_us: int
    lateness_us: int

    @cached_property
    def types(self) -> tuple[str, ...]:
        """Event types that change this view's state, sorted."""
        return tuple(sorted({event_type for aggregate in self.aggregates for event_type in aggregate.types}))

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """Event columns that the engines need to compute this view."""
        needed = {self.entity_column, names.TYPE, names.TIMESTAMP, names.EVENT_ID, names.RECEIVED_AT}
        for aggregate in self.aggregates:
            needed |= columns_of(aggregate.expression)
        return tuple(sorted(needed))

    @cached_property
    def fingerprint(self) -> int:
        """Identity of the definition and of the layout of its state, 64 bits. Not Feast's `==`, which ignores aggregations."""
        return int(xxhash.xxh64_intdigest(repr((STATE_VERSION, self)).encode()))

    def aggregate(self, name: str) -> AggregateSpec:
        """The feature of that name. Raises KeyError where there is none."""
        try:
            return self._by_name[name]
        except KeyError:
            raise KeyError(f"view '{self.name}' has no feature '{name}'") from None

    @cached_property
    def whole(self) -> frozenset[str]:
        """Features that are integers, or lists of them."""
        return frozenset(one.name for one in self.aggregates if value_type(one) == pa.int64())

    @cached_property
    def _by_name(self) -> dict[str, AggregateSpec]:
        return {one.name: one for one in self.aggregates}


def columns_of(expression: str | None) -> set[str]:
    """Event columns that an expression reads."""
    if expression is None:
        return set()
    return {node.id for node in ast.walk(ast.parse(expression, mode="eval")) if isinstance(node, ast.Name)}


def never_null(expression: str | None, types: Iterable[str]) -> bool:
    """True where the event contract promises a value for every event of the types."""
    return expression in {names.TYPE, names.TIMESTAMP, names.EVENT_ID} or (
        expression == names.ITEM_ID and frozenset(types) <= NEEDS_ITEM
    )


def value_type(aggregate: AggregateSpec) -> pa.DataType:
    """Arrow type of a feature's value (of one element, for `last_n`). Times are Unix microseconds: Feast's own keep whole seconds."""
    if aggregate.function in (COUNT, COUNT_DISTINCT, SESSION_COUNT):
        return pa.int64()
    if aggregate.function in LISTED and aggregate.expression in RECORD_SCHEMA.names:
        declared = RECORD_SCHEMA.field(aggregate.expression).type
        return declared if pa.types.is_string(declared) or pa.types.is_floating(declared) else pa.int64()
    return pa.float64()


def arrow_type(aggregate: AggregateSpec) -> pa.DataType:
    """Arrow type of a feature."""
    return pa.list_(value_type(aggregate)) if aggregate.function == LAST_N else value_type(aggregate)
