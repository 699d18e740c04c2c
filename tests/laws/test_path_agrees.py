"""Laws 1 and 2 on the whole path: a log, both flows as processes, a Valkey, a Delta lake, and Feast.

One stack serves all tests here; each generated stream has people and items of its own.
"""

import random
import sys
from collections.abc import Callable, Iterator
from datetime import timedelta
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import polars as pl
import pytest
from feast import FeatureStore
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from headrace.aggregates import spec as sp
from headrace.aggregates.spec import ViewSpec
from headrace.clock import from_micros, system_clock
from headrace.ops.child import Child, environment_of
from headrace.ops.ports import free_port
from headrace.stores.feature_store import open_feature_store
from tests.conftest import wait_until
from tests.laws.agreement import Truth, plain
from tests.laws.definitions import WINDOWS
from tests.laws.site import Site
from tests.laws.streams import AGES, DAY, MINUTE, NOON, SECOND, crowd, first_deliveries, logs, renamed
from tests.oracles import Event

_EXAMPLES = count()
USER_EVERY, ITEM_EVERY = "user_every", "item_every"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Both flows at work."""
    site = Site(tmp_path_factory.mktemp("path"))
    site.apply(every_function=True)
    site.start("features")
    site.start("lake")
    yield site
    site.close()


@pytest.fixture(scope="module")
def store(site: Site) -> FeatureStore:
    return open_feature_store(site.settings)


def take_in(site: Site, records: list[Event], entry: int) -> None:
    site.append(records, entry)
    wait_until(site.at_the_end, timeout_s=60)


def features_of(spec: ViewSpec) -> list[str]:
    return [f"{spec.name}:{aggregate.name}" for aggregate in spec.aggregates]


def join_offline(
    store: FeatureStore, specs: list[ViewSpec], users: list[str], items: list[str], times: list[int]
) -> pl.DataFrame:
    """Feast's training join: each user and each item at each time, users and items side by side."""
    rows = max(len(users), len(items))
    labels = pl.DataFrame(
        [
            {
                "user_id": users[row % len(users)],
                "item_id": items[row % len(items)],
                "event_timestamp": from_micros(t_us),
            }
            for t_us in times
            for row in range(rows)
        ]
    )
    features = [feature for spec in specs for feature in features_of(spec)]
    answer = pl.from_arrow(store.get_historical_features(labels, features, full_feature_names=True).to_arrow())
    assert isinstance(answer, pl.DataFrame)
    assert answer.select(labels.columns).equals(labels)
    return answer


def check_path(site: Site, store: FeatureStore, log: list[Event], entry: int, ages: list[int]) -> int:
    """Returns how many values said something."""
    log = renamed(log, f"x{next(_EXAMPLES)}-")
    take_in(site, log, entry)
    specs, events, reader = site.definitions.streams, first_deliveries(log), site.reader()
    truths = {name: Truth(spec, events) for name, spec in specs.items()}
    newest_us, said = max([NOON, *(event["timestamp"] for event in events)]), 0
    keys = {name: [*truth.keys, "never"] for name, truth in truths.items()}
    for name, truth in truths.items():
        rows = reader.fetch({name: keys[name]}).streams[name]
        for age in ages:
            said += truth.check(
                "online read", [(key, newest_us + age) for key in keys[name]], rows.values(newest_us + age)
            )
    times = [newest_us + age for age in ages] + [newest_us, NOON + 30 * MINUTE]
    answer = join_offline(store, list(specs.values()), keys[USER_EVERY], keys[ITEM_EVERY], times)
    for name, truth in truths.items():
        moments = answer["event_timestamp"].dt.timestamp("us").to_list()
        pairs = list(zip(answer[specs[name].join_key].to_list(), moments, strict=True))
        columns = {
            aggregate.name: answer[f"{name}__{aggregate.name}"].to_list() for aggregate in specs[name].aggregates
        }
        said += truth.check("offline join", pairs, columns)
    return said


EXAMPLE = (
    logs(max_events=40),
    st.integers(1, 12),
    st.lists(st.sampled_from(AGES), min_size=1, max_size=3, unique=True),
)
# Each example adds to one log, so a failing one is shown as it was found: shrinking it would take minutes.
GENERATED: Any = settings(
    max_examples=6,
    deadline=None,
    phases=[Phase.generate],
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)


@GENERATED
@given(*EXAMPLE)
def test_oracle_flow_online_read_and_offline_join_agree(
    site: Site, store: FeatureStore, log: list[Event], entry: int, ages: list[int]
) -> None:
    check_path(site, store, log, entry, ages)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@settings(GENERATED, max_examples=150)
