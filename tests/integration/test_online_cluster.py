"""The online store on a cluster of three servers: what one server answers, in one round trip, while slots move."""

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis
from feast import FeatureService, FeatureStore, Field
from feast.types import Float64
from redis.crc import key_slot

from headrace.clock import system_clock
from headrace.settings import Settings
from headrace.stores.definitions import load_definitions
from headrace.stores.online_reader import OnlineReader
from headrace.stores.redis_client import connect
from headrace.stores.shards import commit_key, row_key
from tests.integration.online_cluster import Cluster, valkey_cluster
from tests.integration.online_repo import item, make_store, plain_view, rows, run_events, stream_view

NOW = datetime.now(UTC)
SHARDS = 16
IDS = [f"i{number}" for number in range(60)]


@pytest.fixture(autouse=True)
def _now(monkeypatch: pytest.MonkeyPatch) -> None:
    """NOW is the test's, not the import's: a suite may run for longer than a window."""
    monkeypatch.setitem(globals(), "NOW", datetime.now(UTC))


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with valkey_cluster(tmp_path_factory.mktemp("cluster")) as running:
        yield running


@pytest.fixture
def clustered(settings: Settings, cluster: Cluster) -> Settings:
    for node in cluster.nodes:
        node.flushall()
    changes = {"redis_url": cluster.url, "redis_cluster": True, "shards": SHARDS, "data": settings.data.resolve()}
    return settings.model_copy(update=changes)


def store_of(settings: Settings, tmp_path: Path) -> FeatureStore:
    prices = plain_view("items", [Field(name="price", dtype=Float64)], tmp_path / "none")
    activity = stream_view(tmp_path / "lake")
    return make_store(settings, item, prices, activity, FeatureService(name="both", features=[prices, activity]))


def read_both(store: FeatureStore, *ids: str) -> dict[str, list[Any]]:
    service, asked = store.get_feature_service("both"), [{"item_id": each} for each in ids]

    async def read_and_close() -> dict[str, list[Any]]:
        answer = await store.get_online_features_async(service, asked)
        await store.close()
        return answer.to_dict()  # type: ignore[no-any-return]

    answer = store.get_online_features(service, asked).to_dict()
    assert asyncio.run(read_and_close()) == answer
    return answer  # type: ignore[no-any-return]


def copy_state(source: "redis.Redis", target: "redis.Redis") -> None:
    """Rows, positions and definitions of one store put into another, as they are."""
    for key in source.scan_iter("headrace:*"):
        if not key.startswith(b"headrace:log:"):
            target.restore(key, 0, source.dump(key))


def test_the_rows_lie_on_all_servers(cluster: Cluster) -> None:
    assert {cluster.owner(key_slot(commit_key(shard).encode())) for shard in range(SHARDS)} == {0, 1, 2}


def test_plain_rows_are_written_read_and_deleted_sync_and_async(clustered: Settings, tmp_path: Path) -> None:
    store = store_of(clustered, tmp_path)
    store.push("items", rows(*({"item_id": each, "price": float(n)} for n, each in enumerate(IDS))))

    async def push_and_close() -> None:
        await store.push_async("items", rows({"item_id": "i0", "price": 7.0}, {"item_id": "i1", "price": 8.0}))
        await store.close()

    asyncio.run(push_and_close())
    assert read_both(store, *IDS, "none")["price"] == [7.0, 8.0, *map(float, range(2, len(IDS))), None]
    store.teardown()
    assert [key for key in connect(clustered).scan_iter() if b":items:" in key] == []


def test_feast_and_our_reader_have_the_values_of_one_server(clustered: Settings, valkey: str, tmp_path: Path) -> None:
    alone = clustered.model_copy(update={"redis_url": valkey, "redis_cluster": False, "data": clustered.data / "alone"})
    store = store_of(alone, tmp_path)
    store.push("items", rows(*({"item_id": each, "price": float(n)} for n, each in enumerate(IDS[::2]))))
    run_events(alone, *({"type": "view", "item_id": each, "at": NOW - timedelta(seconds=40)} for each in IDS[::3]))
    expected = read_both(store, *IDS)
    assert sum(expected["views"]) == len(IDS[::3])

    copy_state(connect(alone), connect(clustered))
    assert read_both(store_of(clustered, tmp_path), *IDS) == expected
    client = connect(clustered)
    assert isinstance(client, redis.RedisCluster)
    read = OnlineReader(client, load_definitions(clustered), clustered).fetch({"item_activity": IDS, "items": IDS})
    assert list(read.streams["item_activity"].values(system_clock())["views"]) == expected["views"]
    prices = read.plain["items"].values(system_clock())["price"]
    np.testing.assert_array_equal(prices, np.array(expected["price"], np.float64))
    assert (
        read.complete_us
        == OnlineReader(connect(alone), load_definitions(alone), alone).fetch({"item_activity": IDS}).complete_us
    )


def test_a_slot_that_moves_is_followed_by_readers_and_writers(
    clustered: Settings, cluster: Cluster, tmp_path: Path
) -> None:
    store = store_of(clustered, tmp_path)
    store.push("items", rows(*({"item_id": each, "price": 1.0} for each in IDS)))
    reader = OnlineReader(connect(clustered), load_definitions(clustered), clustered)
    assert reader.fetch({"items": IDS}).plain["items"].values()["price"].sum() == len(IDS)
    slot = key_slot(row_key(3, "items", "").encode())
    cluster.move(slot, to=(cluster.owner(slot) + 1) % 3)
    assert reader.fetch({"items": IDS}).plain["items"].values()["price"].sum() == len(IDS)
    store.push("items", rows(*({"item_id": each, "price": 2.0} for each in IDS)))
    assert read_both(store, *IDS)["price"] == [2.0] * len(IDS)
