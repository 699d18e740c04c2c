"""The recommender on real features and real bundles: read from what the flow wrote, swapped and refused while it serves."""

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pytest
import torch
from bytewax.testing import run_main

from flows.features import get_flow
from flows.source import Pace, StopFlag
from headrace import names
from headrace.clock import system_clock
from headrace.events import encode_records
from headrace.identity import shard_of
from headrace.models.bundle import Bundle, Items, Manifest
from headrace.models.config import ModelConfig
from headrace.models.preprocessing import Preprocessing
from headrace.models.ranker import Ranker
from headrace.models.snapshot import Snapshot
from headrace.models.towers import TwoTowers
from headrace.settings import Settings
from headrace.stores.definitions import load_definitions
from headrace.stores.lake import append_rows
from headrace.stores.log import RedisEventLog
from headrace.stores.models import POINTER
from headrace.stores.redis_client import connect
from serving.metrics import RecommenderMetrics
from serving.recommender import build_recommender
from serving.refresher import Refresher

ITEMS = [f"i{number}" for number in range(6)]
KEY = {"X-API-Key": "reader"}


def preprocessing() -> Preprocessing:
    """Fitted on one user, three items."""
    users = pa.table({"user_activity__views_1h": [1], "user_profile__country": ["de"]})
    content = {
        "item_id": ITEMS[:3],
        "item_catalogue__category": ["a", "b", "a"],
        "item_catalogue__price": [1.0, 2.0, 3.0],
    }
    activity = pa.table({"item_activity__views_1h": [0, 1, 2]})
    return Preprocessing.fit(users, pa.table(content), activity, dict.fromkeys(ITEMS[:3], 1), length=4)


def save_bundle(settings: Settings, version: str, fingerprint: int | None = None) -> Path:
    """An untrained bundle of the first three items; its neighbours of i0 are i1 and i2."""
    torch.manual_seed(1)
    fitted, model = preprocessing(), ModelConfig(width=8, hidden=8)
    towers, ranker = TwoTowers(fitted, model).eval(), Ranker(fitted, model).eval()
    snapshot = Snapshot(1, ITEMS[:3], [None] * 3, ["a", "b", "a"], [None] * 3, [1.0, 2.0, 3.0], [True] * 3)
    with torch.inference_mode():
        vectors = towers.items(fitted.items(snapshot.features(), with_activity=False)).numpy()
    near = np.array([[1, 2], [0, -1], [0, -1]], dtype=np.int32)
    items = Items(ITEMS[:3], vectors, near, np.ones((3, 2), dtype=np.float32))
    actual = load_definitions(settings).streams[names.USER_ACTIVITY].fingerprint
    manifest = Manifest(
        version, 1, model, {}, (), {names.USER_ACTIVITY: fingerprint or actual}, (0, 1), 1, {}, "0"
    )  # fmt: skip
    Bundle(manifest, fitted, towers, ranker, items, snapshot).save(settings.bundles_dir / version)
    return settings.bundles_dir / version


def promote(settings: Settings, folder: Path) -> None:
    pointer = httpx.Response(200, json={"version": folder.name, "path": str(folder), "promoted_at": 1}).text
    (settings.bundles_dir / POINTER).write_text(pointer)


def add_items(settings: Settings, items: dict[str, bool], seconds_ago: float = 60) -> None:
    """Catalogue rows in the lake: item to whether it is available."""
    moment = datetime.now(UTC) - timedelta(seconds=seconds_ago)
    count = len(items)
    rows = {
        "item_id": list(items),
        "title": [None] * count,
        "category": ["a"] * count,
        "brand": pa.array([None] * count, pa.string()),
        "price": [1.0] * count,
        "available": list(items.values()),
        "event_timestamp": pa.array([moment] * count, pa.timestamp("us", tz="UTC")),
        "created": pa.array([moment] * count, pa.timestamp("us", tz="UTC")),
    }
    rows["title"] = pa.array(rows["title"], pa.string())
    append_rows(settings.lake_dir, names.ITEMS_TABLE, pa.table(rows))


def view(settings: Settings, user: str, *items: str) -> None:
    """Events into the log, and the flow run to its end."""
    client = connect(settings)
    log = RedisEventLog(client, settings.log_partitions, names.PROJECT, settings.log_max_bytes)
    partition, now = shard_of(user, log.partitions), system_clock()
    records = [
        {
            "event_id": f"{user}-{number}",
            "type": "view",
            "user_key": user,
            "item_id": item,
            "timestamp": now - 10 + number,
        }
        | {"received_at": now}
        for number, item in enumerate(items)
    ]
    log.append({partition: encode_records(records)}, {partition: len(records)})
    run_main(get_flow(settings, system_clock, StopFlag(), Pace(), until_end=True))
    client.close()


@pytest.fixture
def shop(stack: Settings) -> Settings:
    """Six items in the catalogue, i5 not available; u has viewed i3 and i0, i3 is the most popular."""
    settings = stack.model_copy(update={"read_keys": "reader"})
    settings.bundles_dir.mkdir(parents=True)
    add_items(settings, {item: item != "i5" for item in ITEMS})
    view(settings, "u", "i3", "i0")
    view(settings, "v", "i3")
    return settings


