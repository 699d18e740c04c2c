"""A Feast `StreamFeatureView` compiled to a `ViewSpec`, or refused: by name, with the remedy.

An aggregation's `column` is `<types>[.<expression>]`: `view` (events of that type), `view|click.item_id`, `purchase.price*quantity`.
The rules are those of docs/features.md.
"""

import ast
import re
from datetime import timedelta
from typing import Final

import pyarrow as pa
from feast import FeatureStore, StreamFeatureView
from feast.aggregation import Aggregation
from feast.types import Array, FeastType, Float64, Int64, String

from headrace import names
from headrace.aggregates.spec import (
    COUNT,
    COUNT_DISTINCT,
    DECAYED_SUM,
    DEFAULT_LATENESS_US,
    FUNCTIONS,
    LAST_N,
    LISTED,
    MAX,
    MAX_LAST_N,
    MAX_SPAN_US,
    MAX_TILES,
    MEAN,
    MIN,
    SESSION_GAP_US,
    SESSIONS,
    STD,
    SUM,
    ZSCORE,
    AggregateSpec,
    DefinitionError,
    ViewSpec,
    columns_of,
    value_type,
)
from headrace.events import MAX_NUMBER, RECORD_SCHEMA
from headrace.settings import DAY_US, HOUR_US, MICROS

DEFAULT_HOP: Final = timedelta(minutes=5)
"""Of a view that names none."""
MAX_EXPRESSION: Final = 500
"""Characters."""

_NUMERIC = frozenset(
    field.name for field in RECORD_SCHEMA if pa.types.is_floating(field.type) or pa.types.is_integer(field.type)
) - {"schema_version"}
_FUNCTION = re.compile(r"^([a-z_]+)(?:\(([^()]*)\))?$")
_SPAN = re.compile(r"^([1-9][0-9]*)\s*(s|m|h|d)$")
_UNITS = {"s": MICROS, "m": 60 * MICROS, "h": HOUR_US, "d": DAY_US}
_ARGUMENT = {LAST_N: "n", DECAYED_SUM: "half_life", ZSCORE: "short"}


def compile_views(store: FeatureStore, lateness_us: int = DEFAULT_LATENESS_US) -> dict[str, ViewSpec]:
    """Every stream view of a registry, by name. Raises DefinitionError on the first that cannot be computed."""
    return {view.name: compile_view(view, lateness_us) for view in store.list_stream_feature_views()}


def compile_view(view: StreamFeatureView, lateness_us: int = DEFAULT_LATENESS_US) -> ViewSpec:
    """Check a stream view and compile it. Raises DefinitionError."""
    if not view.aggregations:
        raise DefinitionError(
            f"stream view '{view.name}' has no aggregations: give it some, or make it a plain FeatureView"
        )
    join_key = _join_key(view)
    _check_source(view)
    hop = view.tiling_hop_size or DEFAULT_HOP
    aggregates = tuple(_compile_aggregation(view, aggregation, hop) for aggregation in view.aggregations)
    _check_names(view, aggregates)
    spec = ViewSpec(
        name=view.name,
        join_key=join_key,
        entity_column=names.ENTITY_COLUMN[join_key],
        aggregates=aggregates,
        ttl_us=_micros(view.ttl) if view.ttl else None,
        session_gap_us=SESSION_GAP_US,
        lateness_us=lateness_us,
    )
    _check_ttl(view, spec)
    return spec


def feast_type(aggregate: AggregateSpec) -> FeastType:
    """The type that the view's schema must give a feature."""
    kind = value_type(aggregate)
    base = Int64 if kind == pa.int64() else String if kind == pa.string() else Float64
    return Array(base) if aggregate.function == LAST_N else base


def _join_key(view: StreamFeatureView) -> str:
    keys = [column.name for column in view.entity_columns]
    if len(keys) != 1 or keys[0] not in names.ENTITY_COLUMN:
        raise DefinitionError(
            f"stream view '{view.name}' has join keys {keys}: events carry exactly one of "
            f"{sorted(names.ENTITY_COLUMN)}, use one entity with that key"
        )
    return str(keys[0])


def _check_source(view: StreamFeatureView) -> None:
    if view.timestamp_field not in (None, "", names.TIMESTAMP):
        raise DefinitionError(
            f"stream view '{view.name}' has timestamp_field '{view.timestamp_field}': "
            f"events happen at '{names.TIMESTAMP}', name that"
        )
    if view.udf is not None or view.feature_transformation is not None:
        raise DefinitionError(
            f"stream view '{view.name}' has a transformation, which no engine runs: "
            "say it in an aggregation's column, as in 'purchase.price*quantity'"
        )


