"""The recommender on real features and real bundles: read from what the flow wrote, followed, swapped and refused while it serves.

One file, since all of it starts from one shop with a flow and a store.
"""

import asyncio
import os
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pytest
import redis
import torch
from bytewax.testing import run_main
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value

from flows.features import get_flow
from flows.recovery import StopFlag
from flows.source import Pace
from headrace import names
from headrace.clock import system_clock
from headrace.events import encode_records
from headrace.identity import shard_of
from headrace.models.bundle import Bundle
from headrace.ops.backfill import backfill
from headrace.ops.valkey import ValkeyServer
from headrace.settings import Settings
from headrace.stores.definitions import load_definitions
from headrace.stores.lake import append_rows
from headrace.stores.log import open_log
from headrace.stores.models import POINTER
from headrace.stores.online_reader import OnlineReader
from headrace.stores.online_writes import pack_rows, queue_rows
from headrace.stores.redis_client import connect
from headrace.stores.redis_log import RedisEventLog
from headrace.stores.tokens import EVENTS, make_token
from serving import catalogue as cat
from serving.candidates import RANK, RECOMMEND, SIMILAR, Filter, RecommendationRequest, Slate, Trace
from serving.engine import Engine
from serving.follower import Follower
from serving.metrics import RecommenderMetrics
from serving.pipeline import Means, answer
from serving.recommender import build_recommender
from serving.refresher import Refresher
from serving.replica import Replica
from serving.state import ServingState
from tests.conftest import wait_until
from tests.integration import tiny_bundle
from tests.integration.small_repo import apply_views, feature, make_settings, run_lake, stream_view

ITEMS = [f"i{number}" for number in range(6)]
KEY = {"X-API-Key": "reader"}


def save_bundle(settings: Settings, version: str, fingerprint: int | None = None, **catalogue: list[Any]) -> Path:
    """A bundle of i0, i1 and i2, trained on the features that are registered unless a fingerprint says otherwise."""
    actual = load_definitions(settings).streams[names.USER_ACTIVITY].fingerprint
    return tiny_bundle.save_bundle(
        settings, version, ITEMS[:3], {names.USER_ACTIVITY: fingerprint or actual}, **catalogue
    )


def promote(settings: Settings, folder: Path) -> None:
    """As a registry does it: in one step."""
    pointer = httpx.Response(200, json={"version": folder.name, "path": str(folder), "promoted_at": 1}).text
    draft = settings.bundles_dir / "pointer.new"
    draft.write_text(pointer)
    draft.replace(settings.bundles_dir / POINTER)


def write_rows(settings: Settings, view: str, rows: Mapping[str, Mapping[str, Any]], seconds_ago: float = 0) -> None:
    """Rows of a plain view into the online store, as a materialization writes them: item to its values."""
    moment = datetime.now(UTC) - timedelta(seconds=seconds_ago)
    kinds = {str: "string_val", bool: "bool_val", float: "double_val"}
    data = [
        (
            EntityKey(join_keys=["item_id"], entity_values=[Value(string_val=item)]),
            {name: Value(**{kinds[type(value)]: value}) for name, value in values.items() if value is not None},
            moment,
            moment,
        )
        for item, values in rows.items()
    ]
    keys, packed = pack_rows(load_definitions(settings).plain[view], data, system_clock())
    with connect(settings) as client:
        pipeline = client.pipeline(transaction=False)
        queue_rows(pipeline, view, keys, packed, settings.shards, announced=True)
        pipeline.execute()


def add_items(settings: Settings, items: Mapping[str, bool], seconds_ago: float = 60, **columns: Sequence[Any]) -> None:
    """Catalogue rows in the lake and online: item to whether it is available, and columns besides the usual ones."""
    moment = datetime.now(UTC) - timedelta(seconds=seconds_ago)
    count = len(items)
    content: dict[str, Sequence[Any]] = {"category": ["a"] * count, "price": [1.0] * count, **columns}
    rows = {
        "item_id": list(items),
        "title": pa.array([None] * count, pa.string()),
        "brand": pa.array([None] * count, pa.string()),
        "available": list(items.values()),
        "event_timestamp": pa.array([moment] * count, pa.timestamp("us", tz="UTC")),
        "created": pa.array([moment] * count, pa.timestamp("us", tz="UTC")),
        **content,
    }
    append_rows(settings.lake_dir, names.ITEMS_TABLE, pa.table(rows))
    values = {
        item: {"available": available} | {name: column[place] for name, column in content.items()}
        for place, (item, available) in enumerate(items.items())
    }
    write_rows(settings, names.ITEM_CATALOGUE, values, seconds_ago)


