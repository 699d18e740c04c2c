"""Acknowledged means on disk, whatever fails in between: a full disk, a store that goes in mid-commit, an answer that is lost.

Each story posts events, never believes more than the answers said, and compares at the end with what the log and the features hold.
"""

import asyncio
import resource
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest
import redis
from fastapi import FastAPI

from headrace import names
from headrace.clock import from_micros, system_clock
from headrace.decoding import decode_payload
from headrace.ops.child import Child
from headrace.ops.interrupts import Interrupts
from headrace.ops.ports import free_port
from headrace.ops.stack import Stack
from headrace.ops.valkey import ValkeyServer, server_command
from headrace.settings import Settings
from headrace.stores.definitions import load_definitions
from headrace.stores.log import open_log
from headrace.stores.online_reader import OnlineReader
from headrace.stores.redis_client import connect
from serving.collector import build_collector
from tests.conftest import wait_until

KEY = {"Authorization": "Bearer writer"}
USER = "u"
needs_prlimit = pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="limits of another process are Linux's")


def view(event_id: str, text: str = "") -> dict[str, Any]:
    return {
        "event_id": event_id,
        "type": "view",
        "user_id": USER,
        "item_id": "i",
        "timestamp": from_micros(system_clock()).isoformat(),
        "properties": {"text": text},
    }


def post(app: FastAPI, *events: dict[str, Any]) -> httpx.Response:
    async def send() -> httpx.Response:
        transport = httpx.ASGITransport(app, root_path=names.EVENTS_PATH)
        async with httpx.AsyncClient(transport=transport, base_url="http://test", headers=KEY) as client:
            return await client.post(names.EVENTS_PATH, content=orjson.dumps(list(events)))

    return asyncio.run(send())


def logged_ids(settings: Settings) -> list[str]:
    """The event ids in the log, as often as they are in it."""
    with connect(settings) as client:
        entries = open_log(client, settings).read(dict.fromkeys(range(settings.log_partitions), 0), 100_000)
    return [event_id for entry in entries for event_id in decode_payload(entry.payload)[0]["event_id"].to_pylist()]


def views(settings: Settings) -> int:
    with connect(settings) as client:
        snapshot = OnlineReader(client, load_definitions(settings), settings).fetch({names.USER_ACTIVITY: [USER]})
    t_us = max(system_clock(), snapshot.newest_us + 1)
    return int(snapshot.streams[names.USER_ACTIVITY].values(t_us, ["views_1h"])["views_1h"][0])


def data_bytes(server: ValkeyServer) -> int:
    with redis.Redis.from_url(server.url) as client:
        return int(client.info("persistence")["aof_current_size"])


def settings_of(server: ValkeyServer, tmp_path: Path) -> Settings:
    return Settings(data=tmp_path, redis_url=server.url, event_keys="writer", read_keys="reader")


def fill(app: FastAPI, attempts: int = 100) -> tuple[list[str], httpx.Response]:
    """Posts events of 8 KB until one is refused: the ids acknowledged before, and the refusal."""
    acknowledged: list[str] = []
    for number in range(attempts):
        answer = post(app, view(f"e{number}", "x" * 8_000))
        if answer.status_code != 200:
            return acknowledged, answer
        acknowledged.append(f"e{number}")
    pytest.fail(f"{attempts} events of 8 KB fitted in")


@needs_prlimit
def test_with_the_disk_full_nothing_more_is_acknowledged_and_what_was_is_there_when_there_is_space_again(
    make_valkey: Callable[[], ValkeyServer], tmp_path: Path
):
    server = make_valkey()
    settings = settings_of(server, tmp_path)
    app = build_collector(settings)
    assert post(app, view("first")).status_code == 200
    limit = data_bytes(server) + 100_000
    resource.prlimit(server.child.pid, resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))

    acknowledged, refusal = fill(app)
    assert len(acknowledged) > 5
    assert refusal.status_code == 503
    assert (refusal.json()["error"], refusal.headers["Retry-After"]) == ("the event log is not available", "1")
    assert "again after Retry-After seconds" in refusal.json()["remedy"]
    wait_until(lambda: not server.child.is_running())  # it cannot keep its word, so it ends
    assert post(app, view("while it is down")).status_code == 503

    server.start()  # a new process, without the limit: there is space again
    assert logged_ids(settings) == ["first", *acknowledged]
    refused = f"e{len(acknowledged)}"
    assert post(app, view(refused)).status_code == 200
    assert logged_ids(settings) == ["first", *acknowledged, refused]


