"""The change feed: whoever follows it holds the rows that the store holds, whatever was written, exchanged, dropped or killed."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
import redis
from feast import FeatureStore, Field
from feast.types import Float64, Int64

from headrace.aggregates.fold import PackedRows
from headrace.identity import shard_of
from headrace.ops.backfill import backfill
from headrace.ops.valkey import ValkeyServer
from headrace.settings import Settings
from headrace.stores.change_feed import FEWEST_ENTRIES, KEPT_ENTRIES, ChangeFeed, Changes, changes_key
from headrace.stores.commits import SentCommits, ShardCommit
from headrace.stores.redis_client import connect
from headrace.stores.shards import OwnedShard, commit_key, read_status
from headrace.stores.state_definitions import drop_views, forget_views
from tests.conftest import ROOT, wait_until
from tests.integration.feed_mirror import Mirror, stored_rows
from tests.integration.online_cluster import Cluster, valkey_cluster
from tests.integration.online_repo import item, make_store, plain_view, rows, run_events, stream_view, user
from tests.integration.small_repo import append_events, make_events, run_lake

LATER = datetime(2026, 1, 2, tzinfo=UTC)


@pytest.fixture
def online(settings: Settings, valkey: str) -> Settings:
    return settings.model_copy(update={"redis_url": valkey, "data": settings.data.resolve()})


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with valkey_cluster(tmp_path_factory.mktemp("cluster")) as running:
        yield running


def store_of(settings: Settings, tmp_path: Path) -> FeatureStore:
    """A plain view and a stream view of items, a plain view of users."""
    prices = plain_view("prices", [Field(name="price", dtype=Float64)], tmp_path / "none")
    ages = plain_view("ages", [Field(name="age", dtype=Int64)], tmp_path / "none", [user])
    return make_store(settings, item, user, prices, ages, stream_view(settings.lake_dir / "events"))


def view_of(item_id: str) -> dict[str, object]:
    return {"type": "view", "item_id": item_id, "at": datetime.now(UTC) - timedelta(seconds=30)}


def started(settings: Settings) -> ChangeFeed:
    feed = ChangeFeed(connect(settings), settings.shards)
    feed.start()
    return feed


def commit(client: "redis.Redis", shard: OwnedShard, keys: list[str], positions: dict[int, int]) -> bool:
    """Rows of one byte each; whether the commit was taken."""
    data = PackedRows(keys, b"x" * len(keys), np.arange(len(keys) + 1))
    change = ShardCommit({"clicks": [data]}, positions, {}, announced=frozenset({"clicks"}))
    return not SentCommits(client, [(shard, change)], {}).finish()


def owned(client: "redis.Redis", shard: int = 0) -> OwnedShard:
    taken = OwnedShard(client, shard, "a flow", 60_000)
    taken.acquire(force=True)
    return taken


def test_a_push_names_the_items_that_it_has_changed_and_no_user(online: Settings, tmp_path: Path) -> None:
    store, feed = store_of(online, tmp_path), started(online)
    store.push("prices", rows({"item_id": "i1", "price": 1.0}, {"item_id": "i2", "price": 2.0}, at=LATER))
    store.push("ages", rows({"user_id": "u1", "age": 30}))
    told = feed.poll()
    assert (told.keys, told.reload) == ({"prices": {"i1", "i2"}}, frozenset())
    store.push("prices", rows({"item_id": "i1", "price": 3.0}))  # older than what is there
    assert feed.poll().keys == {}
    store.push("prices", rows({"item_id": "i1", "price": 3.0}, {"item_id": "i3", "price": 3.0}))
    assert feed.poll().keys == {"prices": {"i3"}}


def test_a_commit_of_the_flow_names_its_items_with_the_positions_that_they_include(
    online: Settings, tmp_path: Path
) -> None:
    store_of(online, tmp_path)
    feed = started(online)
    run_events(online, view_of("i1"), view_of("i2"), view_of("i1"))
    told = feed.poll()
    assert (told.keys, told.reload) == ({"item_activity": {"i1", "i2"}}, frozenset())
    assert told.statuses == read_status(connect(online), range(online.shards))
    assert any(told.statuses[0].positions.values())
    assert feed.poll() == Changes(told.statuses, {}, frozenset())


def test_a_backfill_has_every_shard_read_anew(online: Settings, tmp_path: Path) -> None:
    store_of(online, tmp_path)
    append_events(online, make_events(40))
    run_lake(online)
    mirror = Mirror(connect(online), online.shards, "item_activity", "prices")
    backfill(online)
    assert mirror.follow().reload == frozenset(range(online.shards))
    assert mirror.is_true()
    assert mirror.rows


def test_views_that_are_dropped_are_read_anew(online: Settings, tmp_path: Path) -> None:
    store, client = store_of(online, tmp_path), connect(online)
    store.push("prices", rows(*({"item_id": f"i{n}", "price": 1.0} for n in range(50))))
    run_events(online, view_of("i1"))
    mirror = Mirror(client, online.shards, "prices", "item_activity")
    assert drop_views(client, online, ["prices"]) == 50
    assert mirror.follow().reload == frozenset(range(online.shards))
    assert mirror.is_true()
    assert {view for view, _ in mirror.rows} == {"item_activity"}
    forget_views(client, online, ["item_activity"])
    assert mirror.follow().reload == frozenset(range(online.shards))


def test_a_reader_that_fell_behind_what_is_kept_reads_the_shard_anew(valkey: str) -> None:
    client = redis.Redis.from_url(valkey)
    shard, feed = owned(client), ChangeFeed(client, 2)
    feed.start()
    assert all(commit(client, shard, [f"i{n}"], {0: n}) for n in range(1, KEPT_ENTRIES + 300))
    assert client.xlen(changes_key(0)) < KEPT_ENTRIES + 200
    told = feed.poll()
    assert (told.keys, told.reload) == ({}, frozenset({0}))
    commit(client, shard, ["i1"], {})
    assert (feed.poll().keys, feed.poll().reload) == ({"clicks": {"i1"}}, frozenset())


def test_large_entries_leave_room_for_fewer(valkey: str) -> None:
    client = redis.Redis.from_url(valkey)
    shard = owned(client)
    large = [f"i{'x' * 120}{n:05d}" for n in range(2_000)]
    for _ in range(FEWEST_ENTRIES + 40):
        commit(client, shard, large, {})
    assert FEWEST_ENTRIES <= client.xlen(changes_key(0)) <= FEWEST_ENTRIES + 1


def test_a_store_that_was_emptied_or_set_back_is_read_anew(valkey: str) -> None:
    client = redis.Redis.from_url(valkey)
    feed = ChangeFeed(client, 1)
    feed.start()
    for n in (1, 2, 3):
        commit(client, owned(client), [f"i{n}"], {0: n})
    assert feed.poll().reload == frozenset()
    client.flushall()
    assert feed.poll().reload == {0}
    for n in (1, 2):
        commit(client, owned(client), [f"i{n}"], {0: 10 + n})
    feed.poll()
    client.flushall()
    for n in (1, 2, 3):  # as many entries as it has seen, and one more
        commit(client, owned(client), [f"j{n}"], {0: n})
    assert feed.poll().reload == {0}


def test_a_commit_that_is_refused_announces_nothing(valkey: str) -> None:
    client = redis.Redis.from_url(valkey)
    past, feed = owned(client), ChangeFeed(client, 1)
    owned(client)
    feed.start()
    assert not commit(client, past, ["i1"], {0: 1})
    assert (feed.poll().keys, client.exists(changes_key(0))) == ({}, 0)


def test_a_failed_poll_loses_nothing(make_valkey: Callable[[], ValkeyServer]) -> None:
    server = make_valkey()
    client = redis.Redis.from_url(server.url)
    feed = ChangeFeed(client, 1)
    feed.start()
    commit(client, owned(client), ["i1"], {0: 1})
    server.kill()
    with pytest.raises(redis.RedisError):
        feed.poll()
    server.start()
    assert feed.poll().keys == {"clicks": {"i1"}}


WRITER = """
import sys, time
from headrace.settings import Settings
from headrace.stores.plain_rows import PlainLayout
from headrace.stores.online_writes import queue_rows
from headrace.stores.redis_client import connect
from headrace.aggregates.fold import PackedRows
from headrace.stores.commits import SentCommits, ShardCommit
from headrace.stores.shards import OwnedShard
from headrace.identity import shard_of
import numpy as np
settings = Settings()
client, layout, n = connect(settings), PlainLayout("prices", (("price", "DOUBLE"),)), 0
shard = OwnedShard(client, 0, sys.argv[1], 60_000)
shard.acquire(force=True)
while True:
    n += 1
    keys = [f"i{(n * 7 + k) % 500}" for k in range(40)]
    pipeline = client.pipeline(transaction=False)
    queue_rows(pipeline, "prices", keys, [layout.pack({}, time.time_ns(), n) for _ in keys], settings.shards, announced=True)
    pipeline.execute()
    keys = [key for key in keys if shard_of(key, settings.shards) == 0]
    rows = PackedRows(keys, b"%08d" % n * len(keys), np.arange(len(keys) + 1) * 8)
    SentCommits(client, [(shard, ShardCommit({"item_activity": [rows]}, {0: n}, {}, announced=frozenset({"item_activity"})))], {}).finish()