def append(settings: Settings, user: str, *items: str, kind: str = "view") -> None:
    """Events of now into the log."""
    with connect(settings) as client:
        log = RedisEventLog(client, settings.log_partitions, names.PROJECT, settings.log_max_bytes)
        partition, now = shard_of(user, log.partitions), system_clock()
        records = [
            {"event_id": f"{user}-{now}-{number}", "type": kind, "user_key": user, "item_id": item}
            | {"timestamp": now - 10 + number, "received_at": now}
            for number, item in enumerate(items)
        ]
        log.append({partition: encode_records(records)}, {partition: len(records)})


def run_flow(settings: Settings) -> None:
    """The feature flow to the end of the log."""
    run_main(get_flow(settings, system_clock, StopFlag(), Pace(), until_end=True))


def view(settings: Settings, user: str, *items: str) -> None:
    append(settings, user, *items)
    run_flow(settings)


@dataclass
class Service:
    """One replica, as the application puts it together, without HTTP."""

    replica: Replica
    refresher: Refresher
    follower: Follower
    engine: Engine

    @classmethod
    def of(cls, settings: Settings) -> "Service":
        metrics, engine = RecommenderMetrics(), Engine()
        replica = Replica(engine)
        made = cls(
            replica,
            Refresher(settings, replica, system_clock, metrics),
            Follower(replica, system_clock, metrics),
            engine,
        )
        made.refresher.refresh_once()
        return made

    def start(self) -> None:
        self.refresher.start()
        self.follower.start()

    def close(self) -> None:
        self.follower.close()
        self.refresher.close()
        self.engine.close()

    @property
    def state(self) -> ServingState:
        return self.replica.live.state

    @property
    def problems(self) -> dict[str, str]:
        return self.replica.live.problems

    @property
    def version(self) -> str | None:
        return self.state.model.version if self.state.model else None

    def popular(self) -> list[str]:
        return [self.state.catalogue.item_ids[row] for row in self.state.catalogue.orders.popular]

    def ask(self, user: str = "u", n: int = 10, kind: str = RECOMMEND, t_us: int | None = None, **more: Any) -> Slate:
        readers = self.replica.live.readers
        clock = (lambda: t_us) if t_us is not None else system_clock
        means = Means(readers.request if readers else None, clock, 3_600_000_000)
        request = RecommendationRequest(user, n, kind, **more)
        return self.engine.change(lambda: answer(request, self.state, means, Trace(60_000))).result()

    def ids(self, **more: Any) -> list[str]:
        return self.ask(**more).item_ids


@contextmanager
def serving(settings: Settings) -> Iterator[Service]:
    service = Service.of(settings)
    try:
        yield service
    finally:
        service.close()


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """These tests ask what is read, not how fast: a busy machine must not make an answer degraded."""
    monkeypatch.setattr("serving.refresher.REQUEST_TIMEOUT_S", 5.0)


@pytest.fixture
def shop(stack: Settings) -> Settings:
    """Six items in the catalogue, i5 not available; u has viewed i3 and i0, i3 is the most popular."""
    settings = stack.model_copy(update={"read_keys": "reader", "deadline_ms": 60_000, "feature_age_bound_s": 3_600})
    settings.bundles_dir.mkdir(parents=True)
    add_items(settings, {item: item != "i5" for item in ITEMS})
    append(settings, "u", "i3", "i0")
    view(settings, "v", "i3")
    return settings


def recommend(settings: Settings, **body: Any) -> Any:
    async def one() -> Any:
        transport = httpx.ASGITransport(build_recommender(settings))
        async with httpx.AsyncClient(transport=transport, base_url="http://test", headers=KEY) as client:
            return (await client.post("/v1/recommend", json={"deadline_ms": 60_000, **body})).json()

    return asyncio.run(one())


def test_without_a_model_the_live_popularity_orders_what_is_available(shop: Settings) -> None:
    answered = recommend(shop, user_id="u", n=10)
    assert [(item["item_id"], item["source"]) for item in answered["items"]] == [
        ("i3", "category_trending"),
        ("i0", "category_trending"),
        ("i1", "new"),
        ("i2", "new"),
        ("i4", "new"),
    ]
    assert answered["degraded"] == ["retrieval: no model"]
    assert 0 <= answered["features_age_ms"] < 3_600_000


