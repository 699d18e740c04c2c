"""The as-of read: one time for all rows, features by name, Python values or Arrow."""

import numpy as np
import pyarrow as pa
import pytest

from headrace.aggregates.batch import as_of
from headrace.aggregates.layout import Layout
from headrace.aggregates.read import StreamRows, TooEarlyError
from headrace.aggregates.rows import NEVER
from headrace.aggregates.spec import arrow_type
from tests.unit.aggregates.test_batch import HOUR, MINUTE, NOON, aggregate, event, frame, view
from tests.unit.aggregates.test_fold import EVERYTHING, KEYS, fold, read

VIEWS = aggregate("views", "view", "count", window=10 * MINUTE)


def test_a_read_at_the_newest_event_is_refused() -> None:
    rows = fold(view(VIEWS), [event("a", NOON)])
    with pytest.raises(TooEarlyError, match="give a time after that"):
        read(view(VIEWS), rows, NOON)


def test_the_newest_event_is_that_of_all_rows_and_of_each() -> None:
    rows = StreamRows(Layout(view(VIEWS)), fold(view(VIEWS), [event("a", NOON), event("b", NOON + 5, key="u2")]))
    assert rows.newest_us == NOON + 5
    assert rows.newest_each_us.tolist() == [NOON, NOON + 5, NEVER]
    assert len(rows) == 3


def test_no_rows_have_no_newest_event_and_no_values() -> None:
    rows = StreamRows(Layout(view(*EVERYTHING)), [])
    assert (len(rows), rows.newest_us) == (0, 0)
    assert {len(column) for column in rows.values(NOON).values()} == {0}
    assert rows.table(NOON).num_rows == 0


def test_only_the_features_asked_for_come_back_in_the_order_asked() -> None:
    spec = view(*EVERYTHING)
    rows = StreamRows(Layout(spec), fold(spec, [event("a", NOON, price=2.0)]))
    values = rows.values(NOON + 1, ["items", "cheapest", "views"])
    assert list(values) == ["items", "cheapest", "views"]
    assert [column[0] for column in values.values()] == [["i"], 2.0, 1]
    with pytest.raises(KeyError, match="view 'user_activity' has no feature 'dearer'"):
        rows.values(NOON + 1, ["dearer"])


def test_counts_are_integers_sums_floats_and_null_is_nan() -> None:
    spec = view(VIEWS, aggregate("spent", "view", "sum", "price"), aggregate("mean", "view", "mean", "price"))
    values = StreamRows(Layout(spec), [None]).values(NOON)
    assert [column.dtype for column in values.values() if isinstance(column, np.ndarray)] == [
        np.int64,
        np.float64,
        np.float64,
    ]
    np.testing.assert_array_equal(values["mean"], [np.nan])


def test_a_state_past_its_ttl_reads_as_never_seen_and_the_others_stay() -> None:
    spec = view(*EVERYTHING, ttl_us=5 * HOUR)
    rows = fold(spec, [event("a", NOON, price=1.0), event("b", NOON + HOUR, key="u2", price=1.0)])
    read_at = read(spec, rows, NOON + 5 * HOUR + 1)
    assert [read_at[name] for name in ("views_ever", "items", "different_prices", "last_item")] == [
        [0, 1, 0],
        [[], ["i"], []],
        [0, 1, 0],
        [None, "i", None],
    ]
    assert read(spec, rows, NOON + 5 * HOUR)["views_ever"] == [1, 1, 0]


def test_a_table_holds_the_values_in_the_columns_of_the_batch_engine() -> None:
    spec = view(*EVERYTHING)
    events = [
        event(f"e{i}", NOON + i * MINUTE, kind, price=1.5, query="ä") for i in range(9) for kind in ("view", "click")
    ]
    events = [one | {"event_id": f"{one['event_id']}{one['type']}"} for one in events]
    table = StreamRows(Layout(spec), fold(spec, events)).table(NOON + HOUR)
    expected = as_of(spec, frame(events), KEYS, np.full(3, NOON + HOUR))
    assert table.schema.types == [arrow_type(one) for one in spec.aggregates]
    assert table.select(
        ["views", "items", "queries", "last_type", "last_item", "different_ids", "session_count", "ids"]
    ).equals(
        expected.select(
            ["views", "items", "queries", "last_type", "last_item", "different_ids", "session_count", "ids"]
        )
    )
    assert table["mean_ever"].null_count == 3
    assert table["times"].type == pa.list_(pa.int64())


def test_reading_again_at_a_later_time_needs_no_other_rows() -> None:
    spec = view(*EVERYTHING)
    rows = StreamRows(Layout(spec), fold(spec, [event("a", NOON)]))
    assert [rows.values(NOON + after)["views"].tolist() for after in (1, 30 * MINUTE, 1)] == [
        [1, 0, 0],
        [0, 0, 0],
        [1, 0, 0],
    ]  # type: ignore[union-attr]
