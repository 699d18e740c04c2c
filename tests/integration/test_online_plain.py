"""Plain views through Feast: which row stays, how long it is there, what is refused, and what an entity is called."""

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import redis
from feast import Entity, FeatureService, FeatureStore, Field
from feast.online_response import OnlineResponse
from feast.protos.feast.serving.ServingService_pb2 import FieldStatus
from feast.types import Array, Float32, Float64, Int64, String
from feast.value_type import ValueType

from headrace.aggregates.rows import StateMismatchError
from headrace.settings import Settings
from headrace.stores.online import PrecomputeError
from headrace.stores.online_keys import EntityKeyError
from headrace.stores.online_writes import FutureRowError
from headrace.stores.redis_client import connect
from headrace.stores.shards import DeploymentError, row_key
from tests.integration.online_repo import LONG_AGO, item, make_store, plain_view, rows, user

PRICE = [Field(name="price", dtype=Float64)]
NOW = datetime.now(UTC)


@pytest.fixture
def served(settings: Settings, valkey: str) -> Settings:
    return settings.model_copy(update={"redis_url": valkey, "data": settings.data.resolve()})


@pytest.fixture
def store(served: Settings, tmp_path: Path) -> FeatureStore:
    return make_store(served, item, plain_view("items", PRICE, tmp_path / "items.parquet"))


def price_of(store: FeatureStore, *ids: str) -> list[float | None]:
    answer = store.get_online_features(["items:price"], [{"item_id": each} for each in ids]).to_dict()
    return answer["price"]  # type: ignore[no-any-return]


def test_of_several_rows_of_a_key_in_one_batch_the_newest_stays(store: FeatureStore) -> None:
    store.push(
        "items",
        rows(
            {"item_id": "a", "price": 1.0, "event_timestamp": LONG_AGO},
            {"item_id": "a", "price": 3.0, "event_timestamp": LONG_AGO + timedelta(seconds=2)},
            {"item_id": "a", "price": 2.0, "event_timestamp": LONG_AGO + timedelta(seconds=1)},
        ),
    )
    assert price_of(store, "a") == [3.0]


def test_of_equal_timestamps_the_newer_created_stays_and_of_equal_both_the_later_write(store: FeatureStore) -> None:
    later = LONG_AGO + timedelta(microseconds=1)
    store.push("items", rows({"item_id": "a", "price": 2.0}, created=later))
    store.push("items", rows({"item_id": "a", "price": 1.0}, created=LONG_AGO))
    assert price_of(store, "a") == [2.0]
    store.push("items", rows({"item_id": "a", "price": 3.0}, {"item_id": "a", "price": 4.0}, created=later))
    assert price_of(store, "a") == [4.0]


def test_times_are_told_apart_to_the_microsecond_before_1970_too(store: FeatureStore) -> None:
    before = datetime(1969, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC)
    store.push("items", rows({"item_id": "a", "price": 1.0}, at=before))
    store.push("items", rows({"item_id": "a", "price": 2.0}, at=before - timedelta(microseconds=1)))
    assert price_of(store, "a") == [1.0]
    store.push("items", rows({"item_id": "a", "price": 3.0}, at=before + timedelta(microseconds=1)))
    assert price_of(store, "a") == [3.0]


def test_a_batch_with_a_row_dated_after_now_is_refused_whole_with_the_entity(store: FeatureStore) -> None:
    ahead = NOW + timedelta(days=1)
    batch = rows({"item_id": "a", "price": 1.0}, {"item_id": "b", "price": 2.0, "event_timestamp": ahead})
    with pytest.raises(FutureRowError, match=r"view 'items', entity 'b'.*after now; correct its timestamp"):
        store.push("items", batch)
    assert price_of(store, "a", "b") == [None, None]


def test_a_row_without_a_key_is_refused(store: FeatureStore) -> None:
    with pytest.raises(EntityKeyError, match="'item_id' has no value"):
        store.push("items", rows({"item_id": "a", "price": 1.0}, {"item_id": None, "price": 2.0}))


def test_past_the_ttl_a_row_is_null_and_its_status_says_so_sync_and_async(served: Settings, tmp_path: Path) -> None:
    view = plain_view("items", PRICE, tmp_path / "items.parquet", ttl=timedelta(hours=1))
    store = make_store(served, item, view)
    store.push("items", rows({"item_id": "young", "price": 1.0}, at=NOW - timedelta(minutes=30)))
    store.push("items", rows({"item_id": "old", "price": 2.0}, at=NOW - timedelta(minutes=90)))
    asked = ["items:price"], [{"item_id": each} for each in ("old", "young", "none", "old")]

    async def read_and_close() -> OnlineResponse:
        answer = await store.get_online_features_async(*asked)
        await store.close()
        return answer

    for answer in (store.get_online_features(*asked), asyncio.run(read_and_close())):
        assert answer.to_dict()["price"] == [None, 1.0, None, None]
        (vector,) = [answer.proto.results[1]]
        assert list(vector.statuses) == [
            FieldStatus.OUTSIDE_MAX_AGE, FieldStatus.PRESENT, FieldStatus.NOT_FOUND, FieldStatus.OUTSIDE_MAX_AGE,
        ]  # fmt: skip
        assert vector.event_timestamps[1].ToDatetime(UTC) == NOW - timedelta(minutes=30)


