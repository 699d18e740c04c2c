"""`POST /v1/items` on a real Valkey: what is taken is on disk in the log, each bad operation is refused with its reason."""

import asyncio
from typing import Any

import httpx
import orjson
import pytest
from fastapi import FastAPI

from headrace import names
from headrace.decoding import decode_payload
from headrace.identity import shard_of
from headrace.settings import Settings
from headrace.stores.definitions import FILE
from headrace.stores.log import open_log
from headrace.stores.redis_client import connect
from headrace.stores.tokens import ITEMS, read_token
from serving.items import MAX_OPERATIONS, ItemValidator, add_items_route
from serving.metrics import RecommenderMetrics
from serving.web import Problem, new_app

NOW = 1_767_225_600_000_000  # 2026-01-01T00:00:00Z
KEY = {"Authorization": "Bearer admin"}


@pytest.fixture
def settings(stack: Settings) -> Settings:
    return stack.model_copy(update={"admin_keys": "admin", "read_keys": "reader", "max_event_bytes": 2_000})


def app_of(settings: Settings) -> FastAPI:
    app = new_app("test", "")
    add_items_route(app, settings, lambda: NOW, RecommenderMetrics())
    return app


def post(settings: Settings, body: Any, headers: dict[str, str] = KEY) -> httpx.Response:
    async def send() -> httpx.Response:
        transport = httpx.ASGITransport(app_of(settings))
        async with httpx.AsyncClient(transport=transport, base_url="http://test", headers=headers) as client:
            content = body if isinstance(body, bytes) else orjson.dumps(body)
            return await client.post(names.ITEMS_PATH, content=content)

    return asyncio.run(send())


def logged(settings: Settings) -> list[dict[str, Any]]:
    """Records in the log, by timestamp."""
    entries = open_log(connect(settings), settings).read(dict.fromkeys(range(settings.log_partitions), 0), 1_000)
    rows = [row for entry in entries for row in decode_payload(entry.payload)[0].to_pylist()]
    return sorted(rows, key=lambda row: row["timestamp"])


def test_the_three_lists_are_in_the_log_in_the_order_in_which_they_count(settings: Settings) -> None:
    body = {
        "delete": ["i1"],
        "upsert": [{"item_id": "i1", "title": "Watch", "price": 5}, {"item_id": "i2", "available": False}],
        "availability": [{"item_id": "i1", "available": True}],
    }
    answer = post(settings, body)
    assert answer.status_code == 200
    told = answer.json()
    assert (told["accepted"], told["refused"]) == (4, [])
    partitions = {shard_of(f"item:{item}", settings.log_partitions) for item in ("i1", "i2")}
    assert {int(partition) for partition in told["positions"]} == partitions
    kind, positions = read_token(told["token"])
    assert (kind, {str(p): at for p, at in positions.items()}) == (ITEMS, told["positions"])
    rows = logged(settings)
    assert [(row["type"], row["item_id"], orjson.loads(row["properties"])) for row in rows] == [
        ("item_upsert", "i1", {"title": "Watch", "price": 5.0, "available": True}),
        ("item_upsert", "i2", {"available": False}),
        ("item_status", "i1", {"available": True, "deleted": False}),
        ("item_status", "i1", {"available": False, "deleted": True}),
    ]
    times = [int(row["timestamp"].timestamp() * 1e6) for row in rows]
    assert len(set(times)) == 4
    assert abs(times[-1] - NOW) <= 1
    assert {row["user_key"] for row in rows} == {"item:i1", "item:i2"}
    assert len({row["event_id"] for row in rows}) == 4


