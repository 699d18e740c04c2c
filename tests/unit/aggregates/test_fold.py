"""The incremental engine equals the naive oracle (laws 1 and 2) in whatever order events arrive, through packing and unpacking."""

from typing import Any
from uuid import UUID

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace import names
from headrace.aggregates.columns import events_of
from headrace.aggregates.fold import ViewState
from headrace.aggregates.layout import Layout
from headrace.aggregates.read import StreamRows
from headrace.aggregates.spec import ViewSpec
from tests import oracles
from tests.unit.aggregates.test_batch import AGGREGATES, HOUR, MINUTE, NOON, aggregate, event, frame, view

DAY = 24 * HOUR
KEYS = ["u1", "u2", "never"]
MORE = (
    aggregate("views_long", "view", "count", window=3 * HOUR, hop=30 * MINUTE),
    aggregate("ids", "click|view", "last_n", "event_id", n=4),
    aggregate("types", "click|view", "last_n", "type", n=2, window=10 * MINUTE),
    aggregate("last_type", "click|view", "last", "type", window=HOUR),
    aggregate("last_like", "like", "last", "timestamp"),
    aggregate("positions", "view", "last_n", "position", n=5),
    aggregate("as_ofs", "view", "last_n", "as_of", n=2),
    aggregate("values", "view", "last_n", "price*2", n=3, window=HOUR, hop=5 * MINUTE),
    aggregate("different_ids", "view", "count_distinct", "event_id", window=10 * MINUTE),
    aggregate("different_ids_long", "view", "count_distinct", "event_id", window=3 * HOUR, hop=HOUR),
    aggregate("different_positions", "view", "count_distinct", "position"),
    aggregate("spread_long", "view", "std", "price", window=3 * HOUR, hop=30 * MINUTE),
    aggregate("gone", "view", "decayed_sum", "price", window=HOUR, hop=HOUR, span=1_000),
    aggregate("faint", "click|view", "decayed_sum", span=10 * MINUTE, window=10 * MINUTE),
    aggregate("burst_long", "view", "zscore", window=3 * HOUR, hop=30 * MINUTE, span=30 * MINUTE),
    aggregate("like_count", "like", "session_count"),
)  # fmt: skip
EVERYTHING = AGGREGATES + MORE
LATER = st.one_of(
    st.sampled_from([1, MINUTE, 10 * MINUTE, 30 * MINUTE, 30 * MINUTE + 1, HOUR, 62 * MINUTE, 4 * HOUR, 30 * DAY]),
    st.integers(1, 5 * HOUR),
)


# Times sit on a coarse grid round the hops and the gap, so that ties and boundaries are common; some are hours and days before.
TIMES = st.builds(
    lambda minute, shift: NOON + minute * MINUTE + shift,
    st.sampled_from([0, 1, 2, 5, 9, 10, 11, 29, 30, 31, 59, 60, 61, 90, 150, -170, -3_000]),
    st.sampled_from([0, 0, 0, -1, 1, 17]),
)
RAW = st.fixed_dictionaries(
    {
        "type": st.sampled_from(["view", "view", "click", "purchase", "like"]),
        "user_key": st.sampled_from(["u1", "u1", "u2", None]),
        "timestamp": TIMES,
        "delay": st.sampled_from([0, 0, 1, MINUTE, 2 * HOUR, 2 * HOUR + 1]),
        "item_id": st.sampled_from(["a", "b", "c", "ä" * 70, ""]),
        "query": st.sampled_from([None, "shoes", ""]),
        "price": st.sampled_from([None, 0.0, 0.1, 0.2, 0.3, 7.0, 1e15]),
        "quantity": st.sampled_from([None, 1, 3]),
        "position": st.sampled_from([None, 0, 2**31 - 1]),
        "as_of": st.sampled_from([None, NOON, NOON - DAY]),
        "uuid": st.booleans(),
    }
)