def test_writes_and_reads_in_asyncio_do_the_same_in_one_loop_after_another(store: FeatureStore) -> None:
    async def write_and_read(price: float) -> list[float | None]:
        await store.push_async("items", rows({"item_id": "a", "price": price}))
        answer = await store.get_online_features_async(["items:price"], [{"item_id": "b"}, {"item_id": "a"}])
        with pytest.raises(FutureRowError):
            await store.push_async("items", rows({"item_id": "a", "price": 9.0}, at=NOW + timedelta(days=1)))
        await store.close()
        return answer.to_dict()["price"]  # type: ignore[no-any-return]

    assert asyncio.run(write_and_read(1.0)) == [None, 1.0]
    assert asyncio.run(write_and_read(2.0)) == [None, 2.0]
    assert price_of(store, "a") == [2.0]


def test_entities_may_repeat_in_a_request_and_come_back_in_its_order(store: FeatureStore) -> None:
    store.push("items", rows({"item_id": "a", "price": 1.0}, {"item_id": "b", "price": 2.0}))
    assert price_of(store, "b", "none", "a", "b") == [2.0, None, 1.0, 2.0]


def test_several_join_keys_of_any_kind_name_one_entity(served: Settings, tmp_path: Path) -> None:
    shop = Entity(name="shop", join_keys=["shop_id"], value_type=ValueType.INT64)
    view = plain_view("offers", PRICE, tmp_path / "offers.parquet", entities=[item, shop])
    store = make_store(served, item, shop, view)
    offers = [("a\x1f1", 2), ("a", 12), ("a\\u1", 2), ("a", 1)]
    store.push(
        "offers",
        rows(*({"item_id": one, "shop_id": two, "price": float(n)} for n, (one, two) in enumerate(offers))),
    )
    asked = [{"item_id": one, "shop_id": two} for one, two in [*offers, ("a", 2)]]
    assert store.get_online_features(["offers:price"], asked).to_dict()["price"] == [0.0, 1.0, 2.0, 3.0, None]


@pytest.mark.parametrize(
    ("kind", "ids"),
    [
        (ValueType.INT64, [1, -1, 2**62]),
        (ValueType.INT32, [1, 11]),
        (ValueType.UUID, ["00000000-0000-0000-0000-000000000001", "00000000-0000-0000-0000-000000000002"]),
        (ValueType.BYTES, [b"\0", b"\0\0"]),
    ],
)
def test_an_entity_may_be_a_number_a_uuid_or_bytes(
    kind: ValueType, ids: list[object], served: Settings, tmp_path: Path
) -> None:
    thing = Entity(name="thing", join_keys=["thing_id"], value_type=kind)
    store = make_store(served, thing, plain_view("things", PRICE, tmp_path / "none", entities=[thing]))
    store.push("things", rows(*({"thing_id": each, "price": float(n)} for n, each in enumerate(ids))))
    answer = store.get_online_features(["things:price"], [{"thing_id": each} for each in ids]).to_dict()
    assert answer["price"] == [float(n) for n in range(len(ids))]


def test_a_view_without_entities_has_one_row(served: Settings, tmp_path: Path) -> None:
    store = make_store(served, item, plain_view("shop", PRICE, tmp_path / "shop.parquet", entities=[]))
    store.push("shop", rows({"__dummy_id": "", "price": 5.0}))
    store.push("shop", rows({"__dummy_id": "", "price": 6.0}))
    assert store.get_online_features(["shop:price"], [{"any": 1}]).to_dict()["price"] == [6.0]


def test_one_view_read_under_two_names_of_its_entity(served: Settings, tmp_path: Path) -> None:
    store = make_store(served, item, plain_view("items", PRICE, tmp_path / "items.parquet"))
    view = store.get_feature_view("items")
    seen = view.with_name("seen").with_join_key_map({"item_id": "seen_id"})
    bought = view.with_name("bought").with_join_key_map({"item_id": "bought_id"})
    service = FeatureService(name="pairs", features=[seen, bought])
    store.apply([service])
    store.push("items", rows({"item_id": "a", "price": 1.0}, {"item_id": "b", "price": 2.0}))
    answer = store.get_online_features(service, [{"seen_id": "a", "bought_id": "b"}], full_feature_names=True)
    assert answer.to_dict() == {"seen_id": ["a"], "bought_id": ["b"], "seen__price": [1.0], "bought__price": [2.0]}