def _compile_aggregation(view: StreamFeatureView, aggregation: Aggregation, tiling_hop: timedelta) -> AggregateSpec:
    where = f"view '{view.name}', aggregation '{aggregation.resolved_name(aggregation.time_window)}'"
    function, argument = _parse_function(where, aggregation.function)
    types, expression = _parse_column(where, aggregation.column, function)
    window_us, hop_us = _window(where, aggregation, function, tiling_hop)
    aggregate = AggregateSpec(
        name=aggregation.resolved_name(aggregation.time_window),
        types=types,
        expression=expression,
        function=function,
        n=_parse_n(where, argument) if function == LAST_N else 1,
        window_us=window_us,
        hop_us=hop_us,
        span_us=_parse_span(where, function, argument) if function in (DECAYED_SUM, ZSCORE) else None,
    )
    if function == ZSCORE:
        _check_zscore(where, aggregate)
    return aggregate


def _window(
    where: str, aggregation: Aggregation, function: str, tiling_hop: timedelta
) -> tuple[int, int] | tuple[None, None]:
    """Window and hop in microseconds; none for all history."""
    window, slide = aggregation.time_window, aggregation.slide_interval
    if not window:
        if function == ZSCORE:
            raise DefinitionError(f"{where}: {function} needs a time_window to compare with")
        return None, None
    if function in SESSIONS:
        raise DefinitionError(f"{where}: {function} takes no time_window; a session ends by its gap")
    window_us, hop_us = _bounded(where, _micros(window)), _micros(slide if slide and slide < window else tiling_hop)
    if window_us < 0:
        raise DefinitionError(f"{where}: the window {window_us / MICROS:g} s is negative; say how far back it looks")
    if hop_us <= 0 or window_us % hop_us:
        raise DefinitionError(
            f"{where}: the hop {hop_us / MICROS:g} s does not divide the window {window_us / MICROS:g} s; choose one that does"
        )
    if window_us // hop_us > MAX_TILES:
        raise DefinitionError(
            f"{where}: a window of {window_us / MICROS:g} s has {window_us // hop_us:,} hops of {hop_us / MICROS:g} s, each of them "
            f"state of every entity; choose a hop of at least {window_us / MAX_TILES / MICROS:g} s"
        )
    return window_us, hop_us


def _parse_function(where: str, text: str) -> tuple[str, str | None]:
    """Name and argument."""
    match = _FUNCTION.match(text.strip())
    function, argument = match.groups() if match else (text, None)
    if function not in FUNCTIONS:
        raise DefinitionError(f"{where}: unknown function '{text}'; use one of {', '.join(sorted(FUNCTIONS))}")
    if function in _ARGUMENT and argument is None:
        raise DefinitionError(f"{where}: write {function}({_ARGUMENT[function]}), not '{text}'")
    if function not in _ARGUMENT and argument is not None:
        raise DefinitionError(f"{where}: {function} takes no argument, remove '({argument})'")
    return function, argument


def _parse_n(where: str, argument: str | None) -> int:
    text = (argument or "").strip()
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= MAX_LAST_N):
        raise DefinitionError(f"{where}: write last_n(n) with n from 1 to {MAX_LAST_N}, not 'last_n({argument})'")
    return int(text)


def _parse_span(where: str, function: str, argument: str | None) -> int:
    match = _SPAN.match((argument or "").strip())
    if not match:
        raise DefinitionError(
            f"{where}: write {function}({_ARGUMENT[function]}) with a time like 30s, 10m, 1h or 7d, not '{function}({argument})'"
        )
    return _bounded(where, int(match[1]) * _UNITS[match[2]])


def _bounded(where: str, span_us: int) -> int:
    if span_us > MAX_SPAN_US:
        raise DefinitionError(
            f"{where}: a time of {span_us // DAY_US:,} days is beyond {MAX_SPAN_US // DAY_US:,} days; "
            "for all history leave `time_window` out"
        )
    return span_us


def _check_zscore(where: str, aggregate: AggregateSpec) -> None:
    short, window, hop = aggregate.span_us or 1, aggregate.window_us or 0, aggregate.hop_us or 1
    if window % short or window // short < 2:
        raise DefinitionError(
            f"{where}: short ({short / MICROS:g} s) must divide the window ({window / MICROS:g} s) into two parts or more"
        )
    if short % hop:
        raise DefinitionError(
            f"{where}: the hop {hop / MICROS:g} s does not divide short ({short / MICROS:g} s); choose one that does"
        )