def test_a_bundle_retrieves_ranks_and_names_its_version_and_items_newer_than_it_are_found_too(shop: Settings) -> None:
    promote(shop, save_bundle(shop, "v1"))
    answered = recommend(shop, user_id="u", n=10)
    assert {item["item_id"] for item in answered["items"]} == set(ITEMS) - {"i5"}
    assert {item["source"] for item in answered["items"]} == {"two_tower"}
    scores = [item["score"] for item in answered["items"]]
    assert scores == sorted(scores, reverse=True)
    assert (answered["model_version"], answered["degraded"]) == ("v1", [])


def test_content_that_training_used_reaches_the_index_and_the_shelf(stack: Settings) -> None:
    """Law 1 for the catalogue: what the bundle was fitted on is read in serving, also of an item that it never saw."""
    stack.bundles_dir.mkdir(parents=True)
    content: dict[str, list[Any]] = {"category": ["a", "b", "a", "b"], "price": [1.0, 20.0, 300.0, 4_000.0]}
    add_items(stack, dict.fromkeys(ITEMS[:4], True), **content)
    promote(stack, save_bundle(stack, "v1"))
    bundle = Bundle.load(stack.bundles_dir / "v1")
    named = {"item_id": ITEMS[:4]} | {f"item_catalogue__{name}": column for name, column in content.items()}
    expected = bundle.preprocessing.items(named, with_activity=False)
    with serving(stack) as service:
        model: Any = service.state.model
        rows = service.state.catalogue.rows(ITEMS[:4])
        stored = model._shelf._rows(rows + 2)
        encoded = model._shelf._packing.ranked(stored, stored[..., :0])
        assert torch.equal(encoded.inputs.content_NF, expected.content_NF)
        assert torch.equal(encoded.inputs.categories_NC, expected.categories_NC.float())
        assert np.allclose(model._shelf.vectors(rows), bundle.scorer().item_vectors(named), atol=1e-6)


# Changes of items, without a refresh of the model.


def test_what_changes_in_the_store_is_in_answers_within_two_seconds(shop: Settings) -> None:
    promote(shop, save_bundle(shop, "v1"))
    dear = Filter(min_price=500.0)
    with serving(shop) as service:
        service.start()
        assert sorted(service.ids()) == ["i0", "i1", "i2", "i3", "i4"]

        def soon(holds: Callable[[], bool]) -> None:
            wait_until(holds, timeout_s=2.0)

        assert service.ids(wanted=dear) == []
        write_rows(shop, names.ITEM_CATALOGUE, {"i1": {"category": "a", "price": 900.0, "available": True}})
        soon(lambda: service.ids(wanted=dear) == ["i1"])
        write_rows(shop, names.ITEM_STATUS, {"i2": {"available": False}, "i5": {"available": True}})
        soon(lambda: sorted(service.ids()) == ["i0", "i1", "i3", "i4", "i5"])
        write_rows(shop, names.ITEM_STATUS, {"i0": {"deleted": True}})
        soon(lambda: sorted(service.ids()) == ["i1", "i3", "i4", "i5"])
        write_rows(shop, names.ITEM_CATALOGUE, {"new": {"category": "b", "price": 2.0}})
        soon(lambda: sorted(service.ids()) == ["i1", "i3", "i4", "i5", "new"])
        assert "new" in service.ids(kind=SIMILAR, items=("i1",))
        write_rows(shop, names.ITEM_CATALOGUE, {"i0": {"category": "a", "price": 1.0}})
        soon(lambda: "i0" in service.ids())
        assert (service.version, service.problems) == ("v1", {})
        assert service.ask().trace.degraded == []