def numbered(raw: list[dict[str, Any]], order: list[int]) -> list[oracles.Event]:
    """Give drawn events ids of two kinds, in an order of their own, and their time of arrival."""

    def identity(number: int, as_uuid: bool) -> str:
        return str(UUID(int=number * 2**120 + 7)) if as_uuid else f"{number:02x}-e"

    return [
        {name: value for name, value in e.items() if name not in ("delay", "uuid")}
        | {"event_id": identity(number, e["uuid"]), "received_at": e["timestamp"] + e["delay"]}
        for e, number in zip(raw, order, strict=True)
    ]


STREAMS = st.lists(RAW, max_size=30).flatmap(
    lambda raw: st.permutations(range(len(raw))).map(lambda order: numbered(raw, order))
)
SPECS = st.builds(
    lambda chosen, ttl_us: view(*chosen, ttl_us=ttl_us),
    st.one_of(st.just(EVERYTHING), st.lists(st.sampled_from(EVERYTHING), min_size=1, max_size=3, unique=True)),
    st.sampled_from([None, None, 5 * HOUR]),
)


def fold(spec: ViewSpec, *batches: list[oracles.Event]) -> list[bytes | None]:
    """Rows of KEYS after the batches, each folded into state that was stored and loaded again."""
    layout = Layout(spec)
    stored: dict[str, bytes] = {}
    for batch in batches:
        events = events_of(spec, frame(batch))
        state = ViewState(layout, capacity=1)
        for key in state.missing(events[spec.entity_column]):
            state.load(key, stored.get(key))
        state.fold(events)
        stored |= state.take_changed()
    return [stored.get(key) for key in KEYS]


def read(spec: ViewSpec, rows: list[bytes | None], t_us: int) -> dict[str, list[Any]]:
    """Python values, None for null."""
    values = StreamRows(Layout(spec), rows).values(t_us)
    plain = {
        name: column.tolist() if isinstance(column, np.ndarray) else list(column) for name, column in values.items()
    }
    return {name: [None if value != value else value for value in column] for name, column in plain.items()}


def assert_equals_oracle(spec: ViewSpec, events: list[oracles.Event], rows: list[bytes | None], t_us: int) -> None:
    values = read(spec, rows, t_us)
    for one in spec.aggregates:
        for key, got in zip(KEYS, values[one.name], strict=True):
            assert oracles.agrees(spec, one, events, key, t_us, got), (one.name, key, got)


@settings(max_examples=60, deadline=None)
@given(STREAMS, SPECS, st.randoms(use_true_random=False), st.integers(1, 8), st.lists(LATER, min_size=1, max_size=3))
def test_every_function_equals_the_oracle_in_any_order_of_arrival_and_at_every_later_time(
    events: list[oracles.Event], spec: ViewSpec, random: Any, size: int, later: list[int]
) -> None:
    random.shuffle(events)
    rows = fold(spec, *[events[start : start + size] for start in range(0, len(events), size)])
    newest = StreamRows(Layout(spec), rows).newest_us or NOON
    for after in later:
        assert_equals_oracle(spec, events, rows, newest + after)


@pytest.mark.slow
@settings(max_examples=1_500, deadline=None)
@given(STREAMS, SPECS, st.randoms(use_true_random=False), st.integers(1, 8), st.lists(LATER, min_size=1, max_size=3))
def test_every_function_equals_the_oracle_on_many_streams(
    events: list[oracles.Event], spec: ViewSpec, random: Any, size: int, later: list[int]
) -> None:
    random.shuffle(events)
    rows = fold(spec, *[events[start : start + size] for start in range(0, len(events), size)])
    newest = StreamRows(Layout(spec), rows).newest_us or NOON
    for after in later:
        assert_equals_oracle(spec, events, rows, newest + after)


