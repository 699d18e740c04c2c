"""The fast reader on a server that goes away, comes back, or does not answer in time."""

import os
import resource
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import redis
from feast.protos.feast.types.Value_pb2 import Value

from headrace.identity import shard_of
from headrace.ops.valkey import ValkeyServer
from headrace.settings import Settings
from headrace.stores.definitions import Definitions
from headrace.stores.online_line import LateError
from headrace.stores.online_reader import OnlineReader
from headrace.stores.plain_rows import PlainLayout
from headrace.stores.redis_client import connect
from headrace.stores.shards import row_key
from tests.conftest import wait_until

LAYOUT = PlainLayout("items", (("price", "DOUBLE"), ("title", "STRING")))
IDS = [f"i{number}" for number in range(300)]


@pytest.fixture
def server(make_valkey: Callable[[], ValkeyServer]) -> ValkeyServer:
    running = make_valkey()
    rows = {
        row_key(shard_of(each, 4), "items", each): LAYOUT.pack(
            {"price": Value(double_val=float(number)), "title": Value(string_val=each * 20)}, 1_000, 0
        )
        for number, each in enumerate(IDS)
    }
    with redis.Redis.from_url(running.url) as client:
        client.mset(rows)
    return running


def reader_of(server: ValkeyServer, timeout_s: float = 5.0, keeps_line: bool = False) -> OnlineReader:
    settings = Settings(data=Path("none"), redis_url=server.url)
    definitions = Definitions({}, {"items": LAYOUT})
    return OnlineReader(connect(settings, timeout_s), definitions, settings, keeps_line=keeps_line)


def titles(reader: OnlineReader, ids: list[str]) -> list[object]:
    return list(reader.fetch({"items": ids}).plain["items"].values()["title"])


@pytest.mark.parametrize("keeps_line", [False, True])
def test_after_a_restart_of_the_server_the_same_reader_reads_on(server: ValkeyServer, keeps_line: bool) -> None:
    reader = reader_of(server, keeps_line=keeps_line)
    assert titles(reader, ["i1", "none"]) == ["i1" * 20, None]
    server.kill()
    with pytest.raises(redis.ConnectionError):
        titles(reader, ["i1"])
    server.start()
    assert titles(reader, ["i2"]) == ["i2" * 20]


def test_an_answer_that_comes_too_late_is_never_taken_for_the_next_one(server: ValkeyServer) -> None:
    reader = reader_of(server, timeout_s=0.2)
    wait_until(lambda: _succeeds(reader))
    pid = server.child.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    try:
        with pytest.raises(redis.TimeoutError, match="in time"):
            titles(reader, IDS)
    finally:
        os.kill(pid, signal.SIGCONT)
    wait_until(lambda: _succeeds(reader))
    assert reader_of(server).fetch({"items": ["i7"]}).plain["items"].values()["title"] == ["i7" * 20]


def _succeeds(reader: OnlineReader) -> bool:
    try:
        return titles(reader, ["i3", "i4"]) == ["i3" * 20, "i4" * 20]
    except redis.TimeoutError:
        return False


def test_nothing_asked_is_nothing_read(server: ValkeyServer) -> None:
    read = reader_of(server).fetch({})
    assert (read.streams, read.plain, read.complete_us) == ({}, {}, 0)
    assert titles(reader_of(server), []) == []


def test_of_thousands_of_keys_every_row_goes_to_its_own(server: ValkeyServer) -> None:
    asked = [*IDS, "none"] * 30
    assert titles(reader_of(server), asked) == [None if each == "none" else each * 20 for each in asked]


def test_a_line_that_broke_while_it_lay_idle_is_taken_up_again(server: ValkeyServer) -> None:
    reader = reader_of(server, keeps_line=True)
    assert titles(reader, ["i1"]) == ["i1" * 20]
    server.kill()
    server.start()
    assert titles(reader, ["i2"]) == ["i2" * 20]
    reader.close()
    assert titles(reader, ["i3"]) == ["i3" * 20]


