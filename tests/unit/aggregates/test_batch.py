"""The as-of batch engine equals the naive oracle (law 1), and says what the rules of time say, in small exact cases."""

from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.aggregates import batch_arrivals, batch_counts, batch_tables
from headrace.aggregates.batch import as_of
from headrace.aggregates.spec import AggregateSpec, ViewSpec, arrow_type
from headrace.events import RECORD_SCHEMA
from headrace.settings import MICROS
from tests import oracles

MINUTE = 60 * MICROS
HOUR = 60 * MINUTE
NOON = 1_700_000_000 // 86_400 * 86_400 * MICROS + 12 * HOUR


def aggregate(
    name: str,
    types: str,
    function: str,
    expression: str | None = None,
    n: int = 1,
    window: int | None = None,
    hop: int = MINUTE,
    span: int | None = None,
) -> AggregateSpec:
    return AggregateSpec(name, tuple(types.split("|")), expression, function, n, window, hop if window else None, span)


AGGREGATES = (
    aggregate("views", "view", "count", window=10 * MINUTE),
    aggregate("acts", "click|view", "count", window=HOUR, hop=5 * MINUTE),
    aggregate("priced", "view", "count", "price", window=10 * MINUTE),
    aggregate("with_query", "click|view", "count", "query", window=10 * MINUTE),
    aggregate("spent", "purchase", "sum", "price*quantity", window=10 * MINUTE),
    aggregate("spent_long", "purchase|view", "sum", "price", window=HOUR, hop=HOUR),
    aggregate("ratio", "purchase", "mean", "price/quantity", window=10 * MINUTE),
    aggregate("cheapest", "view", "min", "price", window=10 * MINUTE),
    aggregate("dearest", "click|view", "max", "price-1", window=10 * MINUTE),
    aggregate("last_item", "click|view", "last", "item_id"),
    aggregate("last_price", "view", "last", "price", window=10 * MINUTE),
    aggregate("last_sum", "view", "last", "price+quantity"),
    aggregate("items", "click|view", "last_n", "item_id", n=3),
    aggregate("times", "view", "last_n", "timestamp", n=2),
    aggregate("queries", "click|view", "last_n", "query", n=2, window=10 * MINUTE),
    aggregate("quantities", "view", "last_n", "quantity", n=2),
    aggregate("spread", "view", "std", "price", window=10 * MINUTE),
    aggregate("spread_ever", "click|view", "std", "price*quantity"),
    aggregate("different_items", "click|view", "count_distinct", "item_id", window=HOUR, hop=5 * MINUTE),
    aggregate("different_prices", "view", "count_distinct", "price"),
    aggregate("different_amounts", "view", "count_distinct", "quantity", window=10 * MINUTE),
    aggregate("different_queries", "click|view", "count_distinct", "query", window=10 * MINUTE),
    aggregate("different_times", "view", "count_distinct", "timestamp"),
    aggregate("different_ratios", "view", "count_distinct", "price/quantity", window=10 * MINUTE),
    aggregate("interest", "click|view", "decayed_sum", span=7 * MINUTE),
    aggregate("worth", "view", "decayed_sum", "price-1", window=HOUR, hop=5 * MINUTE, span=HOUR),
    aggregate("burst", "view", "zscore", window=HOUR, hop=5 * MINUTE, span=15 * MINUTE),
    aggregate("burst_short", "click|view", "zscore", window=10 * MINUTE, span=5 * MINUTE),
    aggregate("views_ever", "view", "count"),
    aggregate("spent_ever", "view", "sum", "price"),
    aggregate("mean_ever", "click|view", "mean", "price-quantity"),
    aggregate("cheapest_ever", "view", "min", "price"),
    aggregate("dearest_ever", "view", "max", "price"),
    aggregate("session_count", "click|view", "session_count"),
    aggregate("session_seconds", "click|view", "session_seconds"),
)  # fmt: skip


FLOATS = ("sum", "mean", "std", "decayed_sum", "zscore")


def view(*aggregates: AggregateSpec, ttl_us: int | None = None) -> ViewSpec:
    return ViewSpec(
        "user_activity", "user_id", "user_key", aggregates, ttl_us, session_gap_us=30 * MINUTE, lateness_us=2 * HOUR
    )


