"""The collection API on a real Valkey that fsyncs every write: acknowledged means on disk, everything else is refused."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest
import redis
from fastapi import FastAPI

from headrace import names
from headrace.decoding import decode_payload
from headrace.identity import shard_of
from headrace.ops.ports import free_port
from headrace.ops.valkey import ValkeyServer
from headrace.settings import Settings
from headrace.stores.log import open_log
from serving.collector import build_collector
from tests.conftest import wait_until

NOW = 1_767_225_600_000_000  # 2026-01-01T00:00:00Z
KEY = {"Authorization": "Bearer writer"}
LIMITS = {"max_event_bytes": 2_000, "max_body_bytes": 20_000, "max_batch_events": 10}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ValkeyServer]:
    folder = tmp_path_factory.mktemp("valkey")
    server = ValkeyServer(folder, free_port(), folder / "valkey.log")
    server.start()
    yield server
    server.stop()


@pytest.fixture
def settings(server: ValkeyServer, tmp_path: Path) -> Settings:
    with redis.Redis.from_url(server.url) as client:
        client.flushall()
    return Settings(data=tmp_path, redis_url=server.url, event_keys="writer,other", read_keys="reader", **LIMITS)


@pytest.fixture
def app(settings: Settings) -> FastAPI:
    return build_collector(settings, clock=lambda: NOW)


def event(event_id: str = "e1", **fields: Any) -> dict[str, Any]:
    basic = {"event_id": event_id, "type": "view", "user_id": "u", "item_id": "i", "timestamp": "2025-12-31T23:59:00Z"}
    return basic | fields


async def send(app: FastAPI, bodies: list[Any], **options: Any) -> list[httpx.Response]:
    """Each body in a request of its own, all at once; bytes as they are, the rest as JSON."""
    transport = httpx.ASGITransport(app, root_path=names.EVENTS_PATH)
    async with httpx.AsyncClient(transport=transport, base_url="http://test", headers=KEY) as client:
        contents = [body if isinstance(body, bytes) else orjson.dumps(body) for body in bodies]
        return await asyncio.gather(
            *[client.post(names.EVENTS_PATH, content=content, **options) for content in contents]
        )


def post(app: FastAPI, body: Any, **options: Any) -> httpx.Response:
    return asyncio.run(send(app, [body], **options))[0]


def logged(settings: Settings) -> list[tuple[int, list[str]]]:
    """(partition, event ids) of each log entry."""
    with redis.Redis.from_url(str(settings.redis_url)) as client:
        entries = open_log(client, settings).read(dict.fromkeys(range(settings.log_partitions), 0), 1_000)
    return [(entry.partition, decode_payload(entry.payload)[0]["event_id"].to_pylist()) for entry in entries]


@pytest.mark.parametrize("body", [event(), [event()], {"events": [event()]}])
def test_an_event_alone_in_an_array_or_in_a_batch_is_acknowledged_and_in_the_log(
    app: FastAPI, settings: Settings, body: Any
):
    answer = post(app, body)
    partition = shard_of("u", settings.log_partitions)
    assert answer.status_code == 200
    assert (answer.json()["accepted"], answer.json()["refused"]) == (1, [])
    assert list(answer.json()["positions"]) == [str(partition)]
    assert answer.json()["token"] == f"e.{partition}-{answer.json()['positions'][str(partition)]}"
    assert logged(settings) == [(partition, ["e1"])]


def test_in_a_batch_bad_events_are_named_with_index_field_and_reason_while_the_good_ones_go_in(
    app: FastAPI, settings: Settings
):
    batch = [
        event("good"),
        event("no item", item_id=None),
        event("bad type", type="stare"),
        event("ahead", timestamp="2026-01-01T00:06:00Z"),
        event("no zone", timestamp="2026-01-01T00:00:00"),
        event("text", price="5"),
        event("unknown", colour="red"),
        event("large", properties={"text": "x" * 2_000}),
        "not an object",
    ]
    answer = post(app, {"events": batch})
    refused = answer.json()["refused"]
    assert answer.status_code == 200
    assert answer.json()["accepted"] == 1
    assert [(each["index"], each["event_id"], each["field"]) for each in refused] == [
        (1, "no item", "event"),
        (2, "bad type", "type"),
        (3, "ahead", "timestamp"),
        (4, "no zone", "timestamp"),
        (5, "text", "price"),
        (6, "unknown", "colour"),
        (7, "large", "event"),
        (8, None, "event"),
    ]
    assert all(each["reason"] for each in refused)
    assert [ids for _, ids in logged(settings)] == [["good"]]


def test_a_timestamp_little_ahead_becomes_the_time_of_arrival(app: FastAPI, settings: Settings):
    assert post(app, event(timestamp="2026-01-01T00:05:00Z")).status_code == 200
    with redis.Redis.from_url(str(settings.redis_url)) as client:
        [(_, [(_, fields)])] = client.xread({f"headrace:log:{shard_of('u', 4)}": "0"})
    record = orjson.loads(fields[b"e"])
    assert (record["timestamp"], record["received_at"]) == (NOW, NOW)
    assert record["client_timestamp"] == NOW + 300_000_000


def test_events_refused_for_a_clock_that_is_ahead_are_counted(app: FastAPI):
    assert post(app, [event("ahead", timestamp="2026-01-01T00:05:00.000001Z"), event()]).json()["accepted"] == 1

    async def metrics() -> str:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            return (await client.get("/metrics", headers={"Authorization": "Bearer reader"})).text

    assert 'headrace_events_refused_total{field="timestamp"} 1.0' in asyncio.run(metrics()).splitlines()


def test_a_batch_without_one_good_event_is_a_422_that_lists_why(app: FastAPI, settings: Settings):
    answer = post(app, [{}, 5])
    assert answer.status_code == 422
    assert answer.json()["accepted"] == 0
    assert [each["index"] for each in answer.json()["refused"]] == [0, 1]
    assert logged(settings) == []


def test_requests_at_the_same_time_share_appends(app: FastAPI, settings: Settings):
    answers = asyncio.run(send(app, [event(str(number)) for number in range(100)]))
    entries = logged(settings)
    assert {answer.status_code for answer in answers} == {200}
    assert sorted(int(each) for _, ids in entries for each in ids) == list(range(100))
    assert len(entries) < 50


DEEP = b'{"a":' * 400 + b"1" + b"}" * 400


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"   ", 400),
        (b"{", 400),
        (b'{"event_id": "e1",}', 400),
        (b"\xff\xfe", 400),
        (b'"\xc3\x28"', 400),
        (b'{"event_id": "\\ud800"}', 400),
        (b'{"value": NaN}', 400),
        (b"[" * 5_000, 400),
        (b"5", 422),
        (b"null", 422),
        (b'"text"', 422),
        (b"[]", 422),
        (b"{}", 422),
        (b'{"events": []}', 422),
        (b'{"events": {}}', 422),
        (b'{"events": null}', 422),
        (b'{"events": [{}], "more": 1}', 422),
        (b"[null]", 422),
        (b"[[[]]]", 422),
        (DEEP, 422),
        (orjson.dumps(event()).replace(b'"i"', b'"i","properties":' + DEEP), 422),
        (orjson.dumps(event(item_id="i\n")), 422),
        (orjson.dumps(event(user_id="x" * 129)), 422),
        (orjson.dumps(event(user_id="anon:x")), 422),
        (orjson.dumps(event(timestamp=5)), 422),
        (orjson.dumps(event(timestamp="yesterday")), 422),
        (orjson.dumps(event(timestamp="9999-12-31T23:59:59Z")), 422),
        (orjson.dumps(event(quantity=True)), 422),
        (orjson.dumps(event(type=["view"])), 422),
        (orjson.dumps(event(score=0.5)), 422),
        (orjson.dumps(event(schema_version=2)), 422),
        (orjson.dumps(event()).replace(b'"u"', b"1" * 30), 422),
        (orjson.dumps([event(str(number)) for number in range(11)]), 413),
        (b" " * 20_001, 413),
    ],
)
def test_bad_input_gets_a_4xx_that_says_what_to_do_and_nothing_is_logged(
    app: FastAPI, settings: Settings, body: bytes, status: int
):
    answer = post(app, body)
    assert answer.status_code == status
    assert answer.json()["error"]
    assert answer.json()["remedy"]
    assert logged(settings) == []


def test_a_streamed_body_without_a_length_is_cut_off_at_the_limit(app: FastAPI):
    sent = 0

    async def endless() -> Any:
        nonlocal sent
        while True:
            sent += 1_000
            yield b" " * 1_000

    async def stream() -> httpx.Response:
        transport = httpx.ASGITransport(app, root_path=names.EVENTS_PATH)
        async with httpx.AsyncClient(transport=transport, base_url="http://test", headers=KEY) as client:
            return await client.post(names.EVENTS_PATH, content=endless())

    assert asyncio.run(stream()).status_code == 413
    assert sent <= 22_000


def test_a_compressed_body_is_refused(app: FastAPI):
    assert post(app, b"x", headers={"Content-Encoding": "gzip"}).status_code == 415


@pytest.mark.parametrize(
    "headers", [{"Authorization": ""}, {"Authorization": "Bearer reader"}, {"Authorization": "writer"}]
)
def test_without_an_event_key_nothing_is_read(app: FastAPI, settings: Settings, headers: dict[str, str]):
    answer = post(app, event(), headers=headers)
    assert answer.status_code == 401
    assert "HEADRACE_EVENT_KEYS" in answer.json()["remedy"]
    assert logged(settings) == []


def test_each_of_the_configured_keys_is_good_in_either_header(app: FastAPI):
    assert post(app, event(), headers={"Authorization": "", "X-API-Key": "other"}).status_code == 200


def test_other_methods_and_paths_are_refused_with_a_body(app: FastAPI):
    async def get(path: str) -> httpx.Response:
        transport = httpx.ASGITransport(app, root_path=names.EVENTS_PATH)
        async with httpx.AsyncClient(transport=transport, base_url="http://test", headers=KEY) as client:
            return await client.get(path)

    assert asyncio.run(get(names.EVENTS_PATH)).status_code == 405
    assert asyncio.run(get("/v1/events/nothing")).json()["error"] == "not found"


def test_with_the_log_at_its_bound_the_answer_is_503_and_retry_later(settings: Settings):
    full = settings.model_copy(update={"log_max_bytes": 1})
    app = build_collector(full, clock=lambda: NOW)
    assert post(app, event("first")).status_code == 200  # an empty log has room
    app = build_collector(full, clock=lambda: NOW)
    answer = post(app, event("second"))
    assert answer.status_code == 503
    assert (answer.json()["error"], answer.headers["Retry-After"]) == ("the event log is full", "30")
    assert [ids for _, ids in logged(settings)] == [["first"]]


def test_with_no_store_configured_the_answer_is_503(tmp_path: Path):
    app = build_collector(Settings(data=tmp_path, event_keys="writer"), clock=lambda: NOW)
    assert post(app, event()).status_code == 503


def test_a_killed_store_is_503_never_acknowledged_and_after_its_restart_all_goes_on(
    app: FastAPI, settings: Settings, server: ValkeyServer
):
    assert post(app, event("before")).status_code == 200
    server.kill()
    try:
        answer = post(app, event("during"))
    finally:
        server.start()
    assert answer.status_code == 503
    assert (answer.json()["error"], answer.headers["Retry-After"]) == ("the event log is not available", "1")
    assert post(app, event("after")).status_code == 200
    assert [ids for _, ids in logged(settings)] == [["before"], ["after"]]


def test_a_store_without_an_append_only_file_is_refused(settings: Settings, server: ValkeyServer):
    with redis.Redis.from_url(server.url) as client:
        client.config_set("appendonly", "no")
        try:
            assert post(build_collector(settings, clock=lambda: NOW), event()).status_code == 503
        finally:
            client.config_set("appendonly", "yes")
            wait_until(lambda: not client.info("persistence")["aof_rewrite_in_progress"])  # until then it does not end
