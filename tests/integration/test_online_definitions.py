"""Stream views through Feast while their definition changes, and rows or settings that are not of this store."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from feast import FeatureStore
from feast.online_response import OnlineResponse

from headrace.aggregates.rows import StateMismatchError
from headrace.ops.backfill import backfill
from headrace.settings import Settings
from headrace.stores import online, online_wire
from headrace.stores.definitions import load_definitions
from headrace.stores.feature_store import open_feature_store
from headrace.stores.online_wire import Answer
from headrace.stores.redis_client import connect
from headrace.stores.shards import DeploymentError
from headrace.stores.state_definitions import known_definitions, stored_fingerprints
from tests import oracles
from tests.integration.small_repo import (
    append_events,
    apply_views,
    feature,
    make_events,
    make_settings,
    newest_of,
    open_reader,
    run_flow,
    run_lake,
    stream_view,
)
from tests.integration.test_definitions_change import stop_in_mid_exchange

EVENTS = make_events(120)
USERS = [f"u{number}" for number in range(8)]
VIEWED = feature("seen", "view", minutes=None)
VIEWED_OR_CLICKED = feature("seen", "view|click", minutes=None)
ITEMS = feature("items", "view.item_id", "last_n(3)", minutes=None)


@pytest.fixture
def settings(tmp_path: Path, valkey: str) -> Settings:
    """A store and a lake that hold EVENTS, by one view that counts all views there ever were."""
    settings = make_settings(tmp_path, valkey)
    apply_views(settings, stream_view("user_activity", VIEWED))
    append_events(settings, EVENTS)
    run_flow(settings)
    run_lake(settings)
    return settings


def ask(store: FeatureStore, *features: str, users: list[str] = USERS) -> dict[str, list[Any]]:
    """Features by name, from Feast's SDK."""
    return _by_name(store.get_online_features(*_question(features, users)), features)


def ask_async(store: FeatureStore, *features: str, users: list[str] = USERS) -> dict[str, list[Any]]:
    """The same through asyncio, in a loop of its own."""

    async def read_and_close() -> OnlineResponse:
        try:
            return await store.get_online_features_async(*_question(features, users))
        finally:
            await store.close()

    return _by_name(asyncio.run(read_and_close()), features)


def _question(features: Sequence[str], users: Sequence[str]) -> tuple[list[str], list[dict[str, Any]]]:
    return [f"user_activity:{name}" for name in features], [{"user_id": user} for user in users]


def _by_name(answer: OnlineResponse, features: Sequence[str]) -> dict[str, list[Any]]:
    found = answer.to_dict()
    return {name: found[name] for name in features}


def read(store: FeatureStore, *features: str, users: list[str] = USERS) -> dict[str, list[Any]]:
    """The same of both, while nothing changes."""
    found = ask(store, *features, users=users)
    assert ask_async(store, *features, users=users) == found
    return found


def by_definition(settings: Settings) -> dict[str, list[Any]]:
    """What the definitions that are applied make of EVENTS."""
    spec, t_us = load_definitions(settings).streams["user_activity"], newest_of(EVENTS) + 1
    return {each.name: [oracles.value(spec, each, EVENTS, user, t_us) for user in USERS] for each in spec.aggregates}


def test_feast_serves_the_old_definition_until_the_backfill_ends_and_then_the_new_without_a_restart(
    settings: Settings,
) -> None:
    running, old = open_feature_store(settings), by_definition(settings)
    assert read(running, "seen") == old
    apply_views(settings, stream_view("user_activity", VIEWED_OR_CLICKED, ITEMS))
    fresh, new = open_feature_store(settings), by_definition(settings)
    assert sum(new["seen"]) > sum(old["seen"])
    assert read(running, "seen") == old
    assert read(fresh, "seen", "items") == {**old, "items": [None] * len(USERS)}

    rebuild = Thread(target=backfill, args=(settings,))
    rebuild.start()
    while rebuild.is_alive():
        for found in (ask(fresh, "seen", "items"), ask_async(fresh, "seen", "items")):
            for at, value in enumerate(zip(found["seen"], found["items"], strict=True)):
                assert value in [(old["seen"][at], None), (new["seen"][at], new["items"][at])]
    rebuild.join()
    assert read(fresh, "seen", "items") == new
    assert read(running, "seen") == {"seen": new["seen"]}


