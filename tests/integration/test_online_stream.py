"""Stream views through Feast: as of now, never seen, past their TTL, together with plain views, all as our own reader has them."""

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from feast import FeatureService, Field
from feast.online_response import OnlineResponse
from feast.protos.feast.serving.ServingService_pb2 import FieldStatus
from feast.types import Float64

from headrace.clock import system_clock, to_micros
from headrace.settings import Settings
from headrace.stores.definitions import load_definitions
from headrace.stores.online_reader import OnlineReader
from headrace.stores.redis_client import connect
from tests.integration.online_repo import item, make_store, plain_view, rows, run_events, stream_view

NOW = datetime.now(UTC)
FEATURES = ["views", "mean_price", "last_users"]
REFS = [f"item_activity:{name}" for name in FEATURES]


@pytest.fixture(autouse=True)
def _now(monkeypatch: pytest.MonkeyPatch) -> None:
    """NOW is the test's, not the import's: a suite may run for longer than a window."""
    monkeypatch.setitem(globals(), "NOW", datetime.now(UTC))


@pytest.fixture
def served(settings: Settings, valkey: str) -> Settings:
    return settings.model_copy(update={"redis_url": valkey, "data": settings.data.resolve()})


def test_an_entity_that_was_never_seen_reads_as_an_empty_window(served: Settings, tmp_path: Path) -> None:
    store = make_store(served, item, stream_view(tmp_path / "lake"))
    answer = store.get_online_features(REFS, [{"item_id": "none"}])
    assert answer.to_dict() == {"item_id": ["none"], "views": [0], "mean_price": [None], "last_users": [[]]}
    assert [list(vector.statuses) for vector in answer.proto.results[1:]] == [[FieldStatus.PRESENT]] * 3


def test_values_are_as_of_now_and_the_time_is_that_of_the_newest_event(served: Settings, tmp_path: Path) -> None:
    store = make_store(served, item, stream_view(tmp_path / "lake"))
    newest = NOW - timedelta(seconds=10)
    run_events(
        served,
        {"type": "view", "item_id": "a", "at": NOW - timedelta(minutes=20)},
        {"type": "view", "item_id": "a", "user_key": "u2", "at": NOW - timedelta(minutes=2)},
        {"type": "purchase", "item_id": "a", "price": 2.0, "quantity": 1, "at": NOW - timedelta(minutes=2)},
        {"type": "purchase", "item_id": "a", "price": 4.0, "quantity": 1, "at": newest},
    )
    answer = store.get_online_features(REFS, [{"item_id": "a"}, {"item_id": "none"}])
    assert answer.to_dict() == {
        "item_id": ["a", "none"],
        "views": [1, 0],
        "mean_price": [3.0, None],
        "last_users": [["u1", "u2"], []],
    }
    assert answer.proto.results[1].event_timestamps[0].ToDatetime(UTC) == newest
    assert answer.proto.results[1].event_timestamps[1].ToDatetime(UTC) == datetime(1970, 1, 1, tzinfo=UTC)


def test_past_its_ttl_an_entity_reads_as_never_seen(served: Settings, tmp_path: Path) -> None:
    store = make_store(served, item, stream_view(tmp_path / "lake", ttl=timedelta(hours=2)))
    run_events(
        served,
        {"type": "view", "item_id": "old", "at": NOW - timedelta(hours=3)},
        {"type": "view", "item_id": "young", "at": NOW - timedelta(hours=1)},
    )
    answer = store.get_online_features(REFS, [{"item_id": "old"}, {"item_id": "young"}]).to_dict(True)
    assert answer["last_users"] == [[], ["u1"]]
    assert answer["last_users__ts"] == [0, int((NOW - timedelta(hours=1)).timestamp())]


def test_a_service_of_both_kinds_is_one_read_and_says_what_our_reader_says(served: Settings, tmp_path: Path) -> None:
    prices = plain_view("items", [Field(name="price", dtype=Float64)], tmp_path / "none", ttl=timedelta(hours=1))
    activity = stream_view(tmp_path / "lake")
    store = make_store(served, item, prices, activity, FeatureService(name="both", features=[prices, activity]))
    store.push("items", rows({"item_id": "a", "price": 1.5}, at=NOW - timedelta(minutes=5)))
    store.push("items", rows({"item_id": "b", "price": 2.5}, at=NOW - timedelta(minutes=90)))
    run_events(
        served,
        {"type": "view", "item_id": "a", "at": NOW - timedelta(minutes=1)},
        {"type": "purchase", "item_id": "b", "price": 4.0, "quantity": 1, "at": NOW - timedelta(minutes=1)},
    )
    ids = ["b", "a", "none", "a"]
    service, asked = store.get_feature_service("both"), [{"item_id": each} for each in ids]

    async def read_and_close() -> OnlineResponse:
        answer = await store.get_online_features_async(service, asked, full_feature_names=True)
        await store.close()
        return answer

    answer = store.get_online_features(service, asked, full_feature_names=True).to_dict()
    assert asyncio.run(read_and_close()).to_dict() == answer
    assert answer == {
        "item_id": ids,
        "items__price": [None, 1.5, None, 1.5],
        "item_activity__views": [0, 1, 0, 1],
        "item_activity__mean_price": [4.0, None, None, None],
        "item_activity__last_users": [[], ["u1"], [], ["u1"]],
    }
    read = OnlineReader(connect(served), load_definitions(served), served).fetch({"items": ids, "item_activity": ids})
    columns = {f"items__{name}": column for name, column in read.plain["items"].values(system_clock()).items()}
    for name, column in read.streams["item_activity"].values(system_clock()).items():
        columns[f"item_activity__{name}"] = list(column)
    assert {name: [None if v != v else v for v in column] for name, column in columns.items()} == {
        name: answer[name] for name in columns
    }


def test_windows_decay_as_time_passes_with_no_event(served: Settings, tmp_path: Path) -> None:
    """Law: windows decay by themselves. Nothing is written between the reads."""
    store = make_store(served, item, stream_view(tmp_path / "lake"))
    client, at = connect(served), NOW - timedelta(seconds=10)
    run_events(
        served,
        {"type": "view", "item_id": "a", "at": at},
        {"type": "purchase", "item_id": "a", "price": 2.0, "quantity": 1, "at": at},
    )
    (key,) = client.scan_iter(match="headrace:{s*}:item_activity:a")
    row = client.get(key)
    read = OnlineReader(client, load_definitions(served), served).fetch({"item_activity": ["a"]})
    for minutes, views, mean_price in ((1, 1, 2.0), (11, 0, 2.0), (61, 0, None)):
        t_us = to_micros(at + timedelta(minutes=minutes))
        store._get_provider().online_store.clock = lambda t_us=t_us: t_us
        answer = store.get_online_features(REFS, [{"item_id": "a"}]).to_dict()
        assert answer == {"item_id": ["a"], "views": [views], "mean_price": [mean_price], "last_users": [["u1"]]}
        (mean,) = read.streams["item_activity"].values(t_us)["mean_price"]
        assert (None if mean != mean else mean) == mean_price
    assert client.get(key) == row