def event(event_id: str, at: int, type: str = "view", key: str | None = "u1", **columns: Any) -> oracles.Event:
    return {
        "event_id": event_id,
        "type": type,
        "user_key": key,
        "timestamp": at,
        "received_at": at,
        "item_id": "i",
    } | columns


def frame(events: list[oracles.Event]) -> pl.DataFrame:
    rows = [{name: e.get(name) for name in RECORD_SCHEMA.names} for e in events]
    return pl.DataFrame(pa.Table.from_pylist(rows, schema=RECORD_SCHEMA))


def ask(
    spec: ViewSpec, events: list[oracles.Event], *pairs: tuple[str | None, int], **options: Any
) -> dict[str, list[Any]]:
    keys, times = [key for key, _ in pairs], np.array([t for _, t in pairs], dtype=np.int64)
    return dict(as_of(spec, frame(events), keys, times, **options).to_pydict())


# Times sit on a coarse grid round the hops and the gap, so that ties and boundaries are common.
GRID = st.builds(
    lambda minute, shift: NOON + minute * MINUTE + shift,
    st.sampled_from([0, 1, 2, 5, 9, 10, 11, 29, 30, 31, 59, 60, 61, 90, 150]),
    st.sampled_from([0, 0, -1, 1, 17]),
)
EVENTS = st.lists(
    st.fixed_dictionaries(
        {
            "type": st.sampled_from(["view", "view", "click", "purchase", "like"]),
            "user_key": st.sampled_from(["u1", "u1", "u2", None]),
            "timestamp": GRID,
            "delay": st.sampled_from([0, 0, 1, MINUTE, 2 * HOUR, 2 * HOUR + 1]),
            "item_id": st.sampled_from(["a", "b", "c"]),
            "query": st.sampled_from([None, "shoes", ""]),
            "price": st.sampled_from([None, 0.1, 0.2, 0.3, 7.0, 1e15]),
            "quantity": st.sampled_from([None, 1, 3]),
        }
    ),
    max_size=25,
)
PAIRS = st.lists(
    st.tuples(st.sampled_from(["u1", "u2", "never"]), st.one_of(GRID, st.just(NOON - 30 * 24 * HOUR))),
    min_size=1,
    max_size=8,
)


def numbered(raw: list[dict[str, Any]], ids: list[int]) -> list[oracles.Event]:
    """Give drawn events unique ids, in an order of their own, and their time of arrival."""
    return [
        e | {"event_id": f"e{i:02}", "received_at": e["timestamp"] + e["delay"]} for e, i in zip(raw, ids, strict=True)
    ]


GENERATED = EVENTS.flatmap(lambda raw: st.permutations(range(len(raw))).map(lambda ids: numbered(raw, ids)))


def assert_equals_oracle(
    spec: ViewSpec, events: list[oracles.Event], pairs: list[tuple[str, int]], **options: Any
) -> None:
    arrived_only = options.get("arrived_only", False)
    answer = as_of(spec, frame(events), [key for key, _ in pairs], np.array([t for _, t in pairs]), **options)
    for one in spec.aggregates:
        assert answer.schema.field(one.name).type == arrow_type(one)
        for (key, t), got in zip(pairs, answer[one.name].to_pylist(), strict=True):
            known = [e for e in events if e["received_at"] <= t] if arrived_only else events
            expected = oracles.value(spec, one, known, key, t)
            if isinstance(expected, float) and one.function in FLOATS:
                tolerance = 1e-9 * oracles.scale(one, spec, known, key, t)
                assert got == pytest.approx(expected, rel=0, abs=tolerance), one.name
            else:
                assert got == expected, one.name


@settings(max_examples=60, deadline=None)
@given(GENERATED, PAIRS)
def test_every_function_equals_the_oracle_on_generated_events(
    events: list[oracles.Event], pairs: list[tuple[str, int]]
) -> None:
    assert_equals_oracle(view(*AGGREGATES), events, pairs)


@settings(max_examples=25, deadline=None)
@given(GENERATED)
def test_values_at_each_event_and_one_microsecond_later_equal_the_oracle(events: list[oracles.Event]) -> None:
    pairs = [("u1", e["timestamp"] + shift) for e in events for shift in (0, 1)]
    assert_equals_oracle(view(*AGGREGATES), events, pairs or [("u1", NOON)])


@settings(max_examples=25, deadline=None)
@given(GENERATED, PAIRS)
def test_a_ttl_ends_state_as_in_the_oracle(events: list[oracles.Event], pairs: list[tuple[str, int]]) -> None:
    assert_equals_oracle(view(*AGGREGATES, ttl_us=61 * MINUTE), events, pairs)