def test_a_reader_that_keeps_its_line_can_be_told_to_wait_less(server: ValkeyServer) -> None:
    reader = reader_of(server, keeps_line=True)
    assert titles(reader, ["i1"]) == ["i1" * 20]
    with redis.Redis.from_url(server.url) as client:
        pid = int(client.info("server")["process_id"])
    os.kill(pid, signal.SIGSTOP)
    try:
        with pytest.raises(LateError):
            reader.fetch({"items": ["i2"]}, within_s=0.05)
    finally:
        os.kill(pid, signal.SIGCONT)
    assert titles(reader, ["i3"]) == ["i3" * 20]


def test_questions_may_be_sent_before_their_answers_are_wanted_and_taken_in_any_order(server: ValkeyServer) -> None:
    reader = reader_of(server, keeps_line=True)
    wanted = [{"items": [each]} for each in IDS[:6]]
    assert reader.ask(wanted[0]) is None  # nothing waits for a line to be opened
    assert titles(reader, ["i1"]) == ["i1" * 20]
    sent = [reader.ask(each) for each in wanted]
    assert None not in sent
    for place in (2, 0, 5, 4):  # two are never taken
        found = reader.fetch(wanted[place], sent=sent[place]).plain["items"].values()["title"]
        assert list(found) == [IDS[place] * 20]
    assert titles(reader, ["i3"]) == ["i3" * 20]


def test_a_question_whose_line_broke_is_asked_anew(server: ValkeyServer) -> None:
    reader = reader_of(server, keeps_line=True)
    assert titles(reader, ["i1"]) == ["i1" * 20]
    wanted = [{"items": [each]} for each in ("i2", "i3", "i4")]
    os.kill(server.child.pid, signal.SIGSTOP)  # so that no answer is here already
    sent = [reader.ask(each) for each in wanted]
    assert None not in sent
    server.kill()
    server.start()
    for each, question in zip(wanted, sent, strict=True):
        assert list(reader.fetch(each, sent=question).plain["items"].values()["title"]) == [each["items"][0] * 20]


def test_a_question_waits_no_longer_than_it_may_in_all_and_those_behind_it_lose_nothing(server: ValkeyServer) -> None:
    """However many answers come before its own; and that a request is short of time is no failure of the store's."""
    reader = reader_of(server, keeps_line=True)
    assert titles(reader, ["i1"]) == ["i1" * 20]
    wanted = [{"items": [each]} for each in IDS[:5]]
    os.kill(server.child.pid, signal.SIGSTOP)
    try:
        sent = [reader.ask(each) for each in wanted]
        begun = time.monotonic()
        with pytest.raises(LateError):
            reader.fetch(wanted[3], within_s=0.05, sent=sent[3])
        assert time.monotonic() - begun < 2  # of the five that the store would have
        with pytest.raises(LateError, match="no time is left"):
            reader.fetch(wanted[3], within_s=0.0)
    finally:
        os.kill(server.child.pid, signal.SIGCONT)
    for place in (4, 0, 3):
        assert sent[place] is not None
        found = reader.fetch(wanted[place], sent=sent[place]).plain["items"].values()["title"]
        assert list(found) == [IDS[place] * 20]
    assert titles(reader, ["i3"]) == ["i3" * 20]
    reader.close()


def test_a_store_that_had_all_its_time_has_failed(server: ValkeyServer) -> None:
    reader = reader_of(server, timeout_s=0.05, keeps_line=True)
    assert titles(reader, ["i1"]) == ["i1" * 20]
    os.kill(server.child.pid, signal.SIGSTOP)
    try:
        with pytest.raises(redis.TimeoutError):
            reader.fetch({"items": ["i2"]}, within_s=1.0)
    finally:
        os.kill(server.child.pid, signal.SIGCONT)


def test_a_process_with_many_open_files_reads_on(server: ValkeyServer) -> None:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(most, 4_096), most))
    held = [os.open(os.devnull, os.O_RDONLY) for _ in range(1_100)]
    try:
        reader = reader_of(server, keeps_line=True)
        assert titles(reader, ["i1"]) == ["i1" * 20]
        assert reader.ask({"items": ["i2"]}) is not None
        reader.close()
    finally:
        for descriptor in held:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