@settings(deadline=None)
@given(STREAMS, SPECS, LATER)
def test_rows_read_together_give_what_each_gives_alone_and_what_a_table_holds(
    events: list[oracles.Event], spec: ViewSpec, later: int
) -> None:
    rows = fold(spec, events)
    layout = Layout(spec)
    together = StreamRows(layout, rows)
    t_us = (together.newest_us or NOON) + later
    values, table = together.values(t_us), together.table(t_us)
    for place, row in enumerate(rows):
        for name, column in StreamRows(layout, [row]).values(t_us).items():
            np.testing.assert_equal(column[0], values[name][place], err_msg=name)
            held = table[name][place].as_py()
            np.testing.assert_equal(column[0], np.nan if held is None and isinstance(column, np.ndarray) else held)


def many_keys(keys: int, count: int, seed: int) -> list[oracles.Event]:
    """Events of many keys over four hours, some of them at one time."""
    random = np.random.default_rng(seed)
    times = NOON + random.integers(0, 4 * 60, count) * MINUTE + random.integers(0, 3, count)
    kinds = random.choice(["view", "click", "purchase"], count)
    return [
        event(str(UUID(int=int(number))), int(at), str(kind), f"k{key}", item_id=f"i{item}", price=float(item), quantity=1)
        for number, at, kind, key, item in zip(
            random.permutation(count), times, kinds, random.integers(0, keys, count), random.integers(0, 50, count),
            strict=True,
        )
    ]  # fmt: skip


def test_thousands_of_keys_in_one_state_equal_the_oracle_each() -> None:
    spec = view(*EVERYTHING)
    events = many_keys(2_000, 6_000, seed=1)
    state = ViewState(Layout(spec), capacity=16)
    stored: dict[str, bytes] = {}
    for chunk in events_of(spec, frame(events)).iter_slices(700):
        missing = state.missing(chunk["user_key"])
        state.load_rows(missing, [stored.get(key) for key in missing])
        state.fold(chunk)
        stored |= state.take_changed()
        if len(state) > 900:
            state = ViewState(state.layout)  # what is stored is all that is known
    by_key: dict[str, list[oracles.Event]] = {}
    for one in events:
        by_key.setdefault(one["user_key"], []).append(one)
    keys = sorted(by_key)[::40]
    rows = StreamRows(state.layout, [stored[key] for key in keys])
    for t_us in (rows.newest_us + 1, rows.newest_us + HOUR):
        values = rows.values(t_us)
        for one in spec.aggregates:
            for key, got in zip(keys, values[one.name], strict=True):
                assert oracles.agrees(spec, one, by_key[key], key, t_us, got), (one.name, key)


@settings(max_examples=20, deadline=None)
@given(STREAMS, st.randoms(use_true_random=False), st.integers(1, 8))
def test_the_packed_counts_sessions_and_values_do_not_depend_on_batches_or_order(
    events: list[oracles.Event], random: Any, size: int
) -> None:
    spec = view(*(one for one in EVERYTHING if one.function in ("count", "session_count", "count_distinct")))
    at_once = fold(spec, events)
    random.shuffle(events)
    assert fold(spec, *[events[start : start + size] for start in range(0, len(events), size)]) == at_once


DISTINCT = (
    aggregate("hour", "view", "count_distinct", "item_id", window=HOUR, hop=5 * MINUTE),
    aggregate("six_hours", "view", "count_distinct", "item_id", window=6 * HOUR, hop=HOUR),
    aggregate("ever", "view", "count_distinct", "item_id"),
)


@settings(max_examples=8, deadline=None)
@given(st.integers(1, 3_000), st.integers(1, 12), st.integers(1, 2**32), st.integers(1, 4))
def test_distinct_values_beyond_the_bound_equal_the_oracle_in_every_window(
    values: int, hours: int, seed: int, pieces: int
) -> None:
    random = np.random.default_rng(seed)
    times = NOON + random.integers(0, hours * 60, 4_000) * MINUTE
    items = random.integers(0, values, 4_000)
    events = [
        event(f"e{i}", int(at), item_id=f"i{item}") for i, (at, item) in enumerate(zip(times, items, strict=True))
    ]
    spec = view(*DISTINCT)
    rows = fold(spec, *[events[piece::pieces] for piece in range(pieces)])
    newest = StreamRows(Layout(spec), rows).newest_us
    for after in (1, 20 * MINUTE, HOUR, 3 * HOUR, 5 * HOUR, 7 * HOUR):
        assert_equals_oracle(spec, events, rows, newest + after)
    assert len(rows[0] or b"") < 12_000


