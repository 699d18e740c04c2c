"""Columns of Feast's values in the wire format: the same messages as protobuf makes one by one."""

from typing import Any

import numpy as np
import pytest
from feast.protos.feast.serving.ServingService_pb2 import GetOnlineFeaturesResponse
from feast.protos.feast.types.Value_pb2 import Value
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.stores.online_raw import RawRows
from headrace.stores.online_values import ValueColumn, message_values, number_values, text_values

INT64 = st.integers(-(2**63), 2**63 - 1)


def read_back(column: ValueColumn, entities: list[int]) -> list[Value]:
    vector = GetOnlineFeaturesResponse.FeatureVector.FromString(column.vector(np.array(entities, np.int64)))
    return list(vector.values)


def check(column: ValueColumn, expected: list[Value]) -> None:
    count = len(expected)
    assert [column.value(row) for row in range(count)] == expected
    order = [*range(count), *reversed(range(count))]
    assert read_back(column, order) == [expected[row] for row in order]


@settings(deadline=None)  # the first call compiles
@given(st.lists(st.none() | INT64, max_size=20))
def test_integers_of_any_size_and_nulls(values: list[int | None]) -> None:
    numbers = np.array([value or 0 for value in values], np.int64)
    column = number_values(numbers, np.array([value is not None for value in values], np.bool_), "INT64")
    check(column, [Value() if value is None else Value(int64_val=value) for value in values])


@settings(deadline=None)  # the first call compiles
@given(st.lists(st.floats(allow_nan=False), max_size=20))
def test_floats_to_the_last_bit(values: list[float]) -> None:
    column = number_values(np.array(values, np.float64), np.ones(len(values), np.bool_), "DOUBLE")
    check(column, [Value(double_val=value) for value in values])


@pytest.mark.parametrize(
    ("kind", "field", "values"),
    [
        ("INT32", "int32_val", [-(2**31), -1, 0, 2**31 - 1]),
        ("UNIX_TIMESTAMP", "unix_timestamp_val", [-1, 0, 2**40]),
        ("BOOL", "bool_val", [False, True]),
        ("FLOAT", "float_val", [0.5, -0.0, 3.0]),
    ],
)
def test_every_kind_of_number_has_its_field(kind: str, field: str, values: list[Any]) -> None:
    column = number_values(np.array(values), np.ones(len(values), np.bool_), kind)
    check(column, [Value(**{field: value}) for value in values])


def test_what_stands_where_nothing_is_present_means_nothing() -> None:
    column = number_values(np.array([1.0, np.nan]), np.array([True, False]), "INT64")
    check(column, [Value(int64_val=1), Value()])


@settings(deadline=None)  # the first call compiles
@given(st.lists(st.none() | st.text(max_size=200), max_size=20))
def test_strings_of_any_length_and_nulls(texts: list[str | None]) -> None:
    column = text_values(RawRows.join([None if text is None else text.encode() for text in texts]))
    check(column, [Value() if text is None else Value(string_val=text) for text in texts])


def test_messages_go_through_as_they_are() -> None:
    empty = Value()
    empty.string_list_val.SetInParent()
    check(message_values([empty, None, Value(bytes_val=b"x" * 300)]), [empty, Value(), Value(bytes_val=b"x" * 300)])
