"""Packed rows of plain views: every kind of column, nulls, the TTL, and rows that do not belong."""

from datetime import UTC, datetime

import numpy as np
import pytest
from feast.protos.feast.types.Value_pb2 import Value
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.aggregates.rows import StateMismatchError
from headrace.stores.online_raw import RawRows
from headrace.stores.plain_rows import PlainLayout, RowValueError

LAYOUT = PlainLayout(
    "items",
    (("price", "DOUBLE"), ("stock", "INT64"), ("title", "STRING"), ("seen", "UNIX_TIMESTAMP"), ("new", "BOOL"),
     ("brand", "STRING"), ("tags", "STRING_LIST")),
    ttl_us=100,
)  # fmt: skip


def full_row(at: int = 1_000) -> bytes:
    tags = Value()
    tags.string_list_val.val.extend(["a", "b"])
    values = {
        "price": Value(double_val=0.1),
        "stock": Value(int64_val=2**60 + 1),
        "title": Value(string_val="né"),
        "seen": Value(unix_timestamp_val=3),
        "new": Value(bool_val=False),
        "brand": Value(string_val=""),
        "tags": tags,
    }
    return LAYOUT.pack(values, at, 0)


def test_columns_come_back_with_nulls_for_what_is_missing_and_for_rows_that_are_not_there() -> None:
    columns = LAYOUT.rows([full_row(), None, LAYOUT.pack({"title": Value(string_val="x")}, 1_000, 0)]).values()
    np.testing.assert_array_equal(columns.pop("price"), [0.1, np.nan, np.nan])
    assert columns == {
        "stock": [2**60 + 1, None, None],
        "title": ["né", None, "x"],
        "seen": [datetime(1970, 1, 1, 0, 0, 3, tzinfo=UTC), None, None],
        "new": [False, None, None],
        "brand": ["", None, None],
        "tags": [["a", "b"], None, None],
    }


def test_a_row_is_there_until_its_ttl_and_null_a_microsecond_later() -> None:
    rows = LAYOUT.rows([full_row(at=1_000), None])
    assert rows.expired(1_100).tolist() == [False, False]
    assert rows.expired(1_101).tolist() == [True, False]
    assert rows.values(1_100)["title"] == ["né", None]
    assert rows.values(1_101)["title"] == [None, None]
    assert np.isnan(rows.values(1_101)["price"]).all()
    assert rows.timestamps_us() == [1_000, None]


def test_no_rows_are_columns_of_no_values() -> None:
    assert {name: list(column) for name, column in LAYOUT.rows([]).values(5).items()} == {
        name: [] for name, _ in LAYOUT.fields
    }


def test_rows_need_not_lie_side_by_side_in_the_buffer() -> None:
    row = full_row()
    buffer = np.frombuffer(b"\r\n" + row + b"\r\n$-1\r\n" + row + b"\r\n", np.uint8)
    raws = RawRows(buffer, np.array([len(row) + 9, 0, 2]), np.array([len(row), -1, len(row)]))
    assert LAYOUT.rows(raws).values()["title"] == ["né", None, "né"]
    assert LAYOUT.rows(raws).values()["tags"] == [["a", "b"], None, ["a", "b"]]


def test_null_val_and_a_message_without_a_value_are_null() -> None:
    row = LAYOUT.pack({"title": Value(), "stock": Value(null_val=0), "tags": Value(null_val=0)}, 1, 0)  # type: ignore[arg-type]
    columns = LAYOUT.rows([row]).values()
    assert (columns["title"], columns["stock"], columns["tags"]) == ([None], [None], [None])


def test_a_row_of_another_schema_or_cut_short_is_refused_with_the_remedy() -> None:
    foreign = PlainLayout("items", (("price", "DOUBLE"),)).pack({"price": Value(double_val=1.0)}, 1, 0)
    with pytest.raises(StateMismatchError, match=r"'items' has another schema: materialize"):
        LAYOUT.rows([full_row(), foreign])
    with pytest.raises(StateMismatchError, match=r"'items' is damaged: materialize"):
        LAYOUT.rows([full_row()[:-1]])
    with pytest.raises(StateMismatchError, match="'items'"):
        LAYOUT.rows([b""])


def test_a_row_whose_bodies_end_before_they_begin_is_refused() -> None:
    row = bytearray(full_row())
    first_end = LAYOUT.dtype.itemsize - 4 * len(LAYOUT.others)
    row[first_end : first_end + 4] = (10_000).to_bytes(4, "little")
    with pytest.raises(StateMismatchError, match=r"'items' is damaged: materialize"):
        LAYOUT.rows([full_row(), bytes(row)])


def test_a_value_that_does_not_fit_its_field_is_refused_with_view_and_types() -> None:
    with pytest.raises(RowValueError, match=r"view 'items'.*'stock': 'INT64'.*'stock': 'double_val'"):
        LAYOUT.pack({"stock": Value(double_val=1.5)}, 1, 0)


SIMPLE = PlainLayout(
    "people",
    (("age", "INT64"), ("country", "STRING"), ("spent", "DOUBLE"), ("new", "BOOL"), ("segment", "STRING")),
    ttl_us=100,
)
VALUES = {
    "age": st.integers(-(2**63), 2**63 - 1).map(lambda each: Value(int64_val=each)),
    "country": st.text(max_size=9).map(lambda each: Value(string_val=each)),
    "spent": st.floats(allow_nan=False).map(lambda each: Value(double_val=each)),
    "new": st.booleans().map(lambda each: Value(bool_val=each)),
    "segment": st.text(max_size=3).map(lambda each: Value(string_val=each)),
}


@settings(deadline=None)
@given(values=st.fixed_dictionaries({}, optional=VALUES), at=st.integers(0, 300), t=st.none() | st.integers(0, 300))
def test_one_row_alone_reads_as_it_does_in_columns(values: dict[str, Value], at: int, t: int | None) -> None:
    for raw in (SIMPLE.pack(values, at, 0), None):
        columns = SIMPLE.rows([raw]).values(t)
        expected = {name: [None if value != value else value for value in list(each)] for name, each in columns.items()}
        assert SIMPLE.row(raw).values(t) == expected


def test_one_row_alone_is_refused_as_it_is_in_columns() -> None:
    raw = SIMPLE.pack({"country": Value(string_val="DE"), "segment": Value(string_val="a")}, 1, 0)
    for bad in (b"", raw[:-1], raw + b"x", raw[:30], b"x" + raw[1:]):
        with pytest.raises(StateMismatchError, match=r"'people'.*materialize"):
            SIMPLE.row(bad)
        with pytest.raises(StateMismatchError, match=r"'people'.*materialize"):
            SIMPLE.rows([bad])


def test_only_numbers_and_strings_are_read_alone() -> None:
    assert SIMPLE.is_simple
    assert not LAYOUT.is_simple