@given(*EXAMPLE)
def test_oracle_flow_online_read_and_offline_join_agree_on_many_streams(
    site: Site, store: FeatureStore, log: list[Event], entry: int, ages: list[int]
) -> None:
    check_path(site, store, log, entry, ages)


def test_thousands_of_entities_agree_and_what_came_too_late_is_counted(site: Site, store: FeatureStore) -> None:
    """All of them are taken in; every fortieth is compared. A sixth of the events is late beyond the horizon."""
    log = renamed(crowd(events=6_000, users=4_000, items=2_000, seed=3), "crowd-")
    horizon_us = round(site.settings.lateness_horizon_s * SECOND)
    before = site.counted("late")
    take_in(site, log, 1_000)
    late = sum(event["received_at"] - event["timestamp"] > horizon_us for event in log)
    assert late > 500
    assert site.counted("late") - before == late
    newest_us = max(event["timestamp"] for event in log)
    for name, spec in site.definitions.streams.items():
        truth = Truth(spec, log)
        assert len(truth.keys) > 1_000
        keys = truth.keys[::40]
        said, pairs = 0, [(key, newest_us + age) for age in (1, 10 * MINUTE) for key in keys]
        rows = site.reader().fetch({name: keys}).streams[name]
        for t_us in (newest_us + 1, newest_us + 10 * MINUTE):
            said += truth.check("online read", [(key, t_us) for key in keys], rows.values(t_us))
        labels = pl.DataFrame(
            {spec.join_key: [key for key, _ in pairs], "event_timestamp": [from_micros(t_us) for _, t_us in pairs]}
        )
        joined = store.get_historical_features(labels, features_of(spec)).to_arrow().to_pydict()
        assert truth.check("offline join", pairs, joined) == said
        assert (said > len(keys)) or spec.ttl_us


def recent_events(prefix: str, seed: int) -> list[Event]:
    """Two busy days of five people until some seconds ago, in order."""
    rng, now_us = random.Random(seed), system_clock()
    ages = sorted((int(2 * DAY * rng.random() ** 6) + 5 * SECOND for _ in range(400)), reverse=True)
    return [
        {
            "event_id": f"{prefix}e{number:04}",
            "type": rng.choice(["view", "view", "click", "purchase"]),
            "user_key": (user := f"{prefix}u{rng.randrange(5)}"),
            "user_id": user,
            "item_id": f"{prefix}i{rng.randrange(8)}",
            "timestamp": now_us - age,
            "received_at": now_us - age,
            "price": rng.choice([0.1, 0.25, 3.0]),
            "quantity": rng.randrange(1, 5),
        }
        for number, age in enumerate(ages)
    ]


def read(site: Site, spec: ViewSpec, keys: list[str], t_us: int) -> dict[str, list[Any]]:
    """Our own reader's answer."""
    values = site.reader().fetch({spec.name: keys}).streams[spec.name].values(t_us)
    return {name: plain(column) for name, column in values.items()}


def assert_same_at_the_same_time(
    site: Site, spec: ViewSpec, keys: list[str], ask: Callable[[list[str]], dict[str, list[Any]]]
) -> int:
    """What Feast answers *now* against our reader just before and just after: between the two where a value decays, else the same.

    Asked again where time moved a window in between. Returns the time just before.
    """
    decaying = [aggregate.name for aggregate in spec.aggregates if aggregate.function == sp.DECAYED_SUM]
    outcome: dict[str, Any] = {}

    def unmoved() -> bool:
        outcome["t_us"] = system_clock()
        before = read(site, spec, keys, outcome["t_us"])
        answer = ask(keys)
        after = read(site, spec, keys, system_clock())
        outcome["answer"] = {name: plain(answer[name]) for name in before}
        outcome["before"], outcome["after"] = before, after
        return all(before[name] == after[name] for name in before if name not in decaying)

    wait_until(unmoved, timeout_s=60)
    for name, values in outcome["answer"].items():
        if name not in decaying:
            assert values == outcome["before"][name], name
            continue
        for value, *bounds in zip(values, outcome["before"][name], outcome["after"][name], strict=True):
            assert min(bounds) - 1e-9 <= value <= max(bounds) + 1e-9, name
    return int(outcome["t_us"])


