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
from flows.recovery import StopFlag
from flows.source import Pace
from headrace import names
from headrace.clock import system_clock
from headrace.events import encode_records
from headrace.identity import shard_of
from headrace.models.bundle import Bundle
from headrace.models.preprocessing import Catalogue
from headrace.settings import Settings
from headrace.stores.definitions import load_definitions
from headrace.stores.lake import append_rows
from headrace.stores.models import POINTER
from headrace.stores.redis_client import connect
from headrace.stores.redis_log import RedisEventLog
from serving.metrics import RecommenderMetrics
from serving.recommender import build_recommender
from serving.refresher import Refresher
from tests.integration import tiny_bundle

ITEMS = [f"i{number}" for number in range(6)]
KEY = {"X-API-Key": "reader"}


def save_bundle(settings: Settings, version: str, fingerprint: int | None = None, **catalogue: list[Any]) -> Path:
    """A bundle of i0, i1 and i2, trained on the features that are registered unless a fingerprint says otherwise."""
    actual = load_definitions(settings).streams[names.USER_ACTIVITY].fingerprint
    return tiny_bundle.save_bundle(
        settings, version, ITEMS[:3], {names.USER_ACTIVITY: fingerprint or actual}, **catalogue
    )


def promote(settings: Settings, folder: Path) -> None:
    pointer = httpx.Response(200, json={"version": folder.name, "path": str(folder), "promoted_at": 1}).text
    (settings.bundles_dir / POINTER).write_text(pointer)


def add_items(settings: Settings, items: dict[str, bool], seconds_ago: float = 60, **columns: list[Any]) -> None:
    """Catalogue rows in the lake: item to whether it is available, and columns besides the usual ones."""
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
        **columns,
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


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """These tests ask what is read, not how fast: a busy machine must not make an answer degraded."""
    monkeypatch.setattr("serving.refresher.REQUEST_TIMEOUT_S", 2.0)


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
            return (await client.post("/v1/recommend", json={"deadline_ms": 10_000, **body})).json()

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


def test_a_catalogue_field_that_training_used_reaches_the_index_and_the_histories(stack: Settings) -> None:
    """Law 1 for the catalogue: what the bundle was fitted on is read in serving, a number that was added too."""
    stack.bundles_dir.mkdir(parents=True)
    weights = [1.0, 10.0, 100.0, 1_000.0]
    add_items(stack, dict.fromkeys(ITEMS[:4], True), weight=weights)
    promote(stack, save_bundle(stack, "v1", weight=weights[:3]))
    made = refresher(stack)
    bundle = Bundle.load(stack.bundles_dir / "v1")
    content = {"item_id": ITEMS[:4]} | {
        f"item_catalogue__{name}": column
        for name, column in {"category": ["a"] * 4, "price": [1.0] * 4, "weight": weights}.items()
    }
    expected = Catalogue(bundle.preprocessing, content).inputs.content_NF
    serving: Any = made.live.state.model
    table = serving._scorer.catalogue
    assert torch.equal(table.inputs.content_NF[table.rows(ITEMS[:4])], expected[Catalogue.FIRST :])
    vector = serving._index.reconstruct(3)
    assert np.allclose(vector, bundle.scorer().item_vectors({n: c[3:] for n, c in content.items()})[0], atol=1e-6)
    made.close()


def test_a_new_champion_is_swapped_in_and_the_old_state_is_left_whole(shop: Settings) -> None:
    promote(shop, save_bundle(shop, "v1"))
    made = refresher(shop)
    old = made.live.state
    promote(shop, save_bundle(shop, "v2"))
    made.refresh_model()
    assert (old.model.version, made.live.state.model.version) == ("v1", "v2")  # type: ignore[union-attr]
    assert made.live.problems == {}
    made.close()


def test_a_damaged_bundle_is_refused_by_name_while_the_old_one_goes_on(shop: Settings) -> None:
    promote(shop, save_bundle(shop, "v1"))
    made = refresher(shop)
    damaged = save_bundle(shop, "v2")
    (damaged / "weights.pt").write_bytes(b"nothing")
    promote(shop, damaged)
    made.refresh_model()
    assert made.live.state.model.version == "v1"  # type: ignore[union-attr]
    assert "version v2 is refused" in made.live.problems["champion"]
    assert "weights.pt" in made.live.problems["champion"]
    promote(shop, save_bundle(shop, "v3"))
    made.refresh_model()
    assert made.live.state.model.version == "v3"  # type: ignore[union-attr]
    assert made.live.problems == {}
    made.close()


def test_a_bundle_of_other_features_is_refused(shop: Settings) -> None:
    promote(shop, save_bundle(shop, "v1", fingerprint=12))
    made = refresher(shop)
    assert made.live.state.model is None
    assert "another definition of view user_activity" in made.live.problems["champion"]
    made.close()


def test_a_bundle_that_cannot_rank_is_refused_before_it_meets_a_request(
    shop: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr("serving.model.BundleModel.rank", broken)
    promote(shop, save_bundle(shop, "v1"))
    made = refresher(shop)
    assert made.live.state.model is None
    assert made.live.problems["champion"].startswith("version v1 is refused: bundle v1 cannot rank: mat1")
    made.close()


def test_a_feature_that_serving_reads_by_name_and_nobody_defines_is_named(
    shop: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = refresher(shop)
    assert made.live.problems == {}
    made.close()
    monkeypatch.setattr("serving.store.READ_BY_NAME", ("item_activity__views_7d", "item_activity__views_9y"))
    made = refresher(shop)
    assert made.live.problems["features"].startswith("item_activity__views_9y: not defined")
    assert made.live.state.catalogue.popular[0] == "i3"
    made.close()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b"\xff"])
def test_a_damaged_pointer_to_the_champion_changes_nothing(shop: Settings, content: bytes) -> None:
    promote(shop, save_bundle(shop, "v1"))
    made = refresher(shop)
    (shop.bundles_dir / POINTER).write_bytes(content)
    made.refresh_model()
    assert made.live.state.model.version == "v1"  # type: ignore[union-attr]
    assert "champion" in made.live.problems
    made.close()


def test_catalogue_availability_and_popularity_follow_the_lake_and_the_store(shop: Settings) -> None:
    made = refresher(shop)
    assert made.live.state.catalogue.popular[:2] == ("i3", "i0")
    add_items(shop, {"i6": True, "i3": False}, seconds_ago=1)
    view(shop, "w", "i6", "i6", "i6")
    made.refresh_catalogue()
    catalogue = made.live.state.catalogue
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