def test_changes_whose_rows_could_not_be_read_are_taken_in_the_next_time(
    shop: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise redis.TimeoutError("stalled")

    with serving(shop) as service:
        write_rows(shop, names.ITEM_STATUS, {"i0": {"deleted": True}})
        with monkeypatch.context() as patched:
            patched.setattr("serving.store.Readers.item_changes", fail)
            with pytest.raises(redis.TimeoutError):
                service.follower.follow_once()
        assert "i0" in service.ids()
        write_rows(shop, names.ITEM_STATUS, {"i1": {"deleted": True}})
        service.follower.follow_once()
        assert sorted(service.ids()) == ["i2", "i3", "i4"]


def test_events_of_items_are_in_what_is_popular(shop: Settings) -> None:
    with serving(shop) as service:
        assert service.popular()[:2] == ["i3", "i0"]
        view(shop, "w", "i4", "i4", "i4")
        service.follower.follow_once()
        service.refresher.refresh_orders()
        assert service.popular()[:3] == ["i4", "i3", "i0"]


def test_two_replicas_at_the_same_positions_and_t_give_the_same_answer(shop: Settings) -> None:
    promote(shop, save_bundle(shop, "v1"))
    with serving(shop) as first:
        write_rows(shop, names.ITEM_CATALOGUE, {"0-new": {"category": "b", "price": 2.0}})
        first.follower.follow_once()
        write_rows(shop, names.ITEM_STATUS, {"i1": {"available": False}})
        view(shop, "w", "0-new", "i4")
        with serving(shop) as second:
            for service in (first, second):
                service.follower.follow_once()
                service.refresher.refresh_orders()
            assert first.state.catalogue.item_ids != second.state.catalogue.item_ids  # in another order of rows
            assert first.replica.reached == second.replica.reached
            t_us = system_clock()
            asked: list[dict[str, Any]] = [
                {"user": user, "n": n} for user in ("u", "v", "w", "nobody") for n in (2, 10)
            ]
            asked += [{"kind": RANK, "items": ("i4", "x", "i0", "0-new")}, {"kind": SIMILAR, "items": ("i0",)}]
            for each in asked:
                one, other = (service.ask(**each, t_us=t_us) for service in (first, second))
                assert one.item_ids == other.item_ids
                assert one.sources == other.sources
                assert np.allclose(one.items.scores, other.items.scores, atol=1e-6)
                assert (one.as_of_us, one.model_version) == (other.as_of_us, other.model_version)
                assert one.trace.degraded == other.trace.degraded


def test_the_values_that_rank_are_those_of_a_read_of_the_store_at_the_same_t(shop: Settings) -> None:
    """Law 1 on the request path: of the user and of every item."""
    promote(shop, save_bundle(shop, "v1"))
    with serving(shop) as service:
        view(shop, "w", "i4", "i4", "i0")
        service.follower.follow_once()
        seen: list[tuple[Any, ...]] = []
        model: Any = service.state.model
        rank, read_user = model.rank, model.read_user
        model.rank = lambda user, rows, activity: seen.append((rows, activity)) or rank(user, rows, activity)
        model.read_user = lambda user, t_us: seen.append((user, t_us)) or read_user(user, t_us)
        slate = service.ask("w")
        (user, t_us), (rows, activity) = seen
        assert t_us == slate.as_of_us
        items = [service.state.catalogue.item_ids[row] for row in rows]
        with connect(shop) as client:
            read = OnlineReader(client, load_definitions(shop), shop).fetch(
                {names.USER_ACTIVITY: ["w"], names.USER_PROFILE: ["w"]}
            )
            of_items = OnlineReader(client, load_definitions(shop), shop).fetch({names.ITEM_ACTIVITY: items})
        values = of_items.streams[names.ITEM_ACTIVITY].values(t_us)
        wanted = [name.removeprefix("item_activity__") for name in model.activity_features]
        assert activity.tolist() == np.stack([values[name] for name in wanted], axis=1).tolist()
        assert dict(zip(items, activity[:, 0].tolist(), strict=True))["i4"] == 2.0
        for name, column in read.streams[names.USER_ACTIVITY].values(t_us).items():
            assert list(user[f"user_activity__{name}"]) == list(column)
        assert list(user["user_activity__recent_items"][0]) == ["i4", "i4", "i0"]


# Read your own writes.


def test_an_answer_waits_until_it_has_seen_what_was_acknowledged(
    shop: Settings, start_flow: Callable[[str], "subprocess.Popen[bytes]"]
) -> None:
    with connect(shop) as client:
        before = open_log(client, shop).end()

    async def story() -> None:
        app = build_recommender(shop)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test", headers=KEY) as http,
        ):

            async def ask(user: str, **body: Any) -> Any:
                return (await http.post("/v1/recommend", json={"user_id": user, "n": 10, **body})).json()

            append(shop, "w", "i4", kind="hide")
            with connect(shop) as client:
                after = open_log(client, shop).end()
            token = make_token(EVENTS, {p: n for p, n in after.items() if n > before.get(p, 0)})
            answered = await ask("w", after=token, deadline_ms=200)  # no flow is running
            assert "after: not yet seen" in answered["degraded"]
            assert "i4" in [item["item_id"] for item in answered["items"]]
            start_flow("features")
            answered = await ask("w", after=token)
            assert answered["degraded"] == ["retrieval: no model"]
            assert "i4" not in [item["item_id"] for item in answered["items"]]
            items_too = await ask("w", after=token.replace("e.", "i."))
            assert items_too["degraded"] == ["retrieval: no model"]

    asyncio.run(story())