def _parse_column(where: str, column: str, function: str) -> tuple[tuple[str, ...], str | None]:
    head, _, expression = (part.strip() for part in column.partition("."))
    types = tuple(sorted({event_type.strip() for event_type in head.split("|")}))
    unknown = [event_type for event_type in types if event_type not in names.EVENT_TYPES]
    if unknown:
        raise DefinitionError(
            f"{where}: '{unknown[0]}' in column '{column}' is no event type; use {', '.join(names.EVENT_TYPES)}"
        )
    if function in (*SESSIONS, ZSCORE) and expression:
        raise DefinitionError(f"{where}: {function} reads whole events; write '{head}' without '.{expression}'")
    if function in (SUM, MEAN, MIN, MAX, STD, COUNT_DISTINCT, *LISTED) and not expression:
        raise DefinitionError(f"{where}: {function} needs a column; write '{column}.price', say")
    return types, _parse_expression(where, expression, function) if expression else None


def _parse_expression(where: str, expression: str, function: str) -> str:
    """The expression as the engines know it: without brackets, blanks and comments that mean nothing."""
    if len(expression) > MAX_EXPRESSION:
        raise DefinitionError(
            f"{where}: an expression of {len(expression):,} characters; write {MAX_EXPRESSION} at most"
        )
    try:
        tree = ast.parse(expression, mode="eval")
    except SyntaxError as error:
        raise DefinitionError(f"{where}: cannot read the expression '{expression}'") from error
    allowed = (ast.Expression, ast.BinOp, ast.Add, ast.Sub, ast.Mult, ast.Div, ast.Name, ast.Load, ast.Constant)
    for node in ast.walk(tree):
        if not isinstance(node, allowed) or (
            isinstance(node, ast.Constant) and not isinstance(node.value, int | float)
        ):
            raise DefinitionError(f"{where}: '{expression}' may hold columns, numbers and + - * / alone")
        if isinstance(node, ast.Constant) and not abs(float(str(node.value))) <= MAX_NUMBER:
            raise DefinitionError(f"{where}: a number in '{expression[:80]}' is beyond {MAX_NUMBER:g}")
    if not columns_of(expression):
        raise DefinitionError(
            f"{where}: '{expression}' reads no column of the event; name one, or leave it out to count events"
        )
    alone = isinstance(tree.body, ast.Name)
    known = frozenset(RECORD_SCHEMA.names) if alone and function in LISTED | {COUNT, COUNT_DISTINCT} else _NUMERIC
    missing = sorted(columns_of(expression) - known)
    if missing:
        raise DefinitionError(
            f"{where}: events have no such column for {function}: '{missing[0]}'; use one of {', '.join(sorted(known))}"
        )
    return ast.unparse(tree.body).replace(" ", "")


def _check_names(view: StreamFeatureView, aggregates: tuple[AggregateSpec, ...]) -> None:
    outputs = [aggregate.name for aggregate in aggregates]
    twice = sorted({name for name in outputs if outputs.count(name) > 1})
    if twice:
        raise DefinitionError(f"view '{view.name}' names '{twice[0]}' twice; give each aggregation its own name")
    # Read back from the registry, a stream view lists its entity columns among its features.
    entity_columns = {column.name for column in view.entity_columns}
    declared = {field.name: field.dtype for field in view.features if field.name not in entity_columns}
    if set(declared) != set(outputs):
        wrong = sorted(set(declared) ^ set(outputs))
        raise DefinitionError(
            f"view '{view.name}': the schema must name exactly the aggregations' outputs; it differs in {', '.join(wrong)}"
        )
    for aggregate in aggregates:
        if str(declared[aggregate.name]) != str(feast_type(aggregate)):
            raise DefinitionError(
                f"view '{view.name}', aggregation '{aggregate.name}': the schema says "
                f"{declared[aggregate.name]}, {aggregate.function} gives {feast_type(aggregate)}"
            )


def _check_ttl(view: StreamFeatureView, spec: ViewSpec) -> None:
    longest = max(((a.window_us or 0) + (a.hop_us or 0) for a in spec.aggregates), default=0)
    if spec.ttl_us is not None and spec.ttl_us < longest:
        raise DefinitionError(
            f"view '{view.name}': a ttl of {spec.ttl_us / MICROS:g} s ends state that its longest window "
            f"and hop ({longest / MICROS:g} s) still need; raise it or leave it out"
        )


def _micros(span: timedelta) -> int:
    return span // timedelta(microseconds=1)
