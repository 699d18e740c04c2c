"""The incremental engine equals the naive oracle (laws 1 and 2) in whatever order events arrive, through packing and unpacking."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.aggregates.fold import ViewState, add_to_sessions, events_of
from headrace.aggregates.layout import Layout, StateMismatchError
from headrace.aggregates.read import StreamRows, TooEarlyError
from headrace.aggregates.spec import ViewSpec
from tests import oracles
from tests.unit.aggregates.test_batch import AGGREGATES, GENERATED, HOUR, MINUTE, NOON, aggregate, event, frame, view

KEYS = ["u1", "u2", "never"]


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
    values = StreamRows(Layout(spec), rows).values(t_us)
    plain = {name: column.tolist() if isinstance(column, np.ndarray) else column for name, column in values.items()}
    return {name: [None if value != value else value for value in column] for name, column in plain.items()}


@settings(max_examples=80, deadline=None)
@given(GENERATED, st.randoms(use_true_random=False), st.integers(1, 7), st.sampled_from([None, 61 * MINUTE]))
def test_every_function_equals_the_oracle_at_every_later_time(
    events: list[oracles.Event], random: Any, size: int, ttl_us: int | None
) -> None:
    spec = view(*AGGREGATES, ttl_us=ttl_us)
    random.shuffle(events)
    rows = fold(spec, *[events[start : start + size] for start in range(0, len(events), size)])
    newest = StreamRows(Layout(spec), rows).newest_us or NOON
    for later in (1, MINUTE, 10 * MINUTE, 11 * MINUTE, 30 * MINUTE, 30 * MINUTE + 1, HOUR, 62 * MINUTE, 30 * 24 * HOUR):
        values = read(spec, rows, newest + later)
        for one in spec.aggregates:
            for key, got in zip(KEYS, values[one.name], strict=True):
                expected = oracles.value(spec, one, events, key, newest + later)
                if isinstance(expected, float) and one.function in ("sum", "mean"):
                    bound = 1e-9 * oracles.scale(one, spec, events, key, newest + later)
                    assert math.isclose(got, expected, rel_tol=0, abs_tol=bound), one.name
                else:
                    assert got == expected, one.name


def test_windows_decay_with_no_event_arriving() -> None:
    spec = view(aggregate("views_10m", "view", "count", window=10 * MINUTE))
    rows = fold(spec, [event("a", NOON), event("b", NOON + MINUTE)])
    counts = [read(spec, rows, NOON + minutes * MINUTE + 1)["views_10m"][0] for minutes in (1, 10, 11, 12)]
    assert counts == [2, 2, 1, 0]


def test_a_read_at_the_newest_event_is_refused() -> None:
    spec = view(aggregate("views_10m", "view", "count", window=10 * MINUTE))
    rows = fold(spec, [event("a", NOON)])
    with pytest.raises(TooEarlyError, match="give a time after"):
        read(spec, rows, NOON)


def test_a_row_of_another_definition_is_never_misread() -> None:
    ten_minutes = view(aggregate("views", "view", "count", window=10 * MINUTE))
    an_hour = view(aggregate("views", "view", "count", window=HOUR))
    with pytest.raises(StateMismatchError, match="headrace backfill"):
        StreamRows(Layout(an_hour), fold(ten_minutes, [event("a", NOON)]))


def test_an_event_too_old_for_its_ring_changes_no_count() -> None:
    spec = view(aggregate("views", "view", "count", window=10 * MINUTE))
    rows = fold(spec, [event("a", NOON)], [event("b", NOON - 11 * MINUTE)])
    assert read(spec, rows, NOON + 1)["views"] == [1, 0, 0]


def test_an_event_between_two_sessions_joins_them() -> None:
    gap = 30 * MINUTE
    sessions = add_to_sessions(add_to_sessions([], 0, gap), 50 * MINUTE, gap)
    assert sessions == [(0, 0, 1), (50 * MINUTE, 50 * MINUTE, 1)]
    assert add_to_sessions(sessions, 25 * MINUTE, gap) == [(0, 50 * MINUTE, 3)]
