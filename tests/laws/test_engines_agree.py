"""Law 1, the as-of law: for any entity, any time and any feature, training gets what serving would have returned.

The engines in memory, on many generated streams: oracle == incremental state, packed and loaded between micro-batches == as-of batch.
The same through a real log, store and lake: `test_path_agrees.py`.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headrace.aggregates.batch import as_of
from headrace.aggregates.columns import events_of
from headrace.aggregates.fold import ViewState
from headrace.aggregates.layout import Layout
from headrace.aggregates.read import StreamRows
from headrace.aggregates.spec import COUNT_DISTINCT, DISTINCT_BOUND, FUNCTIONS, SESSION_COUNT, AggregateSpec, ViewSpec
from tests.laws import definitions
from tests.laws.agreement import Truth
from tests.laws.streams import (
    AGES,
    DAY,
    HOUR,
    MINUTE,
    MOMENTS,
    NOON,
    SECOND,
    bridged,
    crawl,
    crowd,
    first_deliveries,
    frame,
    logs,
)
from tests.oracles import Event

VIEWS = definitions.compiled()


def test_every_function_is_asked_about() -> None:
    assert set(definitions.COLUMNS) == FUNCTIONS
    missing = definitions.MISSING - {definitions.ALL_HISTORY}
    for spec in VIEWS:
        assert {aggregate.function for aggregate in spec.aggregates} == FUNCTIONS - missing


class Store:
    """The incremental engine over a store that is a dictionary: rows are packed after each micro-batch."""

    def __init__(self, spec: ViewSpec) -> None:
        self.layout = Layout(spec)
        self.rows: dict[str, bytes] = {}
        self._state = ViewState(self.layout, capacity=1)

    def take(self, events: list[Event], restart: bool) -> None:
        """Fold one micro-batch; after a restart, into rows that are loaded again."""
        spec = self.layout.spec
        if restart:
            self._state = ViewState(self.layout, capacity=1)
        batch = events_of(spec, frame(events))
        for key in self._state.missing(batch[spec.entity_column]):
            self._state.load(key, self.rows.get(key))
        self._state.fold(batch)
        self.rows |= self._state.take_changed()

    def read(self, keys: list[str]) -> StreamRows:
        return StreamRows(self.layout, [self.rows.get(key) for key in keys])


def agree(spec: ViewSpec, log: list[Event], size: int, cut: int, ages: list[int], moments: list[int]) -> int:
    """Micro-batches of `size` events; compares after batch `cut` and after the last one, at each age, and as-of at each moment.

    Returns how many values said something.
    """
    store, seen, said = Store(spec), [], 0
    events = first_deliveries(log)
    batches = [events[start : start + size] for start in range(0, len(events), size)] or [[]]
    for number, batch in enumerate(batches):
        store.take(batch, restart=number % 3 == 1)
        seen += batch
        if number in (cut, len(batches) - 1):
            truth = Truth(spec, seen)
            keys = [*truth.keys, "never"]
            rows = store.read(keys)
            times = [(rows.newest_us or NOON) + age for age in ages]
            for t_us in times:
                said += truth.check("online read", [(key, t_us) for key in keys], rows.values(t_us))
            pairs = [(key, t_us) for key in keys for t_us in [*times, *moments]]
            said += truth.check("as-of engine", pairs, recompute(spec, seen, pairs))
    return said


def recompute(spec: ViewSpec, events: list[Event], pairs: list[tuple[str, int]]) -> dict[str, list[Any]]:
    keys, times = [key for key, _ in pairs], np.array([t_us for _, t_us in pairs])
    return dict(as_of(spec, frame(events), keys, times).to_pydict())


GENERATED = (
    logs(),
    st.integers(1, 9),
    st.integers(0, 5),
    st.lists(st.sampled_from(AGES), min_size=1, max_size=3, unique=True),
    st.lists(MOMENTS, max_size=2),
)


@pytest.mark.parametrize("spec", VIEWS, ids=lambda spec: spec.name)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(*GENERATED)
def test_the_engines_agree_on_generated_streams(
    spec: ViewSpec, log: list[Event], size: int, cut: int, ages: list[int], moments: list[int]
) -> None:
    agree(spec, log, size, cut, ages, moments)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("spec", VIEWS, ids=lambda spec: spec.name)
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(*GENERATED)
def test_the_engines_agree_on_hundreds_of_generated_streams(
    spec: ViewSpec, log: list[Event], size: int, cut: int, ages: list[int], moments: list[int]
) -> None:
    agree(spec, log, size, cut, ages, moments)


@pytest.mark.parametrize("every", [20, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("spec", VIEWS, ids=lambda spec: spec.name)
def test_the_engines_agree_on_thousands_of_keys(spec: ViewSpec, every: int) -> None:
    """All of them are folded; each of `every` is compared, the busiest first."""
    log = crowd(events=12_000, users=6_000, items=3_000, seed=1)
    store = Store(spec)
    for number, start in enumerate(range(0, len(log), 2_500)):
        store.take(log[start : start + 2_500], restart=number == 2)
    truth = Truth(spec, log)
    assert len(truth.keys) > 2_000
    keys = truth.keys[::every]
    rows = store.read(keys)
    pairs = [(key, rows.newest_us + 1) for key in keys]
    truth.check("online read", pairs, rows.values(rows.newest_us + 1))
    pairs += [(key, NOON + DAY) for key in keys]
    assert truth.check("as-of engine", pairs, recompute(spec, log, pairs)) > 100


@pytest.mark.parametrize("spec", VIEWS, ids=lambda spec: spec.name)
def test_the_engines_agree_beyond_the_bound_of_distinct_values_and_back_below_it(spec: ViewSpec) -> None:
    """A key with many times the bound of different values in the window, which then runs empty."""
    log = crawl(events=1_500, seconds=1_200, seed=2)
    distinct = [one for one in spec.aggregates if one.function == COUNT_DISTINCT]
    store = Store(replace(spec, aggregates=tuple(distinct)))
    for number, start in enumerate(range(0, len(log), 170)):
        store.take(log[start : start + 170], restart=number % 4 == 3)
    truth = Truth(store.layout.spec, log)
    rows = store.read(["crawler"])
    pairs = [("crawler", rows.newest_us + age) for age in (1, 2 * SECOND, 5 * MINUTE, 9 * MINUTE, 10 * MINUTE, HOUR)]
    for key, t_us in pairs:
        truth.check("online read", [(key, t_us)], rows.values(t_us))
    truth.check("as-of engine", pairs, recompute(store.layout.spec, log, pairs))
    values = {truth.value(one, *pair) for one in distinct for pair in pairs}
    assert max(values) > 2 * DISTINCT_BOUND
    assert any(0 < value <= DISTINCT_BOUND for value in values)


@pytest.mark.parametrize("seed", [1, 2])
def test_the_engines_agree_on_a_session_that_late_events_join_into_one(seed: int) -> None:
    """Runs of events are kept apart for as long as one in time may still come between them."""
    log = bridged(events=48, gap_us=30 * MINUTE, seed=seed)
    assert all(event["received_at"] - event["timestamp"] <= VIEWS[0].lateness_us for event in log)
    assert agree(VIEWS[0], log, size=3, cut=5, ages=[1, 30 * MINUTE], moments=[]) > 0
    assert Truth(VIEWS[0], log).value(longest_session(VIEWS[0]), "bridge", log[-1]["received_at"]) == 48


def longest_session(spec: ViewSpec) -> AggregateSpec:
    return next(one for one in spec.aggregates if one.function == SESSION_COUNT and one.types == ("view",))
