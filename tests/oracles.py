"""The obvious version of everything that the engines compute, over a list of events: slow, short, and right by reading.

An event is a dict of the columns of `EVENT_SCHEMA`, times in Unix microseconds; a column left out is null.
"""

import struct
from math import fsum
from statistics import mean, pstdev
from typing import Any

import xxhash

from headrace.aggregates.spec import DISTINCT_BOUND, AggregateSpec, ViewSpec
from headrace.settings import MICROS

Event = dict[str, Any]


def value(spec: ViewSpec, aggregate: AggregateSpec, events: list[Event], key: str, t_us: int) -> Any:
    """A feature of `key` at `t_us`. Null is None."""
    mine = [e for e in events if e.get(spec.entity_column) == key and e["type"] in spec.types and e["timestamp"] < t_us]
    mine.sort(key=lambda e: (e["timestamp"], e["event_id"]))
    if spec.ttl_us is not None and mine and t_us - mine[-1]["timestamp"] > spec.ttl_us:
        mine = []
    mine = [e for e in mine if e["type"] in aggregate.types]
    if aggregate.function in ("session_count", "session_seconds"):
        session = current_session(spec, mine, t_us)
        if aggregate.function == "session_count":
            return len(session)
        return (session[-1]["timestamp"] - session[0]["timestamp"]) / MICROS if session else 0.0
    if aggregate.window_us is not None:
        start = t_us - aggregate.window_us
        start -= start % aggregate.hop_us
        mine = [e for e in mine if e["timestamp"] >= start]
    if aggregate.function == "zscore":
        return zscore(aggregate, mine, t_us)
    if aggregate.function == "decayed_sum":
        return fsum(x * 0.5 ** ((t_us - at) / aggregate.span_us) for x, at in weighted(aggregate, mine))
    if aggregate.expression is None:
        return len(mine)
    values = [v for v in (evaluate(aggregate.expression, e) for e in mine) if v is not None]
    match aggregate.function:
        case "count":
            return len(values)
        case "sum":
            return fsum(values)
        case "mean":
            return fsum(values) / len(values) if values else None
        case "std":
            return pstdev(values) if values else None
        case "count_distinct":
            return distinct(values)
        case "min":
            return min(values, default=None)
        case "max":
            return max(values, default=None)
        case "last":
            return values[-1] if values else None
        case "last_n":
            return values[-aggregate.n :]
    raise ValueError(f"the oracle does not know the function {aggregate.function}")


def weighted(aggregate: AggregateSpec, mine: list[Event]) -> list[tuple[float, int]]:
    """(x, timestamp) of the events; x is 1 where there is no expression."""
    pairs = ((1.0 if aggregate.expression is None else evaluate(aggregate.expression, e), e["timestamp"]) for e in mine)
    return [(x, at) for x, at in pairs if x is not None]


def zscore(aggregate: AggregateSpec, mine: list[Event], t_us: int) -> float | None:
    """The count of the newest whole `short` against mean and deviation of the window's buckets before it."""
    assert aggregate.hop_us
    assert aggregate.window_us
    assert aggregate.span_us
    end, short = t_us - t_us % aggregate.hop_us, aggregate.span_us
    buckets = [
        sum(end - (i + 1) * short <= e["timestamp"] < end - i * short for e in mine)
        for i in range(aggregate.window_us // short)
    ]
    deviation = pstdev(buckets[1:])
    return (buckets[0] - mean(buckets[1:])) / deviation if deviation else None


def distinct(values: list[Any]) -> int:
    """How many different values: exactly up to the bound, beyond it Wegman's adaptive sampling over xxh64.

    Level p keeps the values whose hash begins with p zero bits; the first level that keeps no more than the bound stands for 2^p
    times as many.
    """
    hashes = {value_hash(value) for value in values}
    level = 0
    while sum(h < 1 << (64 - level) for h in hashes) > DISTINCT_BOUND:
        level += 1
    return sum(h < 1 << (64 - level) for h in hashes) << level


def value_hash(value: Any) -> int:
    """xxh64 of a string's UTF-8, of an integer's (a time's microseconds) or a float's eight bytes, little-endian; -0.0 is 0.0."""
    if isinstance(value, str):
        return int(xxhash.xxh64_intdigest(value.encode()))
    return int(
        xxhash.xxh64_intdigest(struct.pack("<d", value + 0.0) if isinstance(value, float) else struct.pack("<q", value))
    )


def current_session(spec: ViewSpec, mine: list[Event], t_us: int) -> list[Event]:
    """The newest run of events, gaps within the session gap, if still open at `t_us`. Late events do not count."""
    mine = [e for e in mine if e["received_at"] - e["timestamp"] <= spec.lateness_us]
    if not mine or t_us - mine[-1]["timestamp"] > spec.session_gap_us:
        return []
    session = [mine.pop()]
    while mine and session[0]["timestamp"] - mine[-1]["timestamp"] <= spec.session_gap_us:
        session.insert(0, mine.pop())
    return session


def evaluate(expression: str, event: Event) -> Any:
    """An expression over one event's columns: None where an input is null or a divisor is 0."""
    if expression.isidentifier():
        return event.get(expression)
    code = compile(expression, "expression", "eval")
    if any(event.get(name) is None for name in code.co_names):
        return None
    try:
        return float(eval(code, {name: event[name] for name in code.co_names}))
    except ZeroDivisionError:
        return None


def scale(aggregate: AggregateSpec, spec: ViewSpec, events: list[Event], key: str, t_us: int) -> float:
    """What the error of a float feature is measured against: the window's sum of |x|, or for std the root of its mean square."""

    def of(function: str, power: int) -> float:
        sized = [e | {"_x": _power(evaluate(aggregate.expression or "1", e), power)} for e in events]
        like = AggregateSpec("_x", aggregate.types, "_x", function, 1, aggregate.window_us, aggregate.hop_us)
        return float(value(spec, like, sized, key, t_us) or 0.0)

    return float(of("mean", 2) ** 0.5) if aggregate.function == "std" else of("sum", 1)


def _power(x: Any, power: int) -> float | None:
    return None if x is None or isinstance(x, str) else float(abs(x) ** power)


FLOATS = ("sum", "mean", "std", "decayed_sum", "zscore")
"""Functions whose values are compared up to 1e-9 of their `scale`."""


def agrees(spec: ViewSpec, aggregate: AggregateSpec, events: list[Event], key: str, t_us: int, got: Any) -> bool:
    """True where an engine's value is the oracle's; null is None or NaN."""
    expected = value(spec, aggregate, events, key, t_us)
    if expected is None or got is None or got != got:
        return expected is None and (got is None or got != got)
    if aggregate.function in FLOATS:
        return bool(abs(got - expected) <= 1e-9 * scale(aggregate, spec, events, key, t_us))
    return bool(got == expected)


def log_dedup(entries: list[Event], horizon_us: int) -> list[Event]:
    """Events (log_partition, log_position, log_index, ingested_at, event_id) that are no duplicates, as given.

    A duplicate: an earlier position of its partition, appended within the horizon, holds its event_id.
    """

    def repeats(one: Event, other: Event) -> bool:
        return (
            one["event_id"] == other["event_id"]
            and one["log_partition"] == other["log_partition"]
            and (other["log_position"], other["log_index"]) < (one["log_position"], one["log_index"])
            and one["ingested_at"] - other["ingested_at"] <= horizon_us
        )

    return [one for one in entries if not any(repeats(one, other) for other in entries)]
