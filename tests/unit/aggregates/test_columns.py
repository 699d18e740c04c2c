"""Columns of events as arrays: nulls, times and what a value is known by."""

from datetime import UTC, datetime

import numpy as np
import polars as pl
import pytest

from headrace.aggregates import columns
from headrace.aggregates.spec import AggregateSpec, ViewSpec
from tests import oracles
from tests.unit.aggregates.test_batch import NOON, event, frame

EVENTS = frame(
    [
        event("a", NOON, price=2.5, quantity=3, query="ä", as_of=NOON + 1, position=7),
        event("b", NOON + 1, "click", price=-0.0, quantity=None, query=None),
        event("c", NOON + 2, "purchase", price=None, quantity=0, query="", as_of=0),
    ]
)


@pytest.mark.parametrize(
    "column", ["price", "quantity", "query", "as_of", "timestamp", "event_id", "position", "price*2"]
)
def test_a_value_is_known_by_the_hash_that_the_oracle_gives_it(column: str) -> None:
    hashes, there = columns.value_hashes(column, EVENTS), columns.is_there(column, EVENTS)
    rows = EVENTS.with_columns(pl.col(pl.Datetime).dt.timestamp("us")).to_dicts()
    values = [oracles.evaluate(column, row) for row in rows]
    assert there.tolist() == [value is not None for value in values]
    assert [int(h) for h, here in zip(hashes, there, strict=True) if here] == [
        oracles.value_hash(value) for value in values if value is not None
    ]


def test_numbers_are_nan_for_null_and_one_for_text() -> None:
    np.testing.assert_array_equal(columns.numbers("price/quantity", EVENTS), [2.5 / 3, np.nan, np.nan])
    np.testing.assert_array_equal(columns.numbers("query", EVENTS), [1.0, np.nan, 1.0])


def test_times_are_microseconds_whatever_their_unit_and_also_in_a_slice() -> None:
    moments = pl.Series([datetime(2024, 1, 1, tzinfo=UTC), datetime(1970, 1, 1, 0, 0, 1, tzinfo=UTC)])
    for unit in ("ms", "us", "ns"):
        times = moments.dt.cast_time_unit(unit)
        assert columns.micros(times).tolist() == [1_704_067_200_000_000, 1_000_000]
        assert columns.micros(times.slice(1)).tolist() == [1_000_000]


def test_types_are_told_apart_by_their_bits() -> None:
    codes = columns.type_codes(EVENTS)
    assert columns.of_types(codes, ["view", "purchase"]).tolist() == [True, False, True]
    assert columns.of_types(codes, []).tolist() == [False, False, False]


def test_the_mask_of_events_that_concern_a_view_is_what_the_expression_says() -> None:
    views = AggregateSpec("n", ("view", "purchase"), None, "count", 0, None, None)
    spec = ViewSpec("items", "item_id", "item_id", (views,), None, 1, 1)
    events = pl.concat([EVENTS, EVENTS.with_columns(pl.lit(None, pl.String).alias("item_id"))])
    mask = columns.concerned(spec, events, columns.type_codes(events))
    assert (
        mask.tolist()
        == events.select(columns.concerns(spec)).to_series().to_list()
        == [True, False, True, False, False, False]
    )
