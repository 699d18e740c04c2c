"""What a stream view compiles to, and what is refused, by name and with a remedy."""

from datetime import timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from feast import Entity, Field, FileSource, PushSource, StreamFeatureView, ValueType
from feast.aggregation import Aggregation
from feast.types import Array, Float64, Int64, String

from headrace.aggregates.compile import compile_view, feast_type
from headrace.aggregates.spec import AggregateSpec, DefinitionError, arrow_type, value_type
from headrace.settings import MICROS

MINUTE = 60 * MICROS
TEN_MINUTES = timedelta(minutes=10)
ONE_MINUTE = timedelta(minutes=1)


def count(column: str = "view", **options: Any) -> Aggregation:
    defaults = {"function": "count", "time_window": TEN_MINUTES, "slide_interval": ONE_MINUTE, "name": "out"}
    return Aggregation(column=column, **defaults | options)


def stream_view(*aggregations: Aggregation, keys: tuple[str, ...] = ("user_id",), **options: Any) -> StreamFeatureView:
    """A view as Feast's apply leaves it: its entity columns known."""
    lake = FileSource(name="lake", path="lake", timestamp_field="timestamp")
    schema = [Field(name=one.name, dtype=Int64) for one in aggregations]
    defaults = {"schema": schema, "tiling_hop_size": ONE_MINUTE, "enable_tiling": True, "timestamp_field": "timestamp"}
    view = StreamFeatureView(
        name="activity",
        entities=[Entity(name=key, join_keys=[key], value_type=ValueType.STRING) for key in keys],
        source=PushSource(name="events", batch_source=lake),
        aggregations=list(aggregations),
        **defaults | options,
    )
    view.entity_columns = [Field(name=key, dtype=String) for key in keys]
    return view


def compiled(aggregation: Aggregation, dtype: Any = Int64) -> AggregateSpec:
    view = stream_view(aggregation, schema=[Field(name=aggregation.name, dtype=dtype)])
    return compile_view(view).aggregates[0]


def test_a_count_compiles_to_its_types_window_and_hop() -> None:
    expected = AggregateSpec("out", ("click", "view"), None, "count", 1, 10 * MINUTE, MINUTE)
    assert compiled(count("view|click")) == expected


def test_an_omitted_slide_interval_means_the_views_tiling_hop() -> None:
    assert compiled(count(slide_interval=None)).hop_us == MINUTE


def test_spaces_in_a_column_do_not_matter_and_its_expression_keeps_its_dots() -> None:
    spec = compiled(count("purchase . price * 1.5", function="sum"), Float64)
    assert (spec.types, spec.expression) == (("purchase",), "price*1.5")


def test_a_window_starts_at_the_floor_of_its_hop_also_before_1970() -> None:
    spec = compiled(count())
    assert spec.window_start(11 * MINUTE + 1) == MINUTE
    assert spec.window_start(np.array([11 * MINUTE - 1, -1])).tolist() == [0, -11 * MINUTE]


@pytest.mark.parametrize(
    ("aggregation", "element", "feature"),
    [
        (count("view.item_id"), pa.int64(), Int64),
        (count("purchase.quantity", function="sum"), pa.float64(), Float64),
        (count("view.item_id", function="last"), pa.string(), String),
        (count("view.position", function="last"), pa.int64(), Int64),
        (count("view.timestamp", function="last_n(3)"), pa.int64(), Array(Int64)),
        (count("purchase.price*quantity", function="last_n(3)"), pa.float64(), Array(Float64)),
        (count(function="session_seconds", time_window=None), pa.float64(), Float64),
        (count("view.price", function="std"), pa.float64(), Float64),
        (count("view.item_id", function="count_distinct"), pa.int64(), Int64),
        (count(function="decayed_sum(7d)"), pa.float64(), Float64),
        (count("view.price", function="decayed_sum(90s)", time_window=None), pa.float64(), Float64),
        (count(function="zscore(2m)"), pa.float64(), Float64),
    ],
)
def test_a_feature_has_the_type_of_its_function_and_column(
    aggregation: Aggregation, element: pa.DataType, feature: Any
) -> None:
    spec = compiled(aggregation, feature)
    assert value_type(spec) == element
    assert arrow_type(spec) == (pa.list_(element) if spec.function == "last_n" else element)
    assert str(feast_type(spec)) == str(feature)