@pytest.mark.parametrize("knows_the_state", [True, False])
def test_rows_that_were_read_just_before_a_whole_backfill_are_still_read_by_the_definition_that_made_them(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, knows_the_state: bool
) -> None:
    old = by_definition(settings)
    apply_views(settings, stream_view("user_activity", VIEWED_OR_CLICKED, ITEMS))
    store = open_feature_store(settings)
    if knows_the_state:
        assert ask(store, "seen") == old

    def read_then_backfill(*args: Any) -> Answer:
        answer = online_wire.read(*args)
        monkeypatch.undo()
        backfill(settings)
        return answer

    monkeypatch.setattr(online, "read", read_then_backfill)
    assert ask(store, "seen", "items") == {**old, "items": [None] * len(USERS)}
    assert read(store, "seen", "items") == by_definition(settings)


def test_a_definition_is_kept_until_the_state_after_the_next_is_there(settings: Settings) -> None:
    first = stored_fingerprints(connect(settings), settings)
    for later, kept in [(VIEWED_OR_CLICKED, first), (ITEMS, set())]:
        apply_views(settings, stream_view("user_activity", later))
        backfill(settings)
        assert first & set(known_definitions(connect(settings), first)) == kept


def test_in_the_middle_of_an_exchange_feast_reads_each_row_by_the_definition_that_made_it(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = by_definition(settings)
    apply_views(settings, stream_view("user_activity", VIEWED_OR_CLICKED, ITEMS))
    stop_in_mid_exchange(settings, monkeypatch)
    found, new = read(open_feature_store(settings), "seen", "items"), by_definition(settings)
    is_new = [items is not None for items in found["items"]]
    assert set(is_new) == {True, False}
    assert found == {
        "seen": [new["seen"][at] if each else old["seen"][at] for at, each in enumerate(is_new)],
        "items": [new["items"][at] if each else None for at, each in enumerate(is_new)],
    }


def test_a_row_with_a_foreign_fingerprint_is_refused_by_every_reader_and_rebuilt_by_the_backfill(
    settings: Settings,
) -> None:
    client, store, expected = connect(settings), open_feature_store(settings), by_definition(settings)
    key = next(client.scan_iter(match="headrace:{s*}:user_activity:u1"))
    client.setrange(key, 0, b"\x01" * 8)
    says = r"'user_activity' has fingerprint 0101010101010101, .*run `headrace backfill`"
    with pytest.raises(StateMismatchError, match=says):
        open_reader(settings).fetch({"user_activity": USERS})
    with pytest.raises(StateMismatchError, match=says):
        ask(store, "seen")
    with pytest.raises(StateMismatchError, match=says):
        ask_async(store, "seen")
    others = [user for user in USERS if user != "u1"]
    assert read(store, "seen", users=others)["seen"] == [
        value for user, value in zip(USERS, expected["seen"], strict=True) if user != "u1"
    ]
    backfill(settings)
    assert read(store, "seen") == expected


def test_settings_with_another_number_of_shards_are_refused_before_a_row_is_read(settings: Settings) -> None:
    other = open_feature_store(settings.model_copy(update={"shards": 3}))
    with pytest.raises(DeploymentError, match="made with shards=2, the settings say 3: set HEADRACE_SHARDS=2"):
        ask(other, "seen")
    with pytest.raises(DeploymentError, match="set HEADRACE_SHARDS=2"):
        ask_async(other, "seen")
    with pytest.raises(DeploymentError, match="set HEADRACE_SHARDS=2"):  # what the feature server does when it starts
        asyncio.run(other.initialize())
