"""Feast's values in the wire format: the same messages as protobuf makes one by one."""

from typing import Any

import numpy as np
import pytest
from feast.protos.feast.serving.ServingService_pb2 import FieldStatus, GetOnlineFeaturesResponse
from feast.protos.feast.types.Value_pb2 import Value
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.stores.online_values import NULL, ValueTable

INT64 = st.integers(-(2**63), 2**63 - 1)


def table_of(kind: str, values: list[Any]) -> ValueTable:
    """One feature with these values, None for null. What stands where there is none must not matter."""
    present = np.array([value is not None for value in values], np.bool_)
    starts, lengths = np.zeros((1, len(values)), np.int64), np.where(present, 0, NULL)[None, :]
    if kind in ("STRING", "MAP"):
        bodies = [b"" if value is None else value for value in values]
        lengths = np.array([NULL if value is None else len(value) for value in values], np.int64)[None, :]
        starts[0] = np.cumsum([0, *map(len, bodies)])[:-1]
        return ValueTable(
            (kind,), np.zeros_like(starts, np.uint64), starts, lengths, np.frombuffer(b"".join(bodies), "u1")
        )
    dtype = np.float64 if kind in ("FLOAT", "DOUBLE") else np.int64
    numbers = np.array([7 if value is None else value for value in values], dtype)
    return ValueTable((kind,), numbers.view(np.uint64)[None, :], starts, lengths, np.zeros(0, np.uint8))


def read(table: ValueTable, features: list[int], entities: list[int]) -> list[list[Value]]:
    raw = table.results(np.array(features, np.int64), np.array(entities, np.int64), b"")
    return [list(vector.values) for vector in GetOnlineFeaturesResponse.FromString(raw).results]


def check(table: ValueTable, expected: list[Value]) -> None:
    order = [*range(len(expected)), *reversed(range(len(expected)))]
    assert read(table, [0], order) == [[expected[row] for row in order]]


@settings(deadline=None)  # the first call compiles
@given(st.lists(st.none() | INT64, max_size=20))
def test_integers_of_any_size_and_nulls(values: list[int | None]) -> None:
    check(table_of("INT64", values), [Value() if value is None else Value(int64_val=value) for value in values])


@settings(deadline=None)
@given(st.lists(st.none() | st.floats(allow_nan=False), max_size=20))
def test_floats_to_the_last_bit(values: list[float | None]) -> None:
    check(table_of("DOUBLE", values), [Value() if value is None else Value(double_val=value) for value in values])


@settings(deadline=None)
@given(st.lists(st.none() | st.text(max_size=200), max_size=20))
def test_strings_of_any_length_and_nulls(texts: list[str | None]) -> None:
    raws = [None if text is None else text.encode() for text in texts]
    check(table_of("STRING", raws), [Value() if text is None else Value(string_val=text) for text in texts])


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
    check(table_of(kind, values), [Value(**{field: value}) for value in values])


def test_messages_go_through_as_they_are() -> None:
    empty = Value()
    empty.string_list_val.SetInParent()
    values = [empty, Value(bytes_val=b"x" * 300), Value()]
    raws = [empty.SerializeToString(), Value(bytes_val=b"x" * 300).SerializeToString(), None]
    check(table_of("MAP", raws), values)


def test_features_come_in_the_order_asked_each_with_what_they_share_and_unknown_ones_are_null() -> None:
    bits = np.array([[1, 2], [3, 4]], np.uint64)
    table = ValueTable(
        ("INT64", "BOOL"), bits, np.zeros((2, 2), np.int64), np.array([[0, NULL], [0, 0]]), np.zeros(0, np.uint8)
    )
    shared = GetOnlineFeaturesResponse.FeatureVector(statuses=[FieldStatus.PRESENT]).SerializeToString()
    raw = table.results(np.array([1, -1, 0]), np.array([1, 0]), shared)
    results = GetOnlineFeaturesResponse.FromString(raw).results
    assert [list(vector.values) for vector in results] == [
        [Value(bool_val=True), Value(bool_val=True)],
        [Value(), Value()],
        [Value(), Value(int64_val=1)],
    ]
    assert [list(vector.statuses) for vector in results] == [[FieldStatus.PRESENT]] * 3