def test_bad_operations_are_named_with_list_index_field_and_reason_while_the_good_ones_go_in(
    settings: Settings,
) -> None:
    body = {
        "upsert": [
            {"item_id": "good"},
            {"title": "no id"},
            {"item_id": "text", "price": "5"},
            {"item_id": "negative", "price": -1},
            {"item_id": "unknown", "colour": "red"},
            {"item_id": "undeclared", "properties": {"colour": "red"}},
            {"item_id": "twice", "properties": {"title": "x"}},
            {"item_id": "large", "properties": {"text": "x" * 2_000}},
            "not an object",
        ],
        "availability": [{"item_id": "i1"}, {"item_id": "i1", "available": "yes"}],
        "delete": ["", 5, "i\nj"],
    }
    answer = post(settings, body)
    assert (answer.status_code, answer.json()["accepted"]) == (200, 1)
    refused = answer.json()["refused"]
    assert [(each["list"], each["index"], each["item_id"], each["field"]) for each in refused] == [
        ("upsert", 1, None, "item_id"),
        ("upsert", 2, "text", "price"),
        ("upsert", 3, "negative", "price"),
        ("upsert", 4, "unknown", "colour"),
        ("upsert", 5, "undeclared", "properties.colour"),
        ("upsert", 6, "twice", "properties.title"),
        ("upsert", 7, "large", "item"),
        ("upsert", 8, "not an object", "upsert"),
        ("availability", 0, "i1", "available"),
        ("availability", 1, "i1", "available"),
        ("delete", 0, "", "item_id"),
        ("delete", 1, None, "item_id"),
        ("delete", 2, "i\nj", "item_id"),
    ]
    assert "view 'item_catalogue' has no such field" in refused[4]["reason"]
    assert [row["item_id"] for row in logged(settings)] == ["good"]


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ([], 422),
        ({}, 422),
        ({"upsert": []}, 422),
        ({"upsert": {}}, 422),
        ({"insert": [{"item_id": "i"}]}, 422),
        ({"delete": [""]}, 422),
        ({"delete": ["i"] * (MAX_OPERATIONS + 1)}, 413),
        (b"{", 400),
    ],
)
def test_a_body_that_holds_no_operation_is_refused_whole(settings: Settings, body: Any, status: int) -> None:
    answer = post(settings, body)
    assert answer.status_code == status
    assert answer.json()["remedy"]
    assert logged(settings) == []


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer reader"}])
def test_only_an_admin_key_lets_in(settings: Settings, headers: dict[str, str]) -> None:
    answer = post(settings, {"delete": ["i"]}, headers)
    assert answer.status_code == 401
    assert "HEADRACE_ADMIN_KEYS" in answer.json()["remedy"]


def test_without_a_log_nothing_is_acknowledged_and_the_client_is_told_when_to_come_again(settings: Settings) -> None:
    answer = post(settings.model_copy(update={"redis_url": "redis://127.0.0.1:1"}), {"delete": ["i"]})
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")


def test_the_public_door_takes_no_operation_on_an_item() -> None:
    from headrace.events import Refusal, parse

    event = {
        "event_id": "e",
        "type": "item_upsert",
        "user_id": "u",
        "item_id": "i",
        "timestamp": "2026-01-01T00:00:00Z",
    }
    refused = [parse(event | {"type": kind}) for kind in names.ITEM_OPERATIONS]
    assert [each.field for each in refused if isinstance(each, Refusal)] == ["type", "type"]


def test_operations_have_times_of_their_own_however_fast_they_come(settings: Settings) -> None:
    door = ItemValidator(settings, lambda: NOW)
    times = [record["timestamp"] for _ in range(3) for record in door.validate({"delete": ["i"] * 100}).records]
    assert times == list(range(NOW - 99, NOW + 201))


def test_before_the_first_apply_every_operation_is_refused_and_after_it_taken(
    settings: Settings, tmp_path: Any
) -> None:
    empty = settings.model_copy(update={"data": tmp_path / "empty"})
    empty.data.mkdir()
    door = ItemValidator(empty, lambda: NOW)
    (refusal,) = door.validate({"delete": ["i"]}).refused
    assert refusal["field"] == "delete"
    assert "headrace apply" in refusal["reason"]
    for name in (settings.registry_path.name, FILE):
        (empty.data / name).write_bytes((settings.data / name).read_bytes())
    assert len(door.validate({"delete": ["i"]}).records) == 1
    with pytest.raises(Problem):
        door.validate(None)
