"""The obvious version of everything that the engines compute, over a list of events: slow, short, and right by reading.

An event is a dict of the columns of `EVENT_SCHEMA`, times in Unix microseconds; a column left out is null.
"""

from math import fsum
from typing import Any

from headrace.aggregates.spec import AggregateSpec, ViewSpec
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
        case "min":
            return min(values, default=None)
        case "max":
            return max(values, default=None)
        case "last":
            return values[-1] if values else None
        case "last_n":
            return values[-aggregate.n :]
    raise ValueError(f"the oracle does not know the function {aggregate.function}")


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
    """The window's sum of |x|: what the error of a float feature is measured against."""
    absolute = [
        e | {"_x": abs(x)}
        for e in events
        if (x := evaluate(str(aggregate.expression), e)) is not None and not isinstance(x, str)
    ]
    as_sum = AggregateSpec("_x", aggregate.types, "_x", "sum", 1, aggregate.window_us, aggregate.hop_us)
    return float(value(spec, as_sum, absolute, key, t_us))


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
