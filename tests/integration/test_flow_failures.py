"""The feature flow when the store fails it, in mid-commit too: it stays up, goes on from what is committed, and counts all of it once."""

import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from headrace.events import encode_records
from headrace.ops.valkey import ValkeyServer
from headrace.settings import Settings
from headrace.stores.dead_letters import DeadLetters
from headrace.stores.log import open_log
from headrace.stores.redis_client import connect
from headrace.stores.shards import read_status
from tests.conftest import wait_until
from tests.integration.test_feature_flow import (
    append,
    assert_equals_oracle,
    committed_positions,
    newest_of,
    random_events,
    run_to_end,
    wait_until_taken_in,
)

pytestmark = pytest.mark.timeout(600)

Start = Callable[[str], "subprocess.Popen[bytes]"]
COMMIT = b"HINCRBY"


class CommitCutter:
    """Stands between a flow and its server, and breaks the connection at commits: before the server has it, or before its answer."""

    def __init__(self, server_port: int) -> None:
        self._server_port = server_port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"redis://127.0.0.1:{self._listener.getsockname()[1]}/0"
        self.cuts = {"request": 0, "answer": 0}
        self.cut = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:  # closed
                return
            threading.Thread(target=self._relay, args=(client,), daemon=True).start()

    def _relay(self, client: socket.socket) -> None:
        with client, socket.create_connection(("127.0.0.1", self._server_port)) as server:
            drops_the_answer = threading.Event()
            threading.Thread(target=self._answer, args=(server, client, drops_the_answer), daemon=True).start()
            while request := _receive(client):
                if COMMIT in request and self.cuts["request"]:
                    self.cuts["request"] -= 1
                    self.cut += 1
                    return
                if COMMIT in request and self.cuts["answer"]:
                    self.cuts["answer"] -= 1
                    drops_the_answer.set()
                server.sendall(request)

    def _answer(self, server: socket.socket, client: socket.socket, drops_it: threading.Event) -> None:
        while answer := _receive(server):
            if drops_it.is_set():
                self.cut += 1
                client.shutdown(socket.SHUT_RDWR)
                return
            try:
                client.sendall(answer)
            except OSError:  # it has gone, and the other direction ends by itself
                return


def _receive(sock: socket.socket) -> bytes:
    try:
        return sock.recv(1 << 20)
    except OSError:
        return b""


@contextmanager
def commit_cutter(server: ValkeyServer) -> Iterator[CommitCutter]:
    cutter = CommitCutter(server.port)
    try:
        yield cutter
    finally:
        cutter.close()


@pytest.fixture
def own(make_valkey: Callable[[], ValkeyServer], stack: Settings, monkeypatch: pytest.MonkeyPatch) -> ValkeyServer:
    """A server of the test's own, that the environment names."""
    server = make_valkey()
    monkeypatch.setenv("HEADRACE_REDIS_URL", server.url)
    return server


@pytest.mark.parametrize("lost", ["request", "answer"])
def test_a_commit_that_is_cut_off_is_made_again_or_found_to_be_made(
    own: ValkeyServer, start_flow: Start, monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    direct = Settings()
    events = random_events(400, seed=31)
    log = open_log(connect(direct), direct)
    with commit_cutter(own) as cutter:
        monkeypatch.setenv("HEADRACE_REDIS_URL", cutter.url)
        flow = start_flow("features")
        for start in range(0, len(events), 100):
            append(log, events[start : start + 100], entry=10)
            wait_until_taken_in(direct)
            cutter.cuts[lost] = 1
        wait_until(lambda: cutter.cut == 4, timeout_s=60)
        wait_until_taken_in(direct)
        assert flow.poll() is None
        assert_equals_oracle(direct, events, newest_of(events) + 1)
        counters = [status.counters for status in read_status(connect(direct), range(direct.shards)).values()]
        assert sum(each.get("events", 0) for each in counters) == 400
        flow.terminate()
        assert flow.wait(timeout=30) == 0


def test_a_valkey_that_is_killed_and_comes_back_loses_nothing_that_was_acknowledged(
    own: ValkeyServer, start_flow: Start
) -> None:
    settings = Settings()
    events = random_events(900, seed=8)
    flow = start_flow("features")
    for start in range(0, 900, 300):
        before = committed_positions(settings)
        append(open_log(connect(settings), settings), events[start : start + 300], entry=2)
        wait_until(lambda before=before: committed_positions(settings) > before, timeout_s=180)  # type: ignore[misc]
        own.kill()  # while it takes the rest in
        own.start()
    wait_until_taken_in(settings)
    assert flow.poll() is None
    assert_equals_oracle(settings, events, newest_of(events) + 1)


def test_a_flow_whose_store_is_away_ends_in_order_when_it_is_asked_to(
    own: ValkeyServer, start_flow: Start, tmp_path: Path
) -> None:
    settings = Settings()
    flow = start_flow("features")
    append(open_log(connect(settings), settings), random_events(20, seed=9))
    wait_until_taken_in(settings)
    own.kill()
    flow.terminate()
    assert flow.wait(timeout=30) == 0


BAD_LINES = {
    b"{cut off": "unexpected",
    b'{"event_id":"n","type":"view","user_key":"u","item_id":"i","timestamp":1,"received_at":1,"price":"dear"}': "price is",
    b'{"event_id":"n","type":"view","user_key":"u","item_id":"i","timestamp":1,"received_at":1,"schema_version":2}': "newer",
}


def test_what_is_no_event_is_kept_with_the_reason_and_counted_and_the_rest_is_taken(stack: Settings) -> None:
    good = random_events(4, seed=5)
    log = open_log(connect(stack), stack)
    lines = [encode_records(good[:1]), *BAD_LINES, encode_records(good[1:])]
    position = log.append({0: b"\n".join(lines)}, {0: 7})[0]
    run_to_end(stack)
    letters = sorted(DeadLetters(connect(stack)), key=lambda letter: letter.key)
    assert [letter.origin for letter in letters] == [
        f"event log, partition 0, position {position}, line {line}" for line in (1, 2, 3)
    ]
    for letter, (raw, reason) in zip(letters, BAD_LINES.items(), strict=True):
        assert letter.raw == raw.decode()
        assert reason in letter.reason
    assert read_status(connect(stack), [0])[0].counters == {"events": 4, "dead_letters": 3}
    assert_equals_oracle(stack, good, newest_of(good) + 1)
    run_to_end(stack)  # nothing is kept or counted again
    assert DeadLetters(connect(stack)).count() == 3