@settings(max_examples=25, deadline=None)
@given(GENERATED, PAIRS, st.sampled_from([None, 90 * MINUTE]), st.sampled_from([3, 4_000_000]))
def test_arrived_only_equals_the_oracle_over_what_had_arrived(
    events: list[oracles.Event], pairs: list[tuple[str, int]], ttl_us: int | None, copied: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batch_arrivals, "_MAX_COPIED_EVENTS", copied)
        assert_equals_oracle(view(*AGGREGATES, ttl_us=ttl_us), events, pairs, arrived_only=True)


def test_an_event_counts_one_microsecond_after_it_happened_and_not_before() -> None:
    spec = view(aggregate("views", "view", "count", window=10 * MINUTE))
    assert ask(spec, [event("a", NOON)], ("u1", NOON), ("u1", NOON + 1)) == {"views": [0, 1]}


def test_a_window_begins_at_the_floor_of_its_hop() -> None:
    spec = view(aggregate("views", "view", "count", window=10 * MINUTE))
    end = NOON + 10 * MINUTE
    assert ask(spec, [event("a", NOON)], ("u1", end + MINUTE - 1), ("u1", end + MINUTE)) == {"views": [1, 0]}


def test_events_at_one_time_are_listed_by_event_id() -> None:
    spec = view(aggregate("items", "view", "last_n", "item_id", n=2))
    events = [event("b", NOON, item_id="second"), event("c", NOON, item_id="third"), event("a", NOON, item_id="first")]
    assert ask(spec, events, ("u1", NOON + 1)) == {"items": [["second", "third"]]}


def test_a_session_lives_for_its_gap_and_counts_its_own_events() -> None:
    spec = view(aggregate("count", "view", "session_count"), aggregate("seconds", "view", "session_seconds"))
    events = [event("a", NOON), event("b", NOON + 31 * MINUTE), event("c", NOON + 61 * MINUTE)]
    end = NOON + 91 * MINUTE
    assert ask(spec, events, ("u1", end), ("u1", end + 1)) == {"count": [2, 0], "seconds": [1800.0, 0.0]}


def test_an_event_beyond_the_lateness_horizon_counts_but_is_in_no_session() -> None:
    spec = view(aggregate("views", "view", "count", window=10 * MINUTE), aggregate("count", "view", "session_count"))
    late = event("a", NOON, received_at=NOON + 2 * HOUR + 1)
    assert ask(spec, [late], ("u1", NOON + 1)) == {"views": [1], "count": [0]}


def test_a_null_expression_is_skipped_and_empty_windows_read_as_the_rules_say() -> None:
    spec = view(*AGGREGATES)
    empty = {
        "count": 0, "count_distinct": 0, "session_count": 0, "sum": 0.0, "decayed_sum": 0.0, "session_seconds": 0.0,
        "last_n": [], "last": None, "mean": None, "std": None, "min": None, "max": None, "zscore": None,
    }  # fmt: skip
    expected = {one.name: empty[one.function] for one in AGGREGATES}
    for events in ([], [event("a", NOON, key="u2", price=1.0)]):
        assert ask(spec, events, ("u1", NOON + 1), (None, NOON + 1)) == {name: [v, v] for name, v in expected.items()}


def test_only_the_features_asked_for_come_back_in_the_order_asked() -> None:
    answer = ask(view(*AGGREGATES), [event("a", NOON, price=2.0)], ("u1", NOON + 1), features=["cheapest", "views"])
    assert list(answer.items()) == [("cheapest", [2.0]), ("views", [1])]


def test_no_pairs_give_no_rows_of_the_right_types() -> None:
    table = as_of(view(*AGGREGATES), frame([event("a", NOON)]), [], np.zeros(0, np.int64))
    assert table.num_rows == 0
    assert table.schema.types == [arrow_type(one) for one in AGGREGATES]


def test_keys_without_times_are_refused() -> None:
    with pytest.raises(ValueError, match="2 keys but 1 times"):
        as_of(view(*AGGREGATES), frame([]), ["u1", "u2"], np.array([NOON]))