def test_windows_decay_with_no_event_arriving() -> None:
    spec = view(aggregate("views_10m", "view", "count", window=10 * MINUTE))
    rows = fold(spec, [event("a", NOON), event("b", NOON + MINUTE)])
    counts = [read(spec, rows, NOON + minutes * MINUTE + 1)["views_10m"][0] for minutes in (1, 10, 11, 12)]
    assert counts == [2, 2, 1, 0]


def test_an_event_too_old_for_its_ring_changes_no_count_and_all_history_keeps_it() -> None:
    spec = view(aggregate("views", "view", "count", window=10 * MINUTE), aggregate("ever", "view", "count"))
    rows = fold(spec, [event("a", NOON)], [event("b", NOON - 11 * MINUTE)])
    assert read(spec, rows, NOON + 1) == {"views": [1, 0, 0], "ever": [2, 0, 0]}


def test_a_decayed_sum_halves_with_its_half_life_whatever_the_order_of_arrival() -> None:
    spec = view(aggregate("interest", "view", "decayed_sum", "price", span=HOUR))
    events = [event("b", NOON + HOUR, price=8.0), event("a", NOON, price=4.0)]
    rows = fold(spec, events[:1], events[1:])
    assert read(spec, rows, NOON + 2 * HOUR)["interest"][0] == 8 / 2 + 4 / 4
    assert read(spec, rows, NOON + 10_000 * DAY)["interest"][0] == 0.0


def test_a_deviation_of_large_equal_values_is_zero_not_rounding() -> None:
    spec = view(aggregate("spread", "view", "std", "price", window=HOUR))
    rows = fold(spec, [event("a", NOON, price=1e9 + 0.1)], [event("b", NOON + 5 * MINUTE, price=1e9 + 0.1)])
    assert read(spec, rows, NOON + HOUR)["spread"][0] == 0.0


def test_a_zscore_compares_the_newest_whole_bucket_with_those_before_it() -> None:
    spec = view(aggregate("burst", "view", "zscore", window=4 * MINUTE, span=MINUTE))
    minutes = [0, 1, 1, 3, 3, 3, 3, 3, 4]  # buckets of 1, 2, 0, 5; the last event lies after the last whole minute
    rows = fold(spec, [event(f"e{i}", NOON + minute * MINUTE) for i, minute in enumerate(minutes)])
    assert read(spec, rows, NOON + 4 * MINUTE + 1)["burst"][0] == pytest.approx((5 - 1) / (2 / 3) ** 0.5)
    assert read(spec, rows, NOON + 30 * MINUTE)["burst"][0] is None


def test_events_at_one_time_are_listed_by_event_id_whichever_kind_it_is() -> None:
    identities = [
        str(UUID(int=3 * 2**124)),
        "3",
        "2f",
        "30000000-0000-0000-0000-000000000000x",
        str(UUID(int=4 * 2**124)),
    ]
    spec = view(aggregate("ids", "view", "last_n", "event_id", n=4))
    for turn in range(5):
        order = identities[turn:] + identities[:turn]
        rows = fold(spec, *[[event(identity, NOON)] for identity in order])
        assert read(spec, rows, NOON + 1)["ids"][0] == sorted(identities)[-4:]


