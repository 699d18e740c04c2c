"""Every value type of Feast goes into the online store and comes out as Feast itself would have it."""

import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
import redis
from feast import FeatureStore, Field
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value
from feast.type_map import feast_value_type_to_python_type, python_values_to_proto_values
from feast.types import from_value_type
from feast.value_type import ValueType

from headrace.clock import system_clock
from headrace.ops.valkey import ValkeyServer
from headrace.settings import Settings
from headrace.stores.definitions import load_definitions
from headrace.stores.online_reader import OnlineReader
from headrace.stores.redis_client import connect
from tests.integration.online_repo import LONG_AGO, item, make_store, plain_view, rows

UNDECLARABLE = {"UNKNOWN", "NULL"}
"""Feast knows no field of these types."""
WHOLE_SECOND = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
ID = uuid.UUID(int=5)
SAMPLES: Mapping[str, Any] = {
    "BYTES": b"\0\xff",
    "STRING": "né\x1f",
    "INT32": -5,
    "INT64": 2**60 + 1,
    "DOUBLE": 0.1,
    "FLOAT": 0.5,
    "BOOL": True,
    "UNIX_TIMESTAMP": WHOLE_SECOND,
    "BYTES_LIST": [b"a", b""],
    "STRING_LIST": ["a", ""],
    "INT32_LIST": [1, -2],
    "INT64_LIST": [2**60 + 1],
    "DOUBLE_LIST": [0.1],
    "FLOAT_LIST": [0.5],
    "BOOL_LIST": [True, False],
    "UNIX_TIMESTAMP_LIST": [WHOLE_SECOND],
    "MAP": {"a": 1, "b": "x"},
    "MAP_LIST": [{"a": 1}],
    "BYTES_SET": {b"a"},
    "STRING_SET": {"a"},
    "INT32_SET": {1},
    "INT64_SET": {2**60},
    "DOUBLE_SET": {0.1},
    "FLOAT_SET": {0.5},
    "BOOL_SET": {True},
    "UNIX_TIMESTAMP_SET": {WHOLE_SECOND},
    "PDF_BYTES": b"%PDF",
    "IMAGE_BYTES": b"\x89PNG",
    "JSON": '{"a": 1}',
    "JSON_LIST": ['{"a": 1}'],
    "STRUCT": {"a": 1},
    "STRUCT_LIST": [{"a": 1}],
    "UUID": ID,
    "TIME_UUID": ID,
    "UUID_LIST": [ID],
    "TIME_UUID_LIST": [ID],
    "UUID_SET": {ID},
    "TIME_UUID_SET": {ID},
    "VALUE_LIST": [["a", "b"], ["c"]],
    "VALUE_SET": [["a"]],
    "DECIMAL": Decimal("1.10"),
    "DECIMAL_LIST": [Decimal("1.10")],
    "DECIMAL_SET": {Decimal("1.1")},
    "SCALAR_MAP": {1: "a"},
    "ZONED_TIMESTAMP": WHOLE_SECOND.astimezone(ZoneInfo("Europe/Paris")),
}
PYTHON_ONLY = {"JSON": {"a": 1}, "JSON_LIST": [{"a": 1}]}
"""What Feast gives back is parsed."""
AS_PUSHED: Mapping[str, Any] = {name: str(ID) for name in ("UUID", "TIME_UUID")} | {
    name: [str(ID)] for name in ("UUID_LIST", "TIME_UUID_LIST", "UUID_SET", "TIME_UUID_SET")
}
"""A data frame on its way to Arrow holds no UUID objects."""
NOT_PUSHED = {"MAP_LIST", "SCALAR_MAP", "ZONED_TIMESTAMP"}
"""Feast's own conversion from a data frame fails on these, before any store is asked. Written as Feast's values they work."""
TYPES = sorted({kind.name for kind in ValueType} - UNDECLARABLE)


@pytest.fixture
def all_types(settings: Settings, valkey: str) -> Settings:
    return settings.model_copy(update={"redis_url": valkey, "data": settings.data.resolve()})


def store_of(settings: Settings, tmp_path: Path) -> FeatureStore:
    schema = [Field(name=name.lower(), dtype=from_value_type(ValueType[name])) for name in TYPES]
    return make_store(settings, item, plain_view("everything", schema, tmp_path / "rows.parquet"))


def entity(name: str) -> EntityKey:
    return EntityKey(join_keys=["item_id"], entity_values=[Value(string_val=name)])


def test_the_samples_name_every_type() -> None:
    assert sorted(SAMPLES) == TYPES


def test_every_type_comes_back_as_feast_converts_it_and_nulls_stay_null(all_types: Settings, tmp_path: Path) -> None:
    store = store_of(all_types, tmp_path)
    view = store.get_feature_view("everything")
    protos = {name: python_values_to_proto_values([SAMPLES[name]], ValueType[name])[0] for name in TYPES}
    full = (entity("full"), {name.lower(): proto for name, proto in protos.items()}, LONG_AGO, LONG_AGO)
    empty = (entity("empty"), {}, LONG_AGO, None)
    store._get_provider().online_write_batch(store.config, view, [full, empty], None)

    answer = store.get_online_features(
        [f"everything:{name.lower()}" for name in TYPES], [{"item_id": name} for name in ("empty", "full", "none")]
    ).to_dict()
    expected = {
        name.lower(): [
            None,
            PYTHON_ONLY.get(name, feast_value_type_to_python_type(protos[name], ValueType[name])),
            None,
        ]
        for name in TYPES
    }
    assert {name: answer[name] for name in expected} == expected
    assert {name: SAMPLES[name] for name in TYPES if name not in PYTHON_ONLY} == {
        name: answer[name.lower()][1] for name in TYPES if name not in PYTHON_ONLY
    }

    fast = OnlineReader(connect(all_types), load_definitions(all_types), all_types).fetch(
        {"everything": ["empty", "full", "none"]}
    )
    columns = fast.plain["everything"].values(system_clock())
    assert {name: _plain(column) for name, column in columns.items()} == expected


def _plain(column: Any) -> list[Any]:
    return [None if value != value else value for value in list(column)]


@pytest.fixture(scope="module")
def pushed(valkey_server: ValkeyServer, tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    """A store with a view of one feature for each type."""
    directory = tmp_path_factory.mktemp("pushed")
    settings = Settings(data=directory, redis_url=valkey_server.url)
    with redis.Redis.from_url(valkey_server.url) as client:
        client.flushall()
    views = [
        plain_view(name.lower(), [Field(name="value", dtype=from_value_type(ValueType[name]))], directory / "none")
        for name in TYPES
    ]
    return make_store(settings, item, *views)


@pytest.mark.parametrize("name", sorted(set(TYPES) - NOT_PUSHED))
def test_a_value_is_pushed_as_a_user_pushes_it(name: str, pushed: FeatureStore) -> None:
    value = SAMPLES[name]
    pushed.push(name.lower(), rows({"item_id": "a", "value": AS_PUSHED.get(name, value)}))
    answer = pushed.get_online_features([f"{name.lower()}:value"], [{"item_id": "a"}]).to_dict()
    assert answer["value"] == [PYTHON_ONLY.get(name, value)]