"""


def test_whoever_follows_holds_what_the_store_holds_however_often_its_writers_are_killed(
    online: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HEADRACE_REDIS_URL", str(online.redis_url))
    client = connect(online)
    mirror = Mirror(client, online.shards, "prices", "item_activity")
    for life in range(4):
        begun = client.hget(commit_key(0), "feed")
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(life)], cwd=ROOT)
        try:
            wait_until(lambda before=begun: client.hget(commit_key(0), "feed") != before, timeout_s=120.0)
            for _ in range(5 * life):
                assert mirror.follow().reload <= {0}  # where the next writer begins to count again
            if life == 3:  # nearly all of the keys that writers turn to, however slow they are
                wait_until(lambda: bool(mirror.follow()) and len(mirror.rows) > 500, timeout_s=120.0)
        finally:
            os.kill(writer.pid, signal.SIGKILL)
            writer.wait(timeout=20)
        wait_until(
            lambda: bool(mirror.follow()) and mirror.is_true()
        )  # the server may still have some of its words to obey
    assert stored_rows(client, online.shards, ["prices"]).keys() <= mirror.rows.keys()


def test_a_cluster_tells_what_one_server_tells(settings: Settings, cluster: Cluster, tmp_path: Path) -> None:
    changes = {"redis_url": cluster.url, "redis_cluster": True, "shards": 16, "data": settings.data.resolve()}
    clustered = settings.model_copy(update=changes)
    store, client = store_of(clustered, tmp_path), connect(clustered)
    mirror = Mirror(client, 16, "prices", "clicks")
    ids = [f"i{n}" for n in range(200)]
    store.push("prices", rows(*({"item_id": each, "price": 1.0} for each in ids)))
    for shard in range(16):
        assert commit(client, owned(client, shard), [each for each in ids if shard_of(each, 16) == shard], {})
    told = mirror.follow()
    assert (told.keys, told.reload) == ({"prices": set(ids), "clicks": set(ids)}, frozenset())
    assert mirror.is_true()
    assert len(mirror.rows) == 400
    drop_views(client, clustered, ["prices"])
    assert mirror.follow().reload == frozenset(range(16))
    assert mirror.is_true()
