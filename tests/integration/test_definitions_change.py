"""Changing a definition is safe: until `headrace backfill` has rebuilt the state, the old one goes on by the definition that made it."""

from pathlib import Path

import numpy as np
import pytest

from flows.worker import Worker
from headrace.aggregates.fold import PackedRows
from headrace.identity import shard_of
from headrace.ops.backfill import backfill
from headrace.ops.verify import VerifyError, verify
from headrace.settings import Settings
from headrace.stores import exchange
from headrace.stores.commits import SentCommits, ShardCommit
from headrace.stores.crew import Crew
from headrace.stores.definitions import load_definitions
from headrace.stores.exchange import EXCHANGE_KEY
from headrace.stores.redis_client import connect
from headrace.stores.shards import OwnedShard, read_status
from headrace.stores.state_definitions import (
    ExchangedError,
    StaleStateError,
    check_state,
    definitions_to_fold,
    drop_views,
    state_definitions,
)
from tests import oracles
from tests.integration.small_repo import (
    append_events,
    apply_views,
    assert_state_equals_oracle,
    feature,
    make_events,
    make_settings,
    newest_of,
    open_reader,
    read_values,
    run_flow,
    run_lake,
    stream_view,
)

EVENTS = make_events(120)
LATER = make_events(40, seed=2, first=1_000, start_us=newest_of(EVENTS) + 60_000_000)
USERS = [f"u{number}" for number in range(8)]


@pytest.fixture
def settings(tmp_path: Path, valkey: str) -> Settings:
    """A store and a lake that hold EVENTS, by one view with one window of ten minutes."""
    settings = make_settings(tmp_path, valkey)
    apply_views(settings, stream_view("user_activity", feature("views", "view", minutes=10)))
    append_events(settings, EVENTS)
    run_flow(settings)
    run_lake(settings)
    return settings


def test_a_changed_window_serves_by_the_old_definition_until_the_backfill_ends(settings: Settings) -> None:
    running, t_us = open_reader(settings), newest_of(EVENTS) + 1
    old = read_values(settings, "user_activity", USERS, t_us, running)
    assert sum(old["views"]) > 0
    apply_views(settings, stream_view("user_activity", feature("views", "view", minutes=60)))

    assert read_values(settings, "user_activity", USERS, t_us, running) == old
    assert read_values(settings, "user_activity", USERS, t_us) == old  # a reader that starts now
    assert state_definitions(connect(settings), settings).waiting == ("user_activity.views",)
    append_events(settings, LATER)
    run_flow(settings)  # and so does a flow that starts now
    assert_state_equals_oracle(settings, EVENTS + LATER)
    assert (
        state_definitions(connect(settings), settings).streams["user_activity"].aggregates[0].window_us == 600_000_000
    )

    run_lake(settings)
    backfill(settings)
    t_us = newest_of(LATER) + 1
    new = read_values(settings, "user_activity", USERS, t_us)
    assert sum(new["views"]) > sum(old["views"])
    assert read_values(settings, "user_activity", USERS, t_us, running) == new
    assert state_definitions(connect(settings), settings).waiting == ()
    assert_state_equals_oracle(settings, EVENTS + LATER)
    run_flow(settings)
    assert verify(settings, as_of_us=t_us).ok


def test_a_feature_that_the_state_does_not_have_is_named_and_the_others_are_served(settings: Settings) -> None:
    t_us = newest_of(EVENTS) + 1
    old = read_values(settings, "user_activity", USERS, t_us)
    more = [feature("views", "view", minutes=10), feature("spent", "purchase.price", "sum", minutes=10)]
    store = apply_views(settings, stream_view("user_activity", *more))
    snapshot = open_reader(settings).fetch({"user_activity": USERS})
    assert snapshot.waiting == ("user_activity.spent",)
    assert {name: list(values) for name, values in snapshot.streams["user_activity"].values(t_us).items()} == old
    answer = store.get_online_features(["user_activity:views", "user_activity:spent"], [{"user_id": "u1"}]).to_dict()
    assert answer["spent"] == [None]
    assert answer["views"] == [0]  # by now ten minutes have passed
    report = verify(settings, as_of_us=t_us)
    assert (report.ok, report.waiting_for_backfill) == (True, ["user_activity.spent"])

    backfill(settings)
    assert open_reader(settings).fetch({"user_activity": USERS}).waiting == ()
    assert_state_equals_oracle(settings, EVENTS)


def test_a_new_view_waits_for_the_backfill_and_is_never_half_filled(settings: Settings) -> None:
    views = [
        stream_view("user_activity", feature("views", "view")),
        stream_view("item_clicks", feature("clicks", "click"), of="item"),
    ]
    store = apply_views(settings, *views)
    append_events(settings, LATER)
    run_flow(settings)
    assert read_values(settings, "item_clicks", ["i1"], newest_of(LATER) + 1) == {}
    assert store.get_online_features(["item_clicks:clicks"], [{"item_id": "i1"}]).to_dict()["clicks"] == [None]
    assert_state_equals_oracle(settings, EVENTS + LATER)
    run_lake(settings)
    backfill(settings)
    run_flow(settings)
    assert set(state_definitions(connect(settings), settings).streams) == {"user_activity", "item_clicks"}
    assert_state_equals_oracle(settings, EVENTS + LATER)