# Models.


def test_a_new_champion_is_swapped_in_and_the_old_state_is_left_whole(shop: Settings) -> None:
    promote(shop, save_bundle(shop, "v1"))
    with serving(shop) as service:
        old = service.state
        promote(shop, save_bundle(shop, "v2"))
        service.refresher.refresh_model()
        assert old.model is not None
        assert (old.model.version, service.version) == ("v1", "v2")
        assert service.problems == {}


def test_a_damaged_bundle_is_refused_by_name_while_the_old_one_goes_on(shop: Settings) -> None:
    promote(shop, save_bundle(shop, "v1"))
    with serving(shop) as service:
        damaged = save_bundle(shop, "v2")
        (damaged / "weights.pt").write_bytes(b"nothing")
        promote(shop, damaged)
        service.refresher.refresh_model()
        assert service.version == "v1"
        assert "version v2 is refused" in service.problems["champion"]
        assert "weights.pt" in service.problems["champion"]
        assert service.ask().trace.degraded == []
        promote(shop, save_bundle(shop, "v3"))
        service.refresher.refresh_model()
        assert service.version == "v3"
        assert service.problems == {}


def test_a_replica_that_starts_while_the_champion_is_refused_takes_what_was_in_service_last(shop: Settings) -> None:
    promote(shop, save_bundle(shop, "v1"))
    with serving(shop):
        pass
    damaged = save_bundle(shop, "v2")
    (damaged / "weights.pt").write_bytes(b"nothing")
    promote(shop, damaged)
    with serving(shop) as service:
        assert service.version == "v1"
        assert "version v2 is refused" in service.problems["champion"]
        assert service.ask().model_version == "v1"
        promote(shop, save_bundle(shop, "v3"))
        service.refresher.refresh_model()
        assert (service.version, service.problems) == ("v3", {})
    (shop.bundles_dir / "v3" / "weights.pt").write_bytes(b"nothing")
    with serving(shop) as service:
        assert service.version is None
        assert service.ask().trace.degraded == ["retrieval: no model"]


def test_a_champion_that_came_into_service_unchecked_gives_way_to_what_fitted_last(shop: Settings) -> None:
    """Without a store nobody knows whether a bundle fits it."""
    promote(shop, save_bundle(shop, "v1"))
    with serving(shop):
        pass
    promote(shop, save_bundle(shop, "v2", fingerprint=12))
    with serving(shop.model_copy(update={"redis_url": "redis://127.0.0.1:1/0"})) as service:
        assert service.version == "v2"
        service.refresher._settings = shop  # the store is back
        service.refresher.refresh_store()
        service.refresher.refresh_model()
        assert service.version == "v1"
        assert "version v2 is refused" in service.problems["champion"]
        promote(shop, save_bundle(shop, "v3"))
        service.refresher.refresh_model()
        assert (service.version, set(service.problems)) == ("v3", set())


@pytest.mark.parametrize("content", ["null", "[]", "{", '{"sha256": 1}'])
def test_a_bundle_whose_manifest_is_anything_is_refused(shop: Settings, content: str) -> None:
    promote(shop, save_bundle(shop, "v1"))
    with serving(shop):
        pass
    bad = save_bundle(shop, "v2")
    (bad / "bundle.json").write_text(content)
    promote(shop, bad)
    with serving(shop) as service:
        assert service.version == "v1"
        assert "version v2 is refused" in service.problems["champion"]


def test_without_a_readable_pointer_to_the_champion_a_replica_starts_with_what_served_last(shop: Settings) -> None:
    promote(shop, save_bundle(shop, "v1"))
    with serving(shop):
        pass
    (shop.bundles_dir / POINTER).write_bytes(b"")
    with serving(shop) as service:
        assert service.version == "v1"
        assert "champion" in service.problems