def test_feasts_sdk_our_reader_and_the_offline_join_agree_at_the_same_time(site: Site, store: FeatureStore) -> None:
    events = recent_events("sdk-", seed=1)
    take_in(site, events, 50)
    for spec in site.definitions.streams.values():
        truth = Truth(spec, events)
        keys = [*truth.keys, "never"]

        def ask(keys: list[str], spec: ViewSpec = spec) -> dict[str, list[Any]]:
            answer = store.get_online_features(features_of(spec), [{spec.join_key: key} for key in keys]).to_dict()
            return {name: answer[name] for name in answer if name != spec.join_key}

        t_us = assert_same_at_the_same_time(site, spec, keys, ask)
        pairs = [(key, t_us) for key in keys]
        assert truth.check("online read", pairs, read(site, spec, keys, t_us)) > len(keys)
        labels = pl.DataFrame({spec.join_key: keys, "event_timestamp": [from_micros(t_us)] * len(keys)})
        joined = store.get_historical_features(labels, features_of(spec)).to_arrow().to_pydict()
        truth.check("offline join", pairs, joined)


@pytest.mark.slow
def test_feasts_feature_server_agrees_with_our_reader(site: Site) -> None:
    events = recent_events("server-", seed=2)
    take_in(site, events, 50)
    port = free_port()
    feast = Path(sys.executable).parent / "feast"
    command = [str(feast), "-c", str(site.settings.feature_repo), "serve", "--host", "127.0.0.1", "--port", str(port)]
    server = Child("feast", command, environment_of(site.settings), site.directory / "feast.log")
    server.start()
    url = f"http://127.0.0.1:{port}"

    def healthy() -> bool:
        assert server.is_running(), server.failure("ended")
        try:
            return httpx.get(f"{url}/health").status_code == 200
        except httpx.TransportError:
            return False

    try:
        wait_until(healthy, timeout_s=120)
        for spec in site.definitions.streams.values():
            keys = [*Truth(spec, events).keys, "never"]

            def ask(keys: list[str], spec: ViewSpec = spec) -> dict[str, list[Any]]:
                body = {"features": features_of(spec), "entities": {spec.join_key: keys}}
                answer = httpx.post(f"{url}/get-online-features", json=body, timeout=30).raise_for_status().json()
                names = answer["metadata"]["feature_names"]
                return {name: result["values"] for name, result in zip(names, answer["results"], strict=True)}

            assert_same_at_the_same_time(site, spec, keys, ask)
    finally:
        server.terminate()
        server.wait(60)


def count_of_views(spec: ViewSpec, window: str) -> str:
    window_us = WINDOWS[window][0] // timedelta(microseconds=1)
    found = (a for a in spec.aggregates if (a.function, a.types, a.expression) == (sp.COUNT, ("view",), None))
    return next(aggregate.name for aggregate in found if aggregate.window_us == window_us)


def view_now(key: str) -> Event:
    now_us = system_clock()
    ids = {"event_id": f"{key}-e", "user_key": key, "user_id": key, "item_id": f"{key}-i"}
    return {"type": "view", "timestamp": now_us, "received_at": now_us} | ids


def test_a_user_who_stops_acting_has_no_views_eleven_minutes_later_though_no_event_came(site: Site) -> None:
    """Law 2, at a later time of the reader's clock. The item view counts in windows of ten minutes."""
    event = view_now("stops")
    take_in(site, [event], 1)
    spec = site.definitions.streams[ITEM_EVERY]
    rows = site.reader().fetch({ITEM_EVERY: ["stops-i"]}).streams[ITEM_EVERY]
    name, end = (
        next(a.name for a in spec.aggregates if a.window_us == 10 * MINUTE and a.function == sp.COUNT),
        site.log.end(),
    )
    at_us = event["timestamp"]
    assert [rows.values(at_us + age)[name].tolist() for age in (1, 10 * MINUTE, 11 * MINUTE)] == [[1], [1], [0]]
    assert site.log.end() == end


def test_windows_run_empty_in_real_time_while_nothing_arrives(site: Site, store: FeatureStore) -> None:
    """Law 2 through Feast's own API, in a window of three seconds."""
    take_in(site, [view_now("waits")], 1)
    name = count_of_views(site.definitions.streams[USER_EVERY], "3s")

    def views() -> int:
        answer = store.get_online_features([f"{USER_EVERY}:{name}"], [{"user_id": "waits"}]).to_dict()
        return int(answer[name][0])

    end = site.log.end()
    wait_until(lambda: views() == 1)
    wait_until(lambda: views() == 0)
    assert site.log.end() == end