def test_a_removed_view_loses_its_rows_and_the_others_keep_theirs(settings: Settings) -> None:
    both = [
        stream_view("user_activity", feature("views", "view")),
        stream_view("item_clicks", feature("clicks", "click"), of="item"),
    ]
    apply_views(settings, *both)
    backfill(settings)
    assert row_views(settings) == {"user_activity", "item_clicks"}
    apply_views(settings, both[0])
    assert row_views(settings) == {"user_activity"}
    append_events(settings, LATER)
    run_flow(settings)
    assert row_views(settings) == {"user_activity"}
    assert_state_equals_oracle(settings, EVENTS + LATER)


def test_a_renamed_view_is_a_removed_one_and_a_new_one(settings: Settings) -> None:
    apply_views(settings, stream_view("shopper", feature("views", "view", minutes=10)))
    assert row_views(settings) == set()
    append_events(settings, LATER)
    run_flow(settings)
    assert row_views(settings) == set()
    run_lake(settings)
    backfill(settings)
    assert row_views(settings) == {"shopper"}
    assert_state_equals_oracle(settings, EVENTS + LATER)


def test_a_flow_that_folds_a_removed_view_cannot_write_it_again(settings: Settings) -> None:
    client = connect(settings)
    flow = OwnedShard(client, 0, "a flow", 60_000)
    flow.acquire(force=True)
    drop_views(client, settings, ["user_activity"])
    row = PackedRows(["u1"], b"row", np.array([0, 3]))
    assert SentCommits(
        client, [(flow, ShardCommit({"user_activity": [row]}, {}, {}))], {"user_activity": 1}
    ).finish() == [flow]
    assert row_views(settings) == set()


def test_a_view_removed_while_no_server_runs_is_folded_on_until_its_rows_are_dropped(settings: Settings) -> None:
    both = [stream_view("user_activity", feature("views", "view")), stream_view("clicks", feature("clicks", "click"))]
    apply_views(settings, *both)
    backfill(settings)
    nowhere = settings.model_copy(update={"redis_url": "redis://127.0.0.1:1"})
    apply_views(nowhere, both[0])
    append_events(settings, LATER)
    run_flow(settings)
    assert_state_equals_oracle(settings, EVENTS + LATER)  # of both: nothing that a shard names is ever out of date
    assert row_views(settings) == {"user_activity", "clicks"}
    run_lake(settings)
    backfill(settings)
    assert row_views(settings) == {"user_activity"}


def test_definitions_may_change_freely_while_nothing_has_happened(tmp_path: Path, valkey: str) -> None:
    settings = make_settings(tmp_path, valkey)
    apply_views(settings, stream_view("user_activity", feature("views", "view", minutes=10)))
    run_flow(settings)  # commits that it has read nothing
    apply_views(settings, stream_view("shopper", feature("views", "view", minutes=60)))
    append_events(settings, EVENTS)
    run_flow(settings)
    assert set(state_definitions(connect(settings), settings).streams) == {"shopper"}
    assert_state_equals_oracle(settings, EVENTS)