def test_an_operation_on_one_item_is_no_catalogue(stack: Settings) -> None:
    """In a shop that never sent one, every item with activity goes on to be one."""
    with serving(stack) as service:
        view(stack, "u", *[f"x{number}" for number in range(6)])
        service.follower.follow_once()
        write_rows(stack, names.ITEM_STATUS, {"x0": {"available": False, "deleted": False}})
        for _ in range(2):
            service.follower.follow_once()
            service.refresher.refresh_store()
            service.refresher.refresh_orders()
            assert sorted(service.ids(user="someone", n=20)) == [f"x{number}" for number in range(1, 6)]
    with serving(stack) as service:
        assert sorted(service.ids(user="someone", n=20)) == [f"x{number}" for number in range(1, 6)]


def test_a_bundle_of_other_features_is_refused_while_the_old_one_goes_on(shop: Settings) -> None:
    promote(shop, save_bundle(shop, "v1"))
    with serving(shop) as service:
        promote(shop, save_bundle(shop, "v2", fingerprint=12))
        service.refresher.refresh_model()
        assert service.version == "v1"
        assert "another definition of view user_activity" in service.problems["champion"]
        assert service.ask().model_version == "v1"
        promote(shop, tiny_bundle.save_bundle(shop, "v3", ITEMS[:3], {"sessions": 7}))
        service.refresher.refresh_model()
        assert service.version == "v1"
        assert "trained on view sessions (fingerprint 7), which is not there" in service.problems["champion"]


def test_a_bundle_that_cannot_rank_is_refused_before_it_meets_a_request(
    shop: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr("serving.model.BundleModel.rank", broken)
    promote(shop, save_bundle(shop, "v1"))
    with serving(shop) as service:
        assert service.state.model is None
        assert service.problems["champion"].startswith("version v1 is refused: bundle v1 cannot rank: mat1")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b"\xff"])
def test_a_damaged_pointer_to_the_champion_changes_nothing(shop: Settings, content: bytes) -> None:
    promote(shop, save_bundle(shop, "v1"))
    with serving(shop) as service:
        (shop.bundles_dir / POINTER).write_bytes(content)
        service.refresher.refresh_model()
        assert service.version == "v1"
        assert "champion" in service.problems


# Definitions.