@pytest.fixture
def each_second(tmp_path: Path) -> Iterator[ValkeyServer]:
    """A server that flushes each second. Beyond its limit a write fails, as on a full disk, instead of ending it."""
    server = ValkeyServer(tmp_path / "each-second", free_port(), tmp_path / "each-second.log")
    command = [*server_command(tmp_path / "each-second", server.port), "--appendfsync", "everysec"]
    ignoring = ["sh", "-c", 'trap "" XFSZ; exec "$@"', "sh", *command]
    server.child = Child("valkey", ignoring, {}, tmp_path / "each-second.log")
    server.start()
    yield server
    server.kill()


@needs_prlimit
def test_a_server_that_flushes_each_second_says_that_its_disk_is_full_and_goes_on_by_itself(
    each_second: ValkeyServer, tmp_path: Path
):
    settings = settings_of(each_second, tmp_path)
    app = build_collector(settings)
    assert post(app, view("first")).status_code == 200
    limit = data_bytes(each_second) + 30_000
    resource.prlimit(each_second.child.pid, resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))

    events = [view(f"e{number}", "x" * 8_000) for number in range(10)]
    assert post(app, *events).status_code == 503
    wait_until(lambda: post(app, view("later")).json()["error"] == "the disk under the event log is full")
    assert post(app, view("later")).headers["Retry-After"] == "30"

    resource.prlimit(each_second.child.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    wait_until(lambda: post(app, *events).status_code == 200)
    each_second.kill()
    each_second.start()
    assert {"first", *(f"e{number}" for number in range(10))} <= set(logged_ids(settings))


def test_before_the_disk_is_full_the_door_closes_while_the_store_goes_on(
    make_valkey: Callable[[], ValkeyServer], tmp_path: Path
):
    server = make_valkey()
    embedded = Settings(data=tmp_path, event_keys="writer", disk_reserve_bytes=2**62)
    (embedded.run_dir).mkdir()
    (embedded.run_dir / "valkey.json").write_text(orjson.dumps({"url": server.url}).decode())
    answer = post(build_collector(embedded), view("e"))
    assert answer.status_code == 503
    assert (answer.json()["error"], answer.headers["Retry-After"]) == ("the disk under the event log is full", "30")
    assert logged_ids(embedded) == []
    roomy = embedded.model_copy(update={"disk_reserve_bytes": 0})
    assert post(build_collector(roomy), view("e")).status_code == 200
    assert logged_ids(embedded) == ["e"]


class CutProxy:
    """Stands between a client and a server; at the first append after `arm`, acts and ends the connection without an answer."""

    def __init__(self, port: int) -> None:
        self._server_port = port
        self._act: Callable[[bytes], None] | None = None
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"redis://127.0.0.1:{self._listener.getsockname()[1]}/0"
        threading.Thread(target=self._accept, daemon=True).start()

    def arm(self, act: Callable[[bytes], None]) -> None:
        """`act` gets the bytes of the append."""
        self._act = act

    def ask_server(self, request: bytes) -> bytes:
        """Pass bytes on, in a connection of their own, and return what the server answers first."""
        with socket.create_connection(("127.0.0.1", self._server_port)) as server:
            server.sendall(request)
            return server.recv(65_536)

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._relay, args=(client,), daemon=True).start()

    def _relay(self, client: socket.socket) -> None:
        with client, socket.create_connection(("127.0.0.1", self._server_port)) as server:
            threading.Thread(target=_pump, args=(server, client), daemon=True).start()
            while request := client.recv(65_536):
                if self._act is not None and b"XADD" in request:
                    act, self._act = self._act, None
                    act(request)
                    client.shutdown(socket.SHUT_RDWR)
                    return
                server.sendall(request)


