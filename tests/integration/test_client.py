"""The client against the real applications on a real Valkey: every event whose `send` returned is in the log, and counted once.

One file, since all of it starts from one served application.
"""

import asyncio
import itertools
import logging
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from headrace.client import (
    AsyncClient,
    Backoff,
    Client,
    ClientConfig,
    ClosedError,
    RefusedError,
    RefusedEvent,
    SpoolFullError,
    SpoolHeldError,
    Stats,
    TimedOutError,
    UnauthorizedError,
    UnavailableError,
    UndeliveredError,
)
from headrace.decoding import decode_payload
from headrace.ops.child import environment_of
from headrace.ops.ports import free_port
from headrace.ops.valkey import ValkeyServer
from headrace.settings import Settings
from headrace.stores.log import open_log
from headrace.stores.redis_client import connect
from serving.collector import build_collector
from serving.recommender import build_recommender
from tests.conftest import ROOT, wait_until
from tests.integration.client_server import App, mounted, served
from tests.integration.open_shop import PATIENT_MS, SHOES, UNAVAILABLE, UNKNOWN, Shop

STAGES = ["hydrate", "retrieve", "filter", "rank", "select"]
FAST = Backoff(first_s=0.02, most_s=0.2)
QUICK = ClientConfig(batch_events=20, backoff=FAST)


@pytest.fixture
def settings(valkey: str, tmp_path: Path) -> Settings:
    return Settings(
        data=tmp_path / "var",
        feature_repo=ROOT / "feature_repo",
        redis_url=valkey,
        event_keys="writer",
        read_keys="reader",
        http_port=free_port(),
    )


@pytest.fixture
def address(settings: Settings) -> Iterator[str]:
    """The real collector."""
    with served(mounted(build_collector(settings)), settings.http_port) as address:
        yield address


class ServerProcess:
    """The collector as a process of its own."""

    def __init__(self, settings: Settings) -> None:
        self.address = f"http://127.0.0.1:{settings.http_port}"
        self._environment = environment_of(settings)
        self._port = settings.http_port

    def start(self) -> None:
        command = [sys.executable, "-m", "tests.integration.client_server"]
        self._process = subprocess.Popen(command, cwd=ROOT, env=self._environment)
        wait_until(self._listens, 60)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def _listens(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self._port)) == 0


@pytest.fixture
def server(settings: Settings) -> Iterator[ServerProcess]:
    server = ServerProcess(settings)
    server.start()
    yield server
    server.kill()


def logged(settings: Settings) -> Counter[str]:
    """How often each event id is in the log. Readers count a repeated one once (docs/events.md)."""
    with connect(settings) as client:
        log = open_log(client, settings)
        places = dict.fromkeys(range(settings.log_partitions), 0)
        found: Counter[str] = Counter()
        while entries := log.read(places, 1_000):
            for entry in entries:
                found.update(decode_payload(entry.payload)[0]["event_id"].to_pylist())
                places[entry.partition] = entry.position
    return found


def test_events_of_both_clients_are_in_the_log_once(address: str, settings: Settings, tmp_path: Path):
    async def of_tasks() -> list[str]:
        async with AsyncClient(address, event_key="writer", spool=tmp_path / "b", config=QUICK) as client:
            sent = [await client.track("view", user_id="v", item_id="i", price=2.5) for _ in range(20)]
            sent += await asyncio.gather(*(client.track("click", user_id="v", item_id="i") for _ in range(20)))
            await client.flush(20)
            assert client.stats() == Stats(waiting=0, acknowledged=40, refused=0, damaged=0)
            return sent

    with Client(address, event_key="writer", spool=tmp_path / "a", config=QUICK) as client:
        sent = [client.track("view", user_id="u", item_id="i", context={"page": "/"}) for _ in range(30)]
        client.flush(20)
        assert client.stats() == Stats(waiting=0, acknowledged=30, refused=0, damaged=0)
    sent += asyncio.run(of_tasks())
    assert len(set(sent)) == 70
    assert logged(settings) == Counter(sent)