def test_a_service_that_asks_for_precomputed_vectors_is_refused_with_the_remedy(
    served: Settings, tmp_path: Path
) -> None:
    view = plain_view("items", PRICE, tmp_path / "items.parquet")
    store = make_store(served, item, view, FeatureService(name="quick", features=[view], precompute_online=True))
    service = store.get_feature_service("quick")
    with pytest.raises(PrecomputeError, match=r"'quick'.*take precompute_online=True out"):
        store.get_online_features(service, [{"item_id": "a"}])
    with pytest.raises(PrecomputeError, match="'quick'"):
        asyncio.run(store.get_online_features_async(service, [{"item_id": "a"}]))


def test_a_view_deleted_by_apply_takes_its_rows_along_and_no_others(served: Settings, tmp_path: Path) -> None:
    items = plain_view("items", PRICE, tmp_path / "items.parquet")
    near = plain_view("items_too", PRICE, tmp_path / "too.parquet")
    store = make_store(served, item, items, near)
    store.push("items", rows(*({"item_id": str(n), "price": 1.0} for n in range(20))))
    store.push("items_too", rows({"item_id": "1", "price": 2.0}))
    store.apply([item, near], objects_to_delete=[items], partial=False)
    client = connect(served)
    assert [key for key in client.scan_iter() if b":items:" in key] == []
    assert store.get_online_features(["items_too:price"], [{"item_id": "1"}]).to_dict()["price"] == [2.0]
    store.teardown()
    assert [key for key in client.scan_iter() if b":items_too:" in key] == []


def test_a_store_made_with_another_number_of_shards_is_refused(served: Settings, store: FeatureStore) -> None:
    store.push("items", rows({"item_id": "a", "price": 1.0}))
    other = FeatureStore(config=store.config.model_copy(deep=True))
    other.config.online_store.settings = served.model_copy(update={"shards": 8})
    with pytest.raises(DeploymentError, match="HEADRACE_SHARDS=4"):
        price_of(other, "a")
    with pytest.raises(DeploymentError, match="HEADRACE_SHARDS=4"):
        other.push("items", rows({"item_id": "a", "price": 2.0}))


def test_rows_of_an_older_schema_are_refused_until_new_ones_take_their_place(served: Settings, tmp_path: Path) -> None:
    old = plain_view("items", PRICE, tmp_path / "items.parquet")
    store = make_store(served, item, old)
    store.push("items", rows({"item_id": "a", "price": 1.0}, at=NOW - timedelta(hours=1)))
    store = make_store(
        served, item, plain_view("items", [*PRICE, Field(name="stock", dtype=Int64)], tmp_path / "items.parquet")
    )
    with pytest.raises(StateMismatchError, match="'items' has another schema: materialize"):
        price_of(store, "a")
    store.push("items", rows({"item_id": "a", "price": 2.0, "stock": 3}, at=LONG_AGO))
    assert price_of(store, "a") == [2.0]


def test_a_damaged_row_is_refused(served: Settings, store: FeatureStore) -> None:
    store.push("items", rows({"item_id": "a", "price": 1.0}))
    client = connect(served)
    (key,) = [key for shard in range(4) if client.exists(key := row_key(shard, "items", "a"))]
    client.setrange(key, 100, b"x")
    with pytest.raises(StateMismatchError, match="'items' is damaged"):
        price_of(store, "a")


def test_a_store_that_is_gone_is_an_error_that_says_where(served: Settings, tmp_path: Path) -> None:
    gone = served.model_copy(update={"redis_url": "redis://127.0.0.1:1/0"})
    store = make_store(gone, item, plain_view("items", PRICE, tmp_path / "items.parquet"))
    with pytest.raises(redis.ConnectionError, match=r"127\.0\.0\.1:1"):
        price_of(store, "a")


def test_vector_search_and_several_versions_are_refused_by_name(served: Settings, tmp_path: Path) -> None:
    vectors = plain_view(
        "vectors",
        [Field(name="place", dtype=Array(Float32), vector_index=True, vector_search_metric="L2", vector_length=2)],
        tmp_path / "none",
    )
    store = make_store(served, item, vectors, user)
    with pytest.raises(NotImplementedError, match="PackedRedisOnlineStore does not support online retrieval"):
        store.retrieve_online_documents_v2(features=["vectors:place"], query=[0.0, 1.0], top_k=1)
    config = store.config.model_copy(deep=True)
    config.registry.enable_online_feature_view_versioning = True
    with pytest.raises(ValueError, match="one version of a view"):
        FeatureStore(config=config).apply([vectors])


def test_what_a_string_column_holds_is_not_text_to_the_store(served: Settings, tmp_path: Path) -> None:
    view = plain_view("names", [Field(name="name", dtype=String)], tmp_path / "none")
    store = make_store(served, item, view)
    names = ["", "né", "\0", "a\x1fb", "𝄞" * 1_000]
    store.push("names", rows(*({"item_id": str(n), "name": name} for n, name in enumerate(names))))
    answer = store.get_online_features(["names:name"], [{"item_id": str(n)} for n in range(len(names))]).to_dict()
    assert answer["name"] == names