def _pump(source: socket.socket, sink: socket.socket) -> None:
    try:
        while piece := source.recv(65_536):
            sink.sendall(piece)
    except OSError:  # one of the two has ended, and the other end hears of it
        return


@contextmanager
def cut_proxy(server: ValkeyServer) -> Iterator[CutProxy]:
    proxy = CutProxy(server.port)
    yield proxy
    proxy.close()


@pytest.mark.parametrize("on_disk", [False, True], ids=["the-store-dies-before-it-writes", "the-answer-is-lost"])
def test_a_store_that_goes_in_mid_commit_is_a_503_and_the_same_event_sent_again_counts_once(
    applied: Path,
    make_valkey: Callable[[], ValkeyServer],
    start_flow: Callable[[str], "subprocess.Popen[bytes]"],
    monkeypatch: pytest.MonkeyPatch,
    on_disk: bool,
):
    server = make_valkey()
    for name, value in {
        "DATA": applied / "var",
        "FEATURE_REPO": applied / "feature_repo",
        "REDIS_URL": server.url,
    }.items():
        monkeypatch.setenv(f"HEADRACE_{name}", str(value))
    settings = Settings()
    with cut_proxy(server) as proxy:
        app = build_collector(settings.model_copy(update={"redis_url": proxy.url, "event_keys": "writer"}))
        assert post(app, view("before")).status_code == 200

        if on_disk:
            proxy.arm(lambda append: assert_written(proxy.ask_server(append)))
        else:
            proxy.arm(lambda _append: server.kill())
        answer = post(app, view("in the middle"))
        assert answer.status_code == 503
        assert (answer.json()["error"], answer.headers["Retry-After"]) == ("the event log is not available", "1")
        server.kill()
        server.start()
        assert logged_ids(settings) == (["before", "in the middle"] if on_disk else ["before"])

        assert post(app, view("in the middle")).status_code == 200
        assert post(app, view("after")).status_code == 200
    start_flow("features")
    wait_until(lambda: views(settings) >= 3, 30)
    assert views(settings) == 3


def assert_written(answer: bytes) -> None:
    assert answer.startswith(b"$"), answer  # the id of the entry


@contextmanager
def small_disk(limit_bytes: int) -> Iterator[None]:
    """Processes started inside cannot make a file larger than this; those started after can."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_stack_whose_disk_was_full_recovers_by_itself_and_has_lost_nothing(settings: Settings):
    said: list[str] = []
    own = settings.model_copy(update={"http_port": free_port(), "event_keys": "writer", "read_keys": "reader"})
    interrupts = Interrupts()
    with interrupts.installed(), Stack(own, said.append, interrupts) as stack:
        app = build_collector(stack.settings)
        with small_disk(4_000_000):
            stack.start_valkey()
            stack.run("apply", "headrace.ops.apply")
            stack.start_flows()
            acknowledged, refusal = fill(app, attempts=1_000)
            assert len(acknowledged) > 100
            assert refusal.status_code == 503
            wait_until(lambda: any(line.startswith("valkey ended with exit code") for line in said), 30)

        def is_taken(event_id: str) -> bool:
            return post(app, view(event_id)).status_code == 200

        # The supervisor waits longer after each failure, up to 30 s.
        wait_until(lambda: is_taken(f"e{len(acknowledged)}"), 90)
        assert set(logged_ids(stack.settings)) == {f"e{number}" for number in range(len(acknowledged) + 1)}
        wait_until(lambda: has_views(stack.settings, len(acknowledged) + 1), 90)


def has_views(settings: Settings, number: int) -> bool:
    try:
        return views(settings) == number
    except redis.RedisError:
        return False