def test_a_small_sum_is_exact_after_a_huge_one_of_the_same_entity() -> None:
    spec = view(aggregate("spent", "purchase", "sum", "price", window=10 * MINUTE))
    events = [
        event("a", NOON, "purchase", price=1.7e308),
        event("b", NOON + 1, "purchase", price=1.7e308),
        event("c", NOON + HOUR, "purchase", price=0.1),
    ]
    assert ask(spec, events, ("u1", NOON + HOUR + 1)) == {"spent": [0.1]}


@settings(max_examples=25, deadline=None)
@given(GENERATED, PAIRS)
def test_different_values_beyond_the_bound_are_estimated_as_the_oracle_does(
    events: list[oracles.Event], pairs: list[tuple[str, int]]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        for module in (oracles, batch_counts):
            patch.setattr(module, "DISTINCT_BOUND", 2)
        assert_equals_oracle(view(*[one for one in AGGREGATES if one.function == "count_distinct"]), events, pairs)


def test_256_different_values_are_counted_and_5000_estimated_from_their_set_alone() -> None:
    spec = view(aggregate("items", "view", "count_distinct", "item_id", window=HOUR))
    few = [event(f"{n}", NOON + n, item_id=f"i{n % 256}") for n in range(600)]
    many = [event(f"{n}", NOON + n, item_id=f"i{n}") for n in range(5_000)]
    assert ask(spec, few, ("u1", NOON + MINUTE)) == {"items": [256]}
    estimate = ask(spec, many, ("u1", NOON + MINUTE))["items"][0]
    assert estimate == oracles.distinct([f"i{n}" for n in range(5_000)])
    assert abs(estimate - 5_000) < 0.2 * 5_000
    again = [event(f"{n}", NOON + n, item_id=f"i{n * 7_919 % 5_000}") for n in range(10_000)]
    assert ask(spec, again, ("u1", NOON + MINUTE))["items"][0] == estimate


def test_a_deviation_survives_a_mean_a_billion_times_as_large() -> None:
    spec = view(aggregate("spread", "view", "std", "price", window=HOUR))
    events = [event(str(n), NOON + n, price=1e9 + n % 2) for n in range(1_000)]
    assert ask(spec, events, ("u1", NOON + MINUTE))["spread"] == [pytest.approx(0.5, rel=1e-8)]


def test_a_decayed_sum_halves_with_each_half_life() -> None:
    spec = view(aggregate("interest", "view", "decayed_sum", "price", span=HOUR))
    events = [event("a", NOON, price=8.0), event("b", NOON + HOUR, price=4.0)]
    asked = [("u1", NOON + hours * HOUR) for hours in (1, 2, 3)]
    assert ask(spec, events, *asked) == {"interest": [4.0, 4.0, 2.0]}


def test_a_zscore_compares_the_newest_whole_bucket_with_those_before_it() -> None:
    spec = view(aggregate("burst", "view", "zscore", window=40 * MINUTE, hop=10 * MINUTE, span=10 * MINUTE))
    counts = [1, 2, 3, 9]  # of the four buckets before NOON; then one event that no whole bucket holds
    events = [
        event(f"{bucket}{n}", NOON + (bucket - 4) * 10 * MINUTE + n)
        for bucket in range(4)
        for n in range(counts[bucket])
    ]
    score = ask(spec, [*events, event("x", NOON)], ("u1", NOON + 9 * MINUTE))["burst"][0]
    assert score == pytest.approx((9 - 2) / (2 / 3) ** 0.5)
    assert ask(spec, events[-9:], ("u1", NOON)) == {"burst": [None]}


def test_lists_of_many_pairs_are_built_in_chunks_and_stay_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_tables, "_CHUNK_BYTES", 8)
    spec = view(aggregate("items", "view", "last_n", "item_id", n=2), aggregate("views", "view", "count", window=HOUR))
    events = [event(f"{n}", NOON + n, item_id=f"i{n}", received_at=NOON + n + n % 2 * 9) for n in range(9)]
    pairs = [("u1", NOON + n) for n in (9, 0, 4, 2, 7)]
    expected = {"items": [["i7", "i8"], [], ["i2", "i3"], ["i0", "i1"], ["i5", "i6"]], "views": [9, 0, 4, 2, 7]}
    assert ask(spec, events, *pairs) == expected
    arrived = {"items": [["i6", "i8"], [], ["i0", "i2"], ["i0"], ["i4", "i6"]], "views": [5, 0, 2, 1, 4]}
    assert ask(spec, events, *pairs, arrived_only=True) == arrived