def test_a_feature_that_serving_reads_by_name_and_nobody_defines_is_named(
    shop: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(shop) as service:
        assert service.problems == {}
    monkeypatch.setattr("serving.store.READ_BY_NAME", ("item_activity__views_7d", "item_activity__views_9y"))
    with serving(shop) as service:
        assert service.problems["features"].startswith("item_activity__views_9y: not defined")
        assert service.popular()[0] == "i3"


def test_a_registry_that_was_written_again_is_read_again_and_the_model_goes_on(shop: Settings) -> None:
    promote(shop, save_bundle(shop, "v1"))
    with serving(shop) as service:
        before = service.state.catalogue
        service.refresher.refresh_store()
        assert service.state.catalogue is before
        os.utime(shop.registry_path)
        service.refresher.refresh_store()
        assert service.state.catalogue is not before
        assert service.state.catalogue.item_ids == before.item_ids
        assert (service.version, service.problems) == ("v1", {})
        assert service.ask().trace.degraded == []
        write_rows(shop, names.ITEM_STATUS, {"i0": {"deleted": True}})
        service.follower.follow_once()
        assert sorted(service.ids()) == ["i1", "i2", "i3", "i4"]


def test_columns_have_a_feature_that_was_added_once_the_state_does(tmp_path: Path, valkey: str) -> None:
    settings = make_settings(tmp_path, valkey)
    views, clicks = feature("views", "view"), feature("clicks", "click")
    users = stream_view("user_activity", feature("views", "view"))
    apply_views(settings, users, stream_view("item_activity", views, of="item"))
    append(settings, "u", "a", "a")
    append(settings, "u", "a", kind="click")
    run_flow(settings)
    run_lake(settings)
    with serving(settings) as service:
        activity: Any = service.state.activity
        assert (activity.features, service.state.catalogue.item_ids) == (["item_activity__views"], ["a"])
        assert activity.at(np.array([0]), system_clock()).tolist() == [[2.0]]
        apply_views(settings, users, stream_view("item_activity", views, clicks, of="item"))
        service.refresher.refresh_store()
        activity = service.state.activity
        assert activity.features == ["item_activity__views"]  # as the state still has it
        backfill(settings)
        service.ask()  # reads a row, and so learns of the new state
        service.follower.follow_once()
        service.refresher.refresh_store()
        activity = service.state.activity
        assert activity.features == ["item_activity__views", "item_activity__clicks"]
        assert activity.at(np.array([0]), system_clock()).tolist() == [[2.0, 1.0]]


# The store and everything else gone.


def test_a_store_that_is_killed_and_started_again_is_followed_again(
    stack: Settings, make_valkey: Callable[[], ValkeyServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serving.store.BULK_TIMEOUT_S", 1.0)
    server = make_valkey()
    settings = stack.model_copy(update={"redis_url": server.url})
    settings.bundles_dir.mkdir(parents=True)
    add_items(settings, dict.fromkeys(ITEMS, True))
    view(settings, "u", "i3")
    promote(settings, save_bundle(settings, "v1"))
    with serving(settings) as service:
        service.start()
        assert service.ask().trace.degraded == []
        server.kill()
        wait_until(lambda: "feed" in service.problems)
        slate = service.ask()
        assert len(slate.item_ids) == 6
        assert slate.trace.degraded == ["hydrate: user features unavailable"]
        server.start()
        wait_until(lambda: service.ask().trace.degraded == [])
        write_rows(settings, names.ITEM_STATUS, {"i0": {"deleted": True}})
        wait_until(lambda: "i0" not in service.ids())
        wait_until(lambda: service.problems == {})


def test_after_a_restart_with_store_and_bundle_gone_the_snapshot_answers(shop: Settings) -> None:
    add_items(shop, {"i1": True, "i2": True}, seconds_ago=1, category=["b", "b"], price=[5.0, 50.0])
    with serving(shop) as service:
        assert service.state.catalogue.origin == cat.LIVE
    gone = shop.model_copy(update={"redis_url": "redis://127.0.0.1:1/0"})
    with serving(gone) as service:
        assert service.ids()[:2] == ["i3", "i0"]
        assert sorted(service.ids()) == ["i0", "i1", "i2", "i3", "i4"]
        assert service.ids(n=1) == ["i3"]
        assert service.ids(n=2, exclude=frozenset({"i3"}))[0] == "i0"
        assert sorted(service.ids(wanted=Filter(category=frozenset({"b"})))) == ["i1", "i2"]
        assert service.ids(wanted=Filter(min_price=10.0)) == ["i2"]
        assert "i5" in service.ids(wanted=Filter(include_unavailable=True))
        assert "store" in service.problems
    answered = recommend(gone, user_id="u", n=10)
    assert [item["item_id"] for item in answered["items"]][:2] == ["i3", "i0"]
    assert answered["degraded"] == [
        "hydrate: user features unavailable",
        "retrieval: no model",
        "catalogue: from snapshot",
    ]


def test_without_a_store_and_a_snapshot_the_bundle_answers(shop: Settings) -> None:
    promote(shop, save_bundle(shop, "v1"))
    with serving(shop.model_copy(update={"redis_url": "redis://127.0.0.1:1/0"})) as service:
        slate = service.ask()
        assert sorted(slate.item_ids) == ["i0", "i1", "i2"]
        assert slate.trace.degraded == ["hydrate: user features unavailable", "catalogue: from bundle"]


# A shop without a catalogue.


def test_a_shop_without_a_catalogue_recommends_what_was_acted_on_until_it_sends_one(stack: Settings) -> None:
    with serving(stack) as service:
        assert service.ask().trace.degraded == [
            "hydrate: store empty",
            "hydrate: unknown user",
            "retrieval: no model",
            "catalogue: empty",
        ]
        view(stack, "u", "x", "y", "y")
        service.follower.follow_once()
        service.refresher.refresh_orders()
        assert service.ids(user="someone") == ["y", "x"]
        with serving(stack) as started_later:
            assert started_later.ids(user="someone") == ["y", "x"]
        add_items(stack, {"x": True, "z": True})
        service.follower.follow_once()
        service.refresher.refresh_store()
        service.refresher.refresh_orders()
        assert service.ids(user="someone") == ["x", "z"]