def test_a_list_takes_an_event_before_its_first_only_while_it_is_not_full() -> None:
    spec = view(aggregate("ids", "view", "last_n", "event_id", n=3))
    rows = fold(spec, [event("c", NOON + 2)], [event("b", NOON + 1)], [event("a", NOON)], [event("z", NOON - 1)])
    assert read(spec, rows, NOON + 3)["ids"][0] == ["a", "b", "c"]


def test_sessions_that_ended_long_ago_are_not_kept() -> None:
    spec = view(aggregate("count", "view", "session_count"))
    rows = fold(spec, [event(f"e{day}", NOON + day * DAY) for day in range(200)])
    assert len(rows[0] or b"") < 40
    assert read(spec, rows, NOON + 199 * DAY + 1)["count"] == [1, 0, 0]


def test_events_of_one_take_may_come_in_any_order_of_days() -> None:
    spec = view(aggregate("count", "view", "session_count"))
    bridge = [event(f"b{i}", NOON - i * 25 * MINUTE) for i in range(60)]
    rows = fold(spec, [event("e", NOON), event("long ago", NOON - 59 * 25 * MINUTE), *bridge])
    assert read(spec, rows, NOON + 1)["count"] == [62, 0, 0]


def test_missing_names_each_key_once_in_the_order_given() -> None:
    state = ViewState(Layout(view(AGGREGATES[0])))
    state.load("b", None)
    assert state.missing(pl.Series(["c", "b", "a", "c"])) == state.missing(["c", "b", "a", "c"]) == ["c", "a"]


def test_an_event_of_an_entity_that_is_not_loaded_is_refused_by_name() -> None:
    state = ViewState(Layout(view(AGGREGATES[0])))
    with pytest.raises(KeyError, match="'u1' of view 'user_activity' is not loaded"):
        state.fold(frame([event("a", NOON)]))


def test_changed_rows_are_taken_once() -> None:
    state = ViewState(Layout(view(AGGREGATES[0])))
    state.load_rows(["u1", "u2"], [None, None])
    state.fold(frame([event("a", NOON)]))
    assert list(state.take_changed()) == ["u1"]
    assert state.take_changed() == {}
    state.fold(frame([]))
    assert state.take_changed() == {}


def test_a_row_that_is_loaded_again_takes_the_place_of_what_was_held() -> None:
    spec = view(*AGGREGATES)
    (first, *_), (both, *_) = fold(spec, [event("a", NOON)]), fold(spec, [event("a", NOON)], [event("b", NOON + 1)])
    state = ViewState(Layout(spec))
    state.load_rows(["u1"], [both])
    state.load_rows(["u2", "u1"], [None, first])
    state.fold(frame([event("b", NOON + 1), event("c", NOON, key="u2")]))
    assert state.take_changed()["u1"] == both
    state.load("u1", None)
    state.fold(frame([event("a", NOON)]))
    assert state.take_changed() == {"u1": first}


def test_events_of_a_view_are_those_of_its_types_that_name_an_entity() -> None:
    spec = view(aggregate("views", "view", "count", window=HOUR))
    events = frame([event("a", NOON), event("b", NOON, "click"), event("c", NOON, key=None)])
    assert events_of(spec, events, also=(names.ITEM_ID,))["event_id"].to_list() == ["a"]
    assert set(events_of(spec, events, also=(names.ITEM_ID,)).columns) == {*spec.columns, names.ITEM_ID}


def test_the_memory_of_a_state_follows_what_it_holds() -> None:
    spec = view(aggregate("items", "view", "last_n", "item_id", n=50), aggregate("views", "view", "count", window=HOUR))
    state = ViewState(Layout(spec))
    state.load_rows([f"k{key}" for key in range(200)], [None] * 200)
    for turn in range(3):
        per_key = [
            event(str(UUID(int=turn * 10**6 + i)), NOON + turn * HOUR + i, key=f"k{i % 200}") for i in range(10_000)
        ]
        state.fold(frame(per_key))
    entry_bytes = 5 + 1 + 17 + 1
    assert state.nbytes / len(state) < 4 * 50 * entry_bytes