def test_rows_of_two_states_in_one_read_are_each_read_by_their_own(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the middle of an exchange one shard is new and the other old."""
    reader, t_us = open_reader(settings), newest_of(EVENTS) + 1
    old = read_values(settings, "user_activity", USERS, t_us, reader)
    more = [feature("views", "view", minutes=60), feature("items", "view.item_id", "last_n(3)", minutes=None)]
    apply_views(settings, stream_view("user_activity", *more))
    stop_in_mid_exchange(settings, monkeypatch)

    now = read_values(settings, "user_activity", USERS, t_us)
    spec = load_definitions(settings).streams["user_activity"]
    in_new = [shard_of(user, settings.shards) == 0 for user in USERS]
    assert True in in_new
    assert False in in_new
    for place, (user, is_new) in enumerate(zip(USERS, in_new, strict=True)):
        expected = [oracles.value(spec, aggregate, EVENTS, user, t_us) for aggregate in spec.aggregates]
        assert [now["views"][place], now["items"][place]] == (expected if is_new else [old["views"][place], None])
    assert read_values(settings, "user_activity", USERS, t_us, reader) == {
        "views": now["views"]
    }  # it knows the old one alone


def test_a_flow_finishes_the_exchange_that_a_killed_backfill_has_left(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    apply_views(settings, stream_view("user_activity", feature("views", "view", minutes=60)))
    stop_in_mid_exchange(settings, monkeypatch)
    append_events(settings, LATER)
    run_flow(settings)
    assert connect(settings).get(EXCHANGE_KEY) is None
    assert state_definitions(connect(settings), settings).waiting == ()
    assert_state_equals_oracle(settings, EVENTS + LATER)


def test_an_exchange_killed_between_two_rows_of_a_shard_is_read_row_by_row_and_finished_by_the_flow(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = state_definitions(connect(settings), settings).streams["user_activity"]
    apply_views(settings, stream_view("user_activity", feature("views", "view", minutes=60)))
    new, t_us = load_definitions(settings).streams["user_activity"], newest_of(EVENTS) + 1
    whole, calls = exchange._run, []

    def one_row_only(*arguments: object) -> None:
        calls.append(arguments)
        if len(calls) == 2:
            scripts = arguments[-1]
            assert isinstance(scripts, list)
            whole(*arguments[:-1], scripts[:1])  # type: ignore[arg-type]
            raise Killed
        whole(*arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(exchange, "_ROWS_AT_ONCE", 1)
        patch.setattr(exchange, "_run", one_row_only)
        with pytest.raises(Killed):
            backfill(settings)
    values = read_values(settings, "user_activity", USERS, t_us)["views"]
    by_old, by_new = ([oracles.value(s, s.aggregates[0], EVENTS, user, t_us) for user in USERS] for s in (old, new))
    assert all(value in both for value, *both in zip(values, by_old, by_new, strict=True))
    assert sum(value != before for value, before in zip(values, by_old, strict=True)) <= 1
    with pytest.raises(VerifyError, match="a backfill exchanges it"):
        verify(settings)
    append_events(settings, LATER)
    run_flow(settings)
    assert read_status(connect(settings), [0])[0].exchanging is False
    assert window_us(settings) == 3_600_000_000
    assert_state_equals_oracle(settings, EVENTS + LATER)


def test_a_flow_does_not_go_on_with_a_state_that_was_exchanged_under_it(settings: Settings) -> None:
    """It has read the definitions, then the backfill comes, then it takes the shard: it must start again."""
    client = connect(settings)
    specs = definitions_to_fold(client, settings, "a flow")
    apply_views(
        settings, stream_view("user_activity", feature("views", "view")), stream_view("clicks", feature("n", "click"))
    )
    backfill(settings)
    with pytest.raises(ExchangedError, match="clicks"):
        check_state(0, read_status(client, [0])[0], specs)


def test_workers_that_begin_on_an_empty_store_fold_by_the_definitions_of_the_first(tmp_path: Path, valkey: str) -> None:
    settings = make_settings(tmp_path, valkey).model_copy(update={"flow_lease_s": 60.0})
    apply_views(settings, stream_view("user_activity", feature("views", "view", minutes=10)))
    client = connect(settings)
    first = definitions_to_fold(client, settings, "first")
    apply_views(settings, stream_view("user_activity", feature("views", "view", minutes=60)))
    assert definitions_to_fold(client, settings, "second") == first
    for member in ("first", "second"):
        Crew(client, member, 60_000).leave()
    later = definitions_to_fold(client, settings, "third")
    assert later["user_activity"].aggregates[0].window_us == 3_600_000_000
    behind = Worker(client, first, name="first", shards=1, partitions=1, lease_s=60.0)
    with pytest.raises(StaleStateError, match="another worker has begun by other definitions"):
        behind.stand()


def test_state_of_a_definition_that_nobody_knows_stops_the_flow_and_is_named(settings: Settings) -> None:
    client = connect(settings)
    apply_views(settings, stream_view("user_activity", feature("views", "view", minutes=60)))
    client.delete("headrace:@definitions")
    with pytest.raises(
        StaleStateError, match="user_activity was made by another version of Headrace: run `headrace backfill`"
    ):
        run_flow(settings)
    snapshot = open_reader(settings).fetch({"user_activity": USERS})
    assert (snapshot.streams, snapshot.waiting) == ({}, ("user_activity.views",))
    backfill(settings)
    assert_state_equals_oracle(settings, EVENTS)


class Killed(BaseException):
    """Stands for SIGKILL: nothing may catch it."""


def window_us(settings: Settings) -> int | None:
    return state_definitions(connect(settings), settings).streams["user_activity"].aggregates[0].window_us


def stop_in_mid_exchange(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """A backfill that dies when one shard is exchanged and one is not."""

    whole, done = exchange._exchange_shard, []

    def one_only(*arguments: object) -> None:
        if done:
            raise Killed
        whole(*arguments)  # type: ignore[arg-type]
        done.append(arguments)

    with monkeypatch.context() as patch:
        patch.setattr(exchange, "_exchange_shard", one_only)
        with pytest.raises(Killed):
            backfill(settings)


def row_views(settings: Settings) -> set[str]:
    """Views that have rows."""
    keys = [key.decode().partition("}:")[2] for key in connect(settings).scan_iter(match="headrace:{s*}:*")]
    return {key.partition(":")[0] for key in keys if not key.startswith("@")}