def test_events_are_sent_in_batches_without_a_flush(address: str, settings: Settings):
    config = ClientConfig(batch_events=50, linger_s=60, backoff=FAST)
    with Client(address, event_key="writer", config=config) as client:
        for number in range(50):
            client.send({"event_id": str(number), "type": "view", "user_id": "u", "item_id": "i"})
        wait_until(lambda: client.stats().acknowledged == 50)
    with connect(settings) as redis:
        assert [redis.xlen(f"headrace:log:{partition}") for partition in range(4)].count(1) == 1  # one append


def test_a_bad_event_raises_at_once_and_a_refused_one_is_told_without_holding_up_the_others(
    address: str, settings: Settings
):
    told: list[RefusedEvent] = []
    with Client(address, event_key="writer", config=QUICK, on_refused=told.append) as client:
        with pytest.raises(RefusedError, match="item_id is needed for type view"):
            client.track("view", user_id="u")
        client.track("view", event_id="before", user_id="u", item_id="i")
        client.track("view", event_id="ahead", user_id="u", item_id="i", timestamp="2100-01-01T00:00:00Z")
        client.track("view", event_id="after", user_id="u", item_id="i")
        client.flush(20)
        assert client.stats() == Stats(waiting=0, acknowledged=2, refused=1, damaged=0)
        assert client.refused == tuple(told)
    assert [(each.event["event_id"], each.field) for each in told] == [("ahead", "timestamp")]
    assert logged(settings) == Counter(["before", "after"])


def test_the_server_killed_and_started_again_in_the_middle_loses_nothing(
    server: ServerProcess, settings: Settings, tmp_path: Path
):
    with Client(server.address, event_key="writer", spool=tmp_path / "spool", config=QUICK) as client:
        sent: list[str] = []
        ended = threading.Event()

        def send() -> None:
            for number in itertools.count():
                sent.append(client.track("view", user_id=f"u{number % 7}", item_id="i"))
                if ended.is_set():
                    return

        sending = threading.Thread(target=send)
        sending.start()
        for _ in range(2):
            seen = client.stats().acknowledged
            wait_until(lambda seen=seen: client.stats().acknowledged > seen + 30)
            server.kill()
            behind = len(sent)
            wait_until(lambda behind=behind: len(sent) > behind + 20)  # taken while nobody listens
            server.start()
        ended.set()
        sending.join()
        client.flush(60)
        assert client.stats().acknowledged == len(sent)
    assert set(logged(settings)) == set(sent)