def test_a_half_life_and_a_short_are_times_with_a_unit() -> None:
    spans = {
        text: compiled(count(function=f"decayed_sum({text})"), Float64).span_us for text in ("90s", "2 m", "1h", "7d")
    }
    assert spans == {"90s": 90 * MICROS, "2 m": 2 * MINUTE, "1h": 60 * MINUTE, "7d": 7 * 1_440 * MINUTE}
    assert compiled(count(function="zscore(5m)"), Float64).span_us == 5 * MINUTE


def test_no_window_means_all_history() -> None:
    spec = compiled(count(time_window=None))
    assert (spec.window_us, spec.hop_us) == (None, None)
    assert spec.window_start(0) < -(2**61)


def test_a_view_needs_only_the_columns_that_its_aggregates_read() -> None:
    spec = compile_view(stream_view(count("purchase|view.price*quantity")))
    base = {"event_id", "received_at", "timestamp", "type", "user_key"}
    assert spec.types == ("purchase", "view")
    assert set(spec.columns) == base | {"price", "quantity"}


def test_a_fingerprint_follows_what_feasts_equality_ignores() -> None:
    one, same, other = (stream_view(count(column)) for column in ("view", "view", "click"))
    assert one == other
    assert compile_view(one).fingerprint == compile_view(same).fingerprint
    assert compile_view(one).fingerprint != compile_view(other).fingerprint


@pytest.mark.parametrize("column", ["view.(item_id)", "view. item_id", "view.item_id#what they saw"])
def test_a_column_in_brackets_is_the_column(column: str) -> None:
    plain = compiled(count("view.item_id", function="count_distinct"))
    assert compiled(count(column, function="count_distinct")) == plain