def refresher(settings: Settings) -> Refresher:
    made = Refresher(settings, system_clock, RecommenderMetrics())
    made.refresh_once()
    return made


def recommend(settings: Settings, **body: Any) -> Any:
    async def one() -> Any:
        transport = httpx.ASGITransport(build_recommender(settings))
        async with httpx.AsyncClient(transport=transport, base_url="http://test", headers=KEY) as client:
            return (await client.post("/v1/recommend", json=body)).json()

    return asyncio.run(one())


def test_without_a_model_the_live_popularity_orders_what_is_available(shop: Settings) -> None:
    answer = recommend(shop, user_id="u", n=10)
    assert [(item["item_id"], item["source"]) for item in answer["items"]] == [
        ("i3", "trending"),
        ("i0", "trending"),
        ("i1", "new"),
        ("i2", "new"),
        ("i4", "new"),
    ]
    assert answer["degraded"] == ["no_model"]
    assert 0 <= answer["features_age_ms"] < 30_000


def test_a_bundle_retrieves_ranks_and_names_its_version_and_items_newer_than_it_are_found_too(shop: Settings) -> None:
    promote(shop, save_bundle(shop, "v1"))
    answer = recommend(shop, user_id="u", n=10)
    assert {item["item_id"] for item in answer["items"]} == set(ITEMS) - {"i5"}
    assert {item["source"] for item in answer["items"]} == {"two_tower"}
    scores = [item["score"] for item in answer["items"]]
    assert scores == sorted(scores, reverse=True)
    assert (answer["model_version"], answer["degraded"]) == ("v1", [])


def test_a_new_champion_is_swapped_in_and_the_old_world_is_left_whole(shop: Settings) -> None:
    promote(shop, save_bundle(shop, "v1"))
    made = refresher(shop)
    old = made.live.world
    promote(shop, save_bundle(shop, "v2"))
    made.refresh_model()
    assert (old.model.version, made.live.world.model.version) == ("v1", "v2")  # type: ignore[union-attr]
    assert made.live.troubles == {}
    made.close()


def test_a_damaged_bundle_is_refused_by_name_while_the_old_one_goes_on(shop: Settings) -> None:
    promote(shop, save_bundle(shop, "v1"))
    made = refresher(shop)
    damaged = save_bundle(shop, "v2")
    (damaged / "weights.pt").write_bytes(b"nothing")
    promote(shop, damaged)
    made.refresh_model()
    assert made.live.world.model.version == "v1"  # type: ignore[union-attr]
    assert "version v2 is refused" in made.live.troubles["champion"]
    assert "weights.pt" in made.live.troubles["champion"]
    promote(shop, save_bundle(shop, "v3"))
    made.refresh_model()
    assert made.live.world.model.version == "v3"  # type: ignore[union-attr]
    assert made.live.troubles == {}
    made.close()


def test_a_bundle_of_other_features_is_refused(shop: Settings) -> None:
    promote(shop, save_bundle(shop, "v1", fingerprint=12))
    made = refresher(shop)
    assert made.live.world.model is None
    assert "another definition of view user_activity" in made.live.troubles["champion"]
    made.close()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b"\xff"])
def test_a_damaged_pointer_to_the_champion_changes_nothing(shop: Settings, content: bytes) -> None:
    promote(shop, save_bundle(shop, "v1"))
    made = refresher(shop)
    (shop.bundles_dir / POINTER).write_bytes(content)
    made.refresh_model()
    assert made.live.world.model.version == "v1"  # type: ignore[union-attr]
    assert "champion" in made.live.troubles
    made.close()


def test_catalogue_availability_and_popularity_follow_the_lake_and_the_store(shop: Settings) -> None:
    made = refresher(shop)
    assert made.live.world.catalogue.popular[:2] == ("i3", "i0")
    add_items(shop, {"i6": True, "i3": False}, seconds_ago=1)
    view(shop, "w", "i6", "i6", "i6")
    made.refresh_catalogue()
    catalogue = made.live.world.catalogue
    assert catalogue.popular[:3] == ("i6", "i3", "i0")
    assert catalogue.newest[0] == "i6"
    assert catalogue.unavailable == {"i3", "i5"}
    made.close()


def test_after_a_restart_with_the_store_gone_the_snapshot_answers(shop: Settings) -> None:
    refresher(shop).close()
    gone = shop.model_copy(update={"redis_url": "redis://127.0.0.1:1/0"})
    answer = recommend(gone, user_id="u", n=10)
    assert [item["item_id"] for item in answer["items"]][:2] == ["i3", "i0"]
    assert len(answer["items"]) == 5
    assert answer["degraded"] == ["user_features_unavailable", "no_model", "catalogue_from_snapshot"]
    assert answer["took_ms"] < 100


def test_a_shop_without_a_catalogue_recommends_what_was_acted_on(stack: Settings) -> None:
    settings = stack.model_copy(update={"read_keys": "reader"})
    view(settings, "u", "x", "y", "y")
    answer = recommend(settings, user_id="someone", n=10)
    assert [item["item_id"] for item in answer["items"]] == ["y", "x"]
    assert answer["degraded"] == ["unknown_user", "no_model"]
