"""Stream views that use every function of the algebra, with several windows, hops and expressions: what the laws are tested on."""

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Final

from feast import Entity, Field, FileSource, PushSource, StreamFeatureView, ValueType
from feast.aggregation import Aggregation
from feast.data_format import DeltaFormat
from feast.types import Array, FeastType, Float64, Int64, String

from headrace import names
from headrace.aggregates import spec as sp
from headrace.aggregates.compile import compile_view
from headrace.aggregates.spec import ViewSpec
from headrace.stores.feature_store import quieten_feast

ALL_HISTORY: Final = "all history"
MISSING: Final[frozenset[str]] = frozenset()
"""What the algebra names and the engines do not compute yet."""

# Window and hop by name. The shortest is for tests that wait.
WINDOWS: Final = {
    "3s": (timedelta(seconds=3), timedelta(seconds=1)),
    "10m": (timedelta(minutes=10), timedelta(minutes=1)),
    "1h": (timedelta(hours=1), timedelta(minutes=10)),
    "1d": (timedelta(days=1), timedelta(hours=4)),
}
SHORT: Final = {"3s": "1s", "10m": "2m", "1h": "20m", "1d": "8h"}
"""What `zscore` compares with the rest of the window."""
EVER: Final = "ever"
TTL: Final = timedelta(minutes=12)

COLUMNS: Final = {
    sp.COUNT: ["view", "click|view", "purchase.price", "search|view.query", "view.price/quantity"],
    sp.SUM: ["view.price", "purchase|view.price*quantity", "click.price-quantity/3"],
    sp.MEAN: ["view.price", "purchase|view.price/quantity"],
    sp.MIN: ["view.price", "purchase|view.quantity-price"],
    sp.MAX: ["view.price", "purchase|view.quantity-price"],
    sp.STD: ["view.price", "purchase|view.price*quantity"],
    sp.DECAYED_SUM: ["view", "purchase|view.price", "click.price-quantity"],
    sp.ZSCORE: ["view", "click|view"],
    sp.LAST: ["view.item_id", "view.price", "click|view.query", "view.timestamp", "view.price+quantity"],
    sp.LAST_N: ["click|view.item_id", "click|view.type", "view.price", "view.quantity", "click|view.timestamp"],
    sp.COUNT_DISTINCT: ["view.item_id", "view.price", "click|view.quantity", "view.timestamp", "search|view.query"],
    sp.SESSION_COUNT: ["click|view", "view"],
    sp.SESSION_SECONDS: ["click|view", "purchase"],
}
"""Columns that each function is asked about. A function without an entry fails `test_every_function_is_asked_about`."""

_NO_HISTORY: Final = frozenset({sp.ZSCORE})
_DECLARED: Final = {"item_id": String, "type": String, "query": String, "price": Float64}
_WHOLE: Final = frozenset({"timestamp", "quantity"})


def asked(windows: tuple[str, ...]) -> Iterator[tuple[str, str, str]]:
    """(function, column, window) of every feature: two windows in turn for each column, and all history."""
    for function, columns in COLUMNS.items():
        for place, column in enumerate(columns):
            if function in sp.SESSIONS:
                yield function, column, EVER
                continue
            first, second = windows[place % len(windows)], windows[(place + 1) % len(windows)]
            yield from ((function, column, window) for window in dict.fromkeys((first, second)))
            if function not in _NO_HISTORY:
                yield function, column, EVER


def computed(function: str, window: str) -> bool:
    """False for what is missing."""
    history = window == EVER and function not in sp.SESSIONS | sp.LISTED
    return function not in MISSING and not (history and ALL_HISTORY in MISSING)


def aggregation(function: str, column: str, window: str, number: int) -> Aggregation:
    length, hop = WINDOWS.get(window, (None, None))
    argument = {
        sp.LAST_N: f"({2 + number % 4})",
        sp.DECAYED_SUM: "(30s)" if number % 2 else "(1h)",
        sp.ZSCORE: f"({SHORT.get(window)})",
    }.get(function, "")
    return Aggregation(
        column=column,
        function=function + argument,
        time_window=length,
        slide_interval=hop,
        name=f"{function}_{number}_{window}",
    )


def field(function: str, column: str, name: str) -> Field:
    """The output's name and type, as docs/features.md has them."""
    expression = column.partition(".")[2]
    base: FeastType = Float64
    if function in (sp.COUNT, sp.COUNT_DISTINCT, sp.SESSION_COUNT) or (function in sp.LISTED and expression in _WHOLE):
        base = Int64
    elif function in sp.LISTED:
        base = _DECLARED.get(expression, Float64)
    return Field(name=name, dtype=Array(base) if function == sp.LAST_N else base)


def stream_view(
    name: str, entity: Entity, source: PushSource, windows: tuple[str, ...], ttl: timedelta = timedelta()
) -> StreamFeatureView:
    wanted = [feature for feature in asked(windows) if computed(feature[0], feature[2])]
    aggregations = [aggregation(*feature, number) for number, feature in enumerate(wanted)]
    view = StreamFeatureView(
        name=name,
        entities=[entity],
        source=source,
        timestamp_field=names.TIMESTAMP,
        enable_tiling=True,
        tiling_hop_size=timedelta(seconds=1),
        ttl=ttl,
        aggregations=aggregations,
        schema=[
            field(function, column, one.name) for (function, column, _), one in zip(wanted, aggregations, strict=True)
        ],
    )
    view.entity_columns = [Field(name=entity.join_key, dtype=String)]  # as Feast's apply leaves it
    return view


USER: Final = Entity(name="user", join_keys=[names.USER_ID], value_type=ValueType.STRING)
ITEM: Final = Entity(name="item", join_keys=[names.ITEM_ID], value_type=ValueType.STRING)


def stream_views(lake_dir: Path) -> list[StreamFeatureView]:
    """Every function for users, for items, and with a ttl."""
    quieten_feast()
    lake = FileSource(
        name="event_lake",
        path=str(lake_dir / names.EVENTS_TABLE),
        file_format=DeltaFormat(),
        timestamp_field=names.TIMESTAMP,
        created_timestamp_column=names.RECEIVED_AT,
    )
    source = PushSource(name="events", batch_source=lake)
    short = tuple(window for window, (length, hop) in WINDOWS.items() if length + hop <= TTL)
    return [
        stream_view("user_every", USER, source, tuple(WINDOWS)),
        stream_view("item_every", ITEM, source, tuple(reversed(WINDOWS))),
        stream_view("user_brief", USER, source, short, ttl=TTL),
    ]


def compiled() -> list[ViewSpec]:
    return [compile_view(view) for view in stream_views(Path("lake"))]
