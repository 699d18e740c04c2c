import math
from typing import Any

import pyarrow as pa
import pytest

from headrace.item_operations import status, upsert
from headrace.stores.item_fields import MAX_LIST, MAX_TEXT, ItemFieldError, conform
from headrace.stores.item_rows import NoSuchViewError, as_table, row_of
from headrace.stores.plain_rows import PlainLayout

KINDS = {
    "title": "STRING", "price": "DOUBLE", "weight": "FLOAT", "stock": "INT64", "rank": "INT32", "available": "BOOL",
    "tags": "STRING_LIST", "vector": "FLOAT_LIST", "sizes": "INT64_LIST", "photo": "BYTES",
}  # fmt: skip
LAYOUT = PlainLayout("item_catalogue", tuple(KINDS.items()))
FULL = {
    "title": "Watch", "price": 5, "weight": 0.1, "stock": 2**63 - 1, "rank": -(2**31), "available": False,
    "tags": ["a", ""], "vector": [0.1, 2], "sizes": [],
}  # fmt: skip
TENTH = 0.10000000149011612
"""As a float of 32 bits has it."""


def test_a_row_has_every_field_in_its_type_and_null_where_nothing_is_said() -> None:
    assert conform(LAYOUT, FULL) == FULL | {"price": 5.0, "weight": TENTH, "vector": [TENTH, 2.0], "photo": None}
    assert conform(LAYOUT, {"title": None}) == dict.fromkeys(KINDS)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("title", 5),
        ("title", "x" * (MAX_TEXT + 1)),
        ("price", "5"),
        ("price", True),
        ("price", 1e16),
        ("price", math.inf),
        ("price", math.nan),
        ("weight", [1.0]),
        ("stock", 1.5),
        ("stock", 2**63),
        ("rank", 2**31),
        ("available", 1),
        ("tags", "a"),
        ("tags", ["a", None]),
        ("tags", ["a"] * (MAX_LIST + 1)),
        ("photo", "eA=="),
        ("colour", "red"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(ItemFieldError) as error:
        conform(LAYOUT, {field: value})
    assert error.value.field == field
    assert error.value.reason


def test_the_packed_row_and_the_row_of_the_lake_say_the_same() -> None:
    row = row_of(upsert("i1", 7, FULL), 9, {"item_catalogue": LAYOUT})
    packed = LAYOUT.rows([row.pack()])
    read: dict[str, Any] = {name: next(iter(column)) for name, column in packed.values().items()}
    assert packed.timestamps_us() == [7]
    table = as_table([row])
    stored = table.drop_columns(["item_id", "event_timestamp", "created"]).to_pylist()[0]
    assert read == stored == conform(LAYOUT, FULL)
    assert table["event_timestamp"].cast(pa.int64()).to_pylist() == [7]
    assert table["created"].cast(pa.int64()).to_pylist() == [9]


def test_of_rows_that_agree_in_item_and_times_the_last_goes_into_the_lake() -> None:
    views = {"item_status": PlainLayout("item_status", (("available", "BOOL"), ("deleted", "BOOL")))}
    rows = [row_of(status("i1", 7, available=each), 9, views) for each in (True, False)]
    assert as_table(rows)["available"].to_pylist() == [False]


def test_an_operation_without_its_view_is_refused_with_a_remedy() -> None:
    with pytest.raises(NoSuchViewError, match=r"no view 'item_status': .* run `headrace apply`"):
        row_of(status("i1", 7, available=True), 9, {})