@pytest.mark.parametrize(
    ("aggregation", "message"),
    [
        (count("buy"), "'buy' in column 'buy' is no event type"),
        (count("view.1+1", function="sum"), r"'1\+1' reads no column of the event"),
        (count("purchase.price*10000000000000000", function="sum"), r"a number in 'price\*1.*' is beyond 1e\+15"),
        (
            count("view." + "+".join(["price"] * 3_000), function="sum"),
            "an expression of 17,999 characters; write 500 at most",
        ),
        (count(function="decayed_sum(999999999999d)"), "a time of 999,999,999,999 days is beyond 36,500 days"),
        (count(function="median"), "unknown function 'median'; use one of count, count_distinct, decayed_sum, last"),
        (count(function="Count"), "unknown function 'Count'"),
        (count(function="count(3)"), r"count takes no argument, remove '\(3\)'"),
        (count("view.item_id", function="last_n"), "write last_n"),
        (count("view.item_id", function="last_n(0)"), "n from 1 to 1000"),
        (count("view.item_id", function="last_n(1001)"), "n from 1 to 1000"),
        (count("view.item_id", function="last_n(ten)"), "n from 1 to 1000"),
        (count("view.price", function="std(2)"), r"std takes no argument, remove '\(2\)'"),
        (count(function="decayed_sum"), r"write decayed_sum\(half_life\), not 'decayed_sum'"),
        (count(function="decayed_sum()"), "with a time like 30s, 10m, 1h or 7d, not 'decayed_sum"),
        (count(function="decayed_sum(1 week)"), "with a time like 30s, 10m, 1h or 7d"),
        (count(function="decayed_sum(0s)"), "with a time like 30s, 10m, 1h or 7d"),
        (count(function="zscore"), r"write zscore\(short\), not 'zscore'"),
        (count(function="zscore(1m)", time_window=None), "zscore needs a time_window to compare with"),
        (count(function="zscore(3m)"), "short .180 s. must divide the window .600 s. into two parts or more"),
        (count(function="zscore(10m)"), "into two parts or more"),
        (count(function="zscore(30s)"), "the hop 60 s does not divide short .30 s."),
        (count("view.price", function="zscore(1m)"), "zscore reads whole events; write 'view' without '.price'"),
        (count(function="count_distinct"), "count_distinct needs a column; write 'view.price', say"),
        (count(function="last"), "last needs a column"),
        (count("view.cost", function="count_distinct"), "no such column for count_distinct: 'cost'"),
        (count("view.item_id*2", function="count_distinct"), "no such column for count_distinct: 'item_id'"),
        (count("view.query", function="decayed_sum(1h)"), "no such column for decayed_sum: 'query'"),
        (count("view.ingested_at", function="last"), "no such column for last: 'ingested_at'"),
        (count(function="session_count"), "session_count takes no time_window"),
        (
            count(time_window=timedelta(days=7), slide_interval=timedelta(seconds=30)),
            "choose a hop of at least 147.656 s",
        ),
        (count("view.price if price else 1", function="sum"), "columns, numbers and"),
        (count("view.price<1", function="sum"), "columns, numbers and"),
        (count("view.'a'", function="sum"), "columns, numbers and"),
        (count("view.price", function="session_count", time_window=None), "write 'view' without '.price'"),
        (count("purchase", function="sum"), "write 'purchase.price', say"),
        (count("purchase.price**2", function="sum"), "columns, numbers and"),
        (count("purchase.abs(price)", function="sum"), "columns, numbers and"),
        (count("purchase.price*", function="sum"), "cannot read the expression"),
        (count("purchase.cost", function="sum"), "no such column for sum: 'cost'"),
        (count("view.item_id", function="max"), "no such column for max: 'item_id'"),
        (count(slide_interval=timedelta(minutes=3)), "the hop 180 s does not divide the window 600 s"),
    ],
)
def test_an_aggregation_that_cannot_be_computed_is_refused_by_name(aggregation: Aggregation, message: str) -> None:
    with pytest.raises(DefinitionError, match=message) as caught:
        compile_view(stream_view(aggregation))
    assert "view 'activity', aggregation 'out'" in str(caught.value)


@pytest.mark.parametrize(
    ("aggregations", "options", "message"),
    [
        ([], {}, "has no aggregations"),
        ([count()], {"keys": ("user_id", "item_id")}, "use one entity"),
        ([count()], {"keys": ("session_id",)}, "events carry exactly one of"),
        ([count(), count("click")], {"schema": [Field(name="out", dtype=Int64)]}, "names 'out' twice"),
        ([count()], {"schema": [Field(name="other", dtype=Int64)]}, "it differs in other, out"),
        ([count()], {"schema": [Field(name="out", dtype=Float64)]}, "the schema says Float64, count gives Int64"),
        ([count()], {"ttl": TEN_MINUTES}, "a ttl of 600 s ends state that its longest window and hop"),
        ([count(time_window=-TEN_MINUTES)], {"enable_tiling": False}, "the window -600 s is negative"),
        ([count()], {"timestamp_field": "received_at"}, "events happen at 'timestamp', name that"),
        ([count()], {"udf": lambda rows: rows, "udf_string": ""}, "a transformation, which no engine runs"),
    ],
)
def test_a_view_that_cannot_be_computed_is_refused_by_name(
    aggregations: list[Aggregation], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(DefinitionError, match=message) as caught:
        compile_view(stream_view(*aggregations, **options))
    assert "view 'activity'" in str(caught.value)


def test_a_ttl_of_the_longest_window_and_hop_is_enough() -> None:
    assert compile_view(stream_view(count(), ttl=timedelta(minutes=11))).ttl_us == 11 * MINUTE