def test_the_client_killed_in_the_middle_goes_on_from_its_spool(
    server: ServerProcess, settings: Settings, tmp_path: Path
):
    """Also where the server is away when the client is killed, and back only for the next one."""
    returned: list[str] = []
    for life in range(4):
        command = [sys.executable, "-m", "tests.integration.client_process", server.address, str(tmp_path / "spool")]
        process = subprocess.Popen(
            [*command, f"life{life}", "30" if life == 3 else "1000000"], cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        if life == 3:
            returned += process.stdout
            assert process.wait(60) == 0
        else:
            returned += itertools.islice(process.stdout, 100)
            if life == 1:
                server.kill()
                returned += itertools.islice(process.stdout, 40)
            process.kill()
            returned += process.stdout  # what it wrote before it was gone
            process.wait()
            if life == 1:
                server.start()
        process.stdout.close()
    assert returned.pop() == "flushed\n"
    found = set(logged(settings))
    returned = [line.strip() for line in returned if line.endswith("\n")]
    assert len(returned) == len(set(returned)) > 350
    assert set(returned) - found == set()
    assert len(found - set(returned)) <= 3  # of each life that was killed, the event whose `send` was under way


def test_an_answer_that_is_lost_makes_no_second_event(settings: Settings, tmp_path: Path):
    lost = itertools.count()
    whole = mounted(build_collector(settings))

    async def losing(scope: Any, receive: Any, send: Any) -> None:
        """Every other answer is replaced by a failure, after the events are on disk."""

        async def fail(message: Any) -> None:
            await send(message | {"status": 500} if message["type"] == "http.response.start" else message)

        lose = scope["type"] == "http" and next(lost) % 2 == 0
        await whole(scope, receive, fail if lose else send)

    with (
        served(losing, settings.http_port) as address,
        Client(address, event_key="writer", spool=tmp_path / "spool", config=QUICK) as client,
    ):
        sent = [client.track("view", user_id="u", item_id="i") for _ in range(100)]
        client.flush(20)
    found = logged(settings)
    assert set(found) == set(sent)
    assert max(found.values()) == 2  # the same id once more: counted once by every reader


def test_a_killed_store_and_a_full_spool_lose_nothing(make_valkey: Callable[[], ValkeyServer], tmp_path: Path):
    store = make_valkey()
    settings = Settings(data=tmp_path, redis_url=store.url, event_keys="writer", http_port=free_port())
    config = ClientConfig(batch_events=20, backoff=FAST, spool_bytes=20_000, max_event_bytes=2_000)
    with (
        served(mounted(build_collector(settings)), settings.http_port) as address,
        Client(address, event_key="writer", spool=tmp_path / "spool", config=config) as client,
    ):
        sent = [client.track("view", user_id="u", item_id="i")]
        client.flush(20)
        store.kill()
        with pytest.raises(SpoolFullError, match="its bound is 20000"):
            sent.extend(client.track("view", user_id="u", item_id="i") for _ in itertools.repeat(None))
        with pytest.raises(TimedOutError, match="the event log is not available"):
            client.flush(0.01)
        store.start()
        client.flush(30)
        sent.append(client.track("view", user_id="u", item_id="i"))
        client.flush(20)
    assert len(sent) > 50
    assert set(logged(settings)) == set(sent)


def test_what_is_left_at_the_end_waits_for_the_next_client_and_is_lost_only_loudly(
    address: str, settings: Settings, tmp_path: Path
):
    nobody = f"http://127.0.0.1:{free_port()}"
    left = Client(nobody, event_key="writer", spool=tmp_path / "spool", config=QUICK)
    sent = left.track("view", user_id="u", item_id="i")
    with pytest.raises(SpoolHeldError):
        Client(address, event_key="writer", spool=tmp_path / "spool")
    left.close(timeout_s=0.1)
    left.close()  # once more changes nothing
    with pytest.raises(ClosedError):
        left.track("view", user_id="u", item_id="i")
    with Client(address, event_key="writer", spool=tmp_path / "spool", config=QUICK) as client:
        client.flush(20)
    assert logged(settings) == Counter([sent])

    in_memory = Client(nobody, event_key="writer", config=QUICK)
    in_memory.track("view", user_id="u", item_id="i")
    with pytest.raises(UndeliveredError, match="1 events were not acknowledged and are lost"):
        in_memory.close(timeout_s=0.1)


def test_a_wrong_key_loses_nothing_and_says_which(address: str, settings: Settings, tmp_path: Path):
    with Client(address, event_key="wrong", spool=tmp_path / "spool", config=QUICK) as client:
        sent = client.track("view", user_id="u", item_id="i")
        wait_until(lambda: client.trouble is not None)
        with pytest.raises(TimedOutError, match="one of HEADRACE_EVENT_KEYS") as caught:
            client.flush(0.1)
        assert isinstance(caught.value.__cause__, UnauthorizedError)
        client.close(timeout_s=0)
    with Client(address, event_key="writer", spool=tmp_path / "spool", config=QUICK) as client:
        client.flush(20)
    assert logged(settings) == Counter([sent])
    with pytest.raises(UnauthorizedError, match="pass event_key="), Client(address, read_key="reader") as client:
        client.track("view", user_id="u", item_id="i")


def test_retry_after_is_waited_for(make_valkey: Callable[[], ValkeyServer], tmp_path: Path):
    store = make_valkey()
    settings = Settings(data=tmp_path, redis_url=store.url, event_keys="writer", http_port=free_port())
    asked_at: list[float] = []

    def noting(app: App) -> App:
        async def noted(scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] == "http":
                asked_at.append(time.monotonic())
            await app(scope, receive, send)

        return noted

    with (
        served(noting(mounted(build_collector(settings))), settings.http_port) as address,
        Client(address, event_key="writer", config=QUICK) as client,
    ):
        store.kill()
        client.track("view", user_id="u", item_id="i")
        wait_until(lambda: client.trouble is not None)
        store.start()
        client.flush(30)
    assert all(later - earlier >= 1 for earlier, later in itertools.pairwise(asked_at))  # as each answer asked
    assert len(asked_at) > 1


def clients_keys(shop: Shop) -> dict[str, str]:
    return {"base_url": shop.address, "event_key": "writer", "read_key": "reader", "admin_key": "admin"}


def test_a_user_sees_their_own_events_where_the_request_asks_to(open_shop: Shop):
    with Client(**clients_keys(open_shop), config=QUICK) as client:
        assert client.last_token("own") is None
        assert len(client.recommend(user_id="own", n=50, see_own_events=True).items) > 9
        for item in SHOES[:3]:
            client.track("hide", user_id="own", item_id=item)
            client.track("hide", anonymous_id="own", item_id=item)
            client.flush(20)
            for who in ({"user_id": "own"}, {"anonymous_id": "own"}):
                slate = client.recommend(**who, n=50, see_own_events=True, deadline_ms=PATIENT_MS)
                assert item not in {each.item_id for each in slate.items}
                assert slate.degraded == ()
        assert client.last_token("own") == client.last_token(anonymous_id="own")
        ranked = client.rank(SHOES[:4], user_id="own", see_own_events=True, deadline_ms=PATIENT_MS)
        assert [each.item_id for each in ranked.items] == [SHOES[3]]
        with pytest.raises(RefusedError) as caught:
            client.recommend(user_id="own", after="mine", see_own_events=True)
        assert caught.value.field == "after"
        never = client.recommend(user_id="own", after="e.0-9223372036854775807", deadline_ms=500)
        assert "after: not yet seen" in never.degraded


def test_every_path_that_answers_answers_both_clients(open_shop: Shop):
    options = {"user_id": "u/1", "deadline_ms": PATIENT_MS}
    items = [{"item_id": "of-the-client", "category": "clients", "price": 1.0}, {"item_id": "bad", "price": -1.0}]

    async def of_tasks() -> list[Any]:
        async with AsyncClient(**clients_keys(open_shop)) as client:
            return [
                await client.recommend(**options, n=1, explain=True, filter={"brand": ["solo"]}),
                await client.rank([UNKNOWN, UNAVAILABLE, SHOES[0]], **options),
                await client.similar([SHOES[0]], n=50, deadline_ms=PATIENT_MS),
                await client.profile("u/1"),
                upserted := await client.upsert_items(items),
                await client.recommend(**options, filter={"category": ["clients"]}, after=upserted.token),
                await client.set_availability({"of-the-client": False}),
                deleted := await client.delete_items(["of-the-client", "never-there"]),
                await client.recommend(**options, filter={"category": ["clients"]}, after=deleted.token),
            ]

    def of_threads() -> list[Any]:
        with Client(**clients_keys(open_shop)) as client:
            return [
                client.recommend(**options, n=1, explain=True, filter={"brand": ["solo"]}),
                client.rank([UNKNOWN, UNAVAILABLE, SHOES[0]], **options),
                client.similar([SHOES[0]], n=50, deadline_ms=PATIENT_MS),
                client.profile("u/1"),
                upserted := client.upsert_items(items),
                client.recommend(**options, filter={"category": ["clients"]}, after=upserted.token),
                client.set_availability({"of-the-client": False}),
                deleted := client.delete_items(["of-the-client", "never-there"]),
                client.recommend(**options, filter={"category": ["clients"]}, after=deleted.token),
            ]

    for answers in (of_threads(), asyncio.run(of_tasks())):
        slate, ranked, similar, profile, upserted, fresh, changed, deleted, gone = answers
        assert [each.item_id for each in slate.items] == ["watch-0"]
        assert (slate.model_version, slate.degraded) == ("v1", ("hydrate: unknown user",))
        assert slate.features_age_ms >= 0
        assert [stage["stage"] for stage in slate.explain["stages"]] == STAGES
        assert [each.item_id for each in ranked.items] == [SHOES[0], UNKNOWN]
        assert len(similar.items) == 13
        assert (profile.user_key, profile.known) == ("u/1", False)
        assert profile.features["user_activity"]["views_1h"] == 0
        assert (upserted.accepted, upserted.token[0]) == (1, "i")
        (refused,) = upserted.refused
        assert (refused.list, refused.index, refused.item_id, refused.field) == ("upsert", 1, "bad", "price")
        assert [each.item_id for each in fresh.items] == ["of-the-client"]
        assert (changed.accepted, deleted.accepted) == (1, 2)
        assert (gone.items, gone.degraded) == ((), fresh.degraded)


def test_refusals_name_the_field_and_the_setting_with_the_keys(open_shop: Shop):
    with Client(open_shop.address, read_key="reader") as client:
        with pytest.raises(RefusedError) as caught:
            client.recommend(user_id="u", n=0)
        assert (caught.value.field, caught.value.reason.split(":")[0]) == (
            "n",
            "Input should be greater than or equal to 1",
        )
    for name, call in {
        "HEADRACE_READ_KEYS": lambda client: client.recommend(user_id="u"),
        "HEADRACE_ADMIN_KEYS": lambda client: client.delete_items(["i"]),
    }.items():
        with (
            Client(open_shop.address, read_key="wrong", admin_key="reader") as other,
            pytest.raises(UnauthorizedError, match=name),
        ):
            call(other)


def test_a_connection_that_a_restart_broke_is_made_anew(settings: Settings):
    address = f"http://127.0.0.1:{settings.http_port}"
    with Client(address, read_key="reader") as client:
        for _ in range(3):
            with served(build_recommender(settings), settings.http_port):
                assert client.recommend(user_id="u", deadline_ms=5_000).items == ()
        with pytest.raises(UnavailableError, match=f"POST /v1/recommend at {address} got no answer"):
            client.recommend(user_id="u")


def test_who_never_answers_is_not_waited_for_longer_than_allowed():
    config = ClientConfig(timeout_s=0.1, events_timeout_s=0.1, backoff=FAST)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"

        async def of_tasks() -> None:
            async with AsyncClient(address, read_key="reader", config=config) as client:
                await client.recommend(user_id="u")

        with Client(address, read_key="reader", config=config) as client, pytest.raises(TimedOutError):
            client.recommend(user_id="u")
        with pytest.raises(TimedOutError):
            asyncio.run(of_tasks())
        client = Client(address, event_key="writer", config=config)
        client.track("view", user_id="u", item_id="i")
        wait_until(lambda: isinstance(client.trouble, TimedOutError))
        with pytest.raises(UndeliveredError):
            client.close(timeout_s=0.1)


def test_a_forked_process_is_told_to_make_its_own(address: str, settings: Settings, tmp_path: Path):
    code = """
import os, sys
from headrace.client import Client, ClosedError
client = Client(sys.argv[1], event_key="writer", spool=sys.argv[2])
client.track("view", event_id="parent", user_id="u", item_id="i")
child = os.fork()
if child == 0:
    try:
        client.track("view", event_id="child", user_id="u", item_id="i")
    except ClosedError as error:
        os.write(1, str(error).encode())
    client.close()
    os._exit(0)
os.waitpid(child, 0)
client.close()
"""
    done = subprocess.run(
        [sys.executable, "-c", code, address, tmp_path / "spool"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert "make one in each process, after the fork" in done.stdout
    assert logged(settings) == Counter(["parent"])


def test_logs_hold_no_user_and_no_key(address: str, caplog: pytest.LogCaptureFixture, tmp_path: Path):
    with caplog.at_level(logging.DEBUG, "headrace.client"):
        with Client(address, event_key="wrong-secret", spool=tmp_path / "spool", config=QUICK) as client:
            client.track("view", user_id="somebody", item_id="something")
            wait_until(lambda: client.trouble is not None)
            client.close(timeout_s=0)
        with Client(address, event_key="writer", spool=tmp_path / "spool", config=QUICK) as client:
            client.track("view", user_id="somebody", item_id="i", timestamp="2100-01-01T00:00:00Z")
            client.flush(20)
    said = " ".join(record.getMessage() for record in caplog.records if record.name.startswith("headrace.client"))
    assert "events wait: POST /v1/events answered 401" in said
    assert "refused an event for its field timestamp" in said
    for secret in ("somebody", "something", "wrong-secret", "writer"):
        assert secret not in said
