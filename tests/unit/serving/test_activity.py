"""Values of items in a replica's columns are those that a read of the store would give, at any time."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.aggregates.rows import StateMismatchError
from headrace.aggregates.spec import AggregateSpec, ViewSpec
from serving.activity import Activity, hop_of, numeric_features
from tests.unit.aggregates.test_batch import HOUR, MINUTE, NOON, aggregate
from tests.unit.serving.small_shop import COUNTS, StoredState, event, item_view

STEADY = (
    *COUNTS,
    aggregate("mean", "view", "mean", "price", window=HOUR, hop=10 * MINUTE),
    aggregate("least", "click|view", "min", "price", window=10 * MINUTE),
    aggregate("spread", "view", "std", "price", window=10 * MINUTE),
    aggregate("people", "view", "count_distinct", "user_key", window=10 * MINUTE),
    aggregate("burst", "view", "zscore", window=HOUR, hop=5 * MINUTE, span=15 * MINUTE),
    aggregate("last_price", "view", "last", "price", window=10 * MINUTE),
    aggregate("ever", "view", "count"),
)
MOVING = (
    aggregate("interest", "view", "decayed_sum", span=7 * MINUTE),
    aggregate("visits", "click|view", "session_count"),
    aggregate("lasted", "click|view", "session_seconds"),
)
SPECS = {
    "steady": item_view(*STEADY),
    "moving": item_view(*STEADY, *MOVING),
    "with a TTL": item_view(*STEADY, ttl_us=12 * MINUTE),
}
ITEMS = ("a", "b", "c")


def columns_of(stored: StoredState) -> Activity:
    made = stored.columns()
    made.grow(len(ITEMS))
    return made


def take(columns: Activity, stored: StoredState, *items: str) -> None:
    raws = [stored.rows.get(item) for item in items]
    columns.put(np.array([ITEMS.index(item) for item in items], np.int64), raws, stored.read(raws).newest_us)


def read(stored: StoredState, t_us: int) -> dict[str, Any]:
    """What a read of the stored rows gives, by full name."""
    spec = stored.layout.spec
    values = stored.read([stored.rows.get(item) for item in ITEMS]).values(t_us, numeric_features(spec))
    return {f"{spec.name}__{name}": np.asarray(column, np.float64) for name, column in values.items()}


EVENTS = st.lists(
    st.builds(
        event,
        st.sampled_from(ITEMS[:2]),
        st.builds(
            lambda minutes, shift: NOON + minutes * MINUTE + shift,
            st.sampled_from([0, 0, 1, 4, 5, 9, 10, 11, 30, 59, 60]),
            st.sampled_from([0, -1, 1, 30_000_000]),
        ),
        st.sampled_from(["view", "view", "click", "purchase"]),
        price=st.sampled_from([None, 0.1, 7.0]),
        user_key=st.sampled_from(["u", "v"]),
    ),
    min_size=1,
    max_size=8,
)
LATER = st.lists(
    st.sampled_from([1, 2, MINUTE - 1, MINUTE, MINUTE + 1, 5 * MINUTE, 10 * MINUTE, 12 * MINUTE + 1, HOUR, 2 * HOUR]),
    min_size=1,
    max_size=4,
)


@pytest.mark.parametrize("name", SPECS)
@settings(max_examples=40, deadline=None)
@given(batches=st.lists(st.tuples(EVENTS, LATER), min_size=1, max_size=3), swept=st.booleans())
def test_values_at_any_t_are_those_of_a_read_of_the_stored_rows(
    name: str, batches: list[tuple[list[Any], list[int]]], swept: bool
) -> None:
    """Law 1 for the columns: within a hop and across hops, with and without events in between, whether swept ahead or not."""
    stored = StoredState(SPECS[name])
    columns = columns_of(stored)
    for events, ages in batches:
        stored.fold(*events)
        take(columns, stored, *sorted({each["item_id"] for each in events}))
        newest = columns.newest_us
        for t_us in [newest + age for age in ages]:
            if swept:
                old = columns.old_rows(t_us)
                columns.keep(old, t_us, *columns.compute(old, t_us))
            expected = read(stored, t_us)
            found = columns.at(np.arange(3), t_us)
            np.testing.assert_array_equal(found, np.stack([expected[each] for each in columns.features], axis=1))


@pytest.mark.parametrize(
    ("spec", "hop_us"),
    [
        (item_view(), MINUTE),
        (item_view(*STEADY[3:4]), 10 * MINUTE),
        (item_view(aggregate("ever", "view", "count")), 1),
        (item_view(*COUNTS, MOVING[0]), 1),
        (item_view(*COUNTS, MOVING[1]), 1),
        (item_view(*COUNTS, ttl_us=HOUR), 1),
    ],
)
def test_values_stand_still_for_as_long_as_every_window_does(spec: ViewSpec, hop_us: int) -> None:
    assert hop_of(spec) == hop_us


def test_numbers_are_columns_and_lists_and_strings_are_not() -> None:
    last = aggregate("last_user", "view", "last", "user_key")
    assert numeric_features(item_view(*COUNTS, last)) == ["views", "spent"]


class Counted(StoredState):
    """Counts the rows that are read."""

    def __init__(self, *aggregates: AggregateSpec) -> None:
        super().__init__(item_view(*aggregates))
        self.counted = 0

    def read(self, raws: Any) -> Any:
        self.counted += len(raws)
        return super().read(raws)


def test_a_row_is_computed_once_a_hop_and_anew_after_an_event() -> None:
    stored = Counted()
    columns = columns_of(stored)
    stored.fold(event("a", NOON))
    take(columns, stored, "a")
    stored.counted = 0
    every = np.arange(3)
    for t_us in (NOON + 1, NOON + 2, NOON + MINUTE - 1):
        assert columns.at(every, t_us)[:, 0].tolist() == [1, 0, 0]
    assert stored.counted == 1
    columns.at(every, NOON + MINUTE)
    assert stored.counted == 2
    stored.fold(event("a", NOON + MINUTE))
    take(columns, stored, "a")
    stored.counted = 0
    assert columns.at(every, NOON + MINUTE + 1)[:, 0].tolist() == [2, 0, 0]
    assert stored.counted == 1


def test_a_request_waits_for_no_definition_and_the_sweep_brings_the_values() -> None:
    stored = StoredState(item_view())

    def read_at_once(_: Any) -> Any:
        raise StateMismatchError("a definition that is not known yet")

    columns = Activity(stored.layout.spec, stored.read, read_at_once)
    columns.grow(2)
    stored.fold(event("a", NOON))
    columns.put(np.array([0]), [stored.rows["a"]], NOON)
    assert np.isnan(columns.at(np.array([0]), NOON + 1)).all()
    old = columns.old_rows(NOON + 1)
    columns.keep(old, NOON + 1, *columns.compute(old, NOON + 1))
    assert columns.at(np.array([0, 1]), NOON + 1)[:, 0].tolist() == [1, 0]


def test_what_moves_with_every_microsecond_is_computed_at_each() -> None:
    stored = Counted(MOVING[0])
    columns = columns_of(stored)
    stored.fold(event("a", NOON))
    take(columns, stored, "a")
    stored.counted = 0
    first, second = (columns.at(np.array([0]), NOON + t)[0, 0] for t in (1, 2))
    assert first > second
    assert stored.counted == 2


def test_the_sweep_finds_what_a_hop_made_old_and_keeps_nothing_of_a_row_that_changed_meanwhile() -> None:
    stored = StoredState(item_view())
    columns = columns_of(stored)
    stored.fold(event("a", NOON), event("b", NOON))
    take(columns, stored, "a", "b")
    t_us = NOON + 1
    assert columns.old_rows(t_us).tolist() == [0, 1]
    rows = columns.old_rows(t_us)
    computed = columns.compute(rows, t_us)
    stored.fold(event("b", NOON, "click"), event("b", NOON, "view", event_id="another"))
    take(columns, stored, "b")
    columns.keep(rows, t_us, *computed)
    assert columns.old_rows(t_us).tolist() == [1]
    assert columns.at(np.array([0, 1, 2]), t_us)[:, 0].tolist() == [1, 2, 0]
    assert columns.old_rows(t_us).tolist() == columns.old_rows(t_us).tolist() == []
    stored.fold(event("a", NOON, "click", event_id="third"))
    take(columns, stored, "a")
    assert columns.old_rows(t_us).tolist() == [0]
    assert columns.old_rows(t_us + MINUTE).tolist() == [0, 1]


def test_a_row_that_is_gone_from_the_store_has_no_activity() -> None:
    stored = StoredState(item_view())
    columns = columns_of(stored)
    stored.fold(event("a", NOON))
    take(columns, stored, "a")
    columns.at(np.array([0]), NOON + 1)
    stored.rows.clear()
    take(columns, stored, "a")
    assert columns.at(np.array([0]), NOON + 1)[0].tolist() == [0, 0]
    assert columns.newest_us == NOON


def test_columns_that_grow_keep_what_they_have() -> None:
    stored = StoredState(item_view())
    columns = columns_of(stored)
    stored.fold(event("a", NOON))
    take(columns, stored, "a")
    columns.grow(5_000)
    columns.grow(10)
    assert len(columns) == 5_000
    assert columns.at(np.array([0, 4_999]), NOON + 1)[:, 0].tolist() == [1, 0]


def test_columns_come_by_name_in_the_order_asked_and_null_where_there_is_none() -> None:
    stored = StoredState(item_view())
    columns = columns_of(stored)
    stored.fold(event("a", NOON, "purchase", price=7.0))
    take(columns, stored, "a")
    wanted = ["item_activity__spent", "item_activity__never", "item_activity__views"]
    np.testing.assert_array_equal(columns.columns(wanted, np.array([0, 1]), NOON + 1), [[7, np.nan, 0], [0, np.nan, 0]])
    assert columns.columns(columns.features, np.array([0]), NOON + 1).tolist() == [[0, 7]]
