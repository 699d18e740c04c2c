"""What the asker reports is what became of its requests."""

import socketserver
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from benchmarks.asking import Phase, Target, ask, asked, asking, request_bytes
from tests.conftest import wait_until

WHOLE = b'{"degraded":[]}'
LESS = b'{"degraded":["ranker: deadline"]}'


class Server(socketserver.ThreadingTCPServer):
    """Answers each request by what its body says."""

    allow_reuse_address = True
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests: list[bytes] = []
        self.connections = 0

    def target(self, *bodies: str) -> Target:
        host, port = self.server_address[:2]
        return Target(str(host), int(port), [request_bytes(str(host), int(port), "/", body) for body in bodies], WHOLE)


class Handler(socketserver.StreamRequestHandler):
    server: Server

    def handle(self) -> None:
        self.server.connections += 1
        while line := self.rfile.readline():
            assert line == b"POST / HTTP/1.1\r\n"
            headers = {}
            while (line := self.rfile.readline()) != b"\r\n":
                name, value = line.decode().strip().split(": ")
                headers[name] = value
            said = self.rfile.read(int(headers["content-length"])).decode().strip('"')
            self.server.requests.append(said.encode())
            if said == "break":
                return
            if said == "slow":
                time.sleep(0.3)
            body, status = (LESS if said == "less" else WHOLE), 429 if said == "shed" else 200
            close = b"connection: close\r\n" if said == "last" else b""
            self.wfile.write(b"HTTP/1.1 %d Any\r\n%sContent-Length: %d\r\n\r\n" % (status, close, len(body)) + body)
            if said in ("last", "forget"):
                return


@pytest.fixture
def server() -> Iterator[Server]:
    with running() as found:
        yield found


@contextmanager
def running() -> Iterator[Server]:
    with Server() as found:
        thread = threading.Thread(target=found.serve_forever)
        thread.start()
        try:
            yield found
        finally:
            found.shutdown()
            thread.join()


def test_a_closed_phase_keeps_its_connections_busy_and_each_phase_has_its_own_requests(server: Server, tmp_path: Path):
    phases = [Phase("warm-up", 0.0, connections=2, requests=10), Phase("round", 0.3, connections=2)]
    first, second = ask(server.target("fine"), phases, tmp_path)
    assert first.phase == phases[0]
    assert len(first.status) in (10, 11)  # the one beside the tenth was under way
    assert len(first.status) + len(second.status) == len(server.requests)
    assert second.statuses == {"200": len(second.status)}
    assert second.rate == (second.done_s <= 0.3).sum() / 0.3
    assert second.took_s.min() > 0
    assert server.connections == 2


def test_an_open_phase_sends_on_schedule_whatever_is_unanswered(server: Server, tmp_path: Path):
    (found,) = ask(server.target("slow"), [Phase("open", 0.5, rate=40)], tmp_path)
    assert sorted(found.due_s.round(6)) == [number / 40 for number in range(20)]
    assert found.late_s.max() < 0.3  # else it would have waited for answers
    assert found.took_s.min() >= 0.3
    assert server.connections >= 10


def test_what_an_open_phase_leaves_unanswered_counts_as_its_own(server: Server, tmp_path: Path):
    phases = [Phase("first", 0.05, rate=100), Phase("second", 0.5, rate=4)]
    first, second = ask(server.target("slow"), phases, tmp_path)
    assert first.statuses == {"200": 5}
    assert second.statuses == {"200": 2}


def test_refused_and_broken_requests_are_counted_by_status(server: Server, tmp_path: Path):
    (shed,) = ask(server.target("shed"), [Phase("shed", 0.0, connections=1, requests=5)], tmp_path / "shed")
    assert shed.statuses == {"429": 5}
    (broken,) = ask(server.target("break"), [Phase("break", 0.0, connections=1, requests=5)], tmp_path / "break")
    assert broken.statuses == {"0": 5}
    assert len(broken.took_s) == 0


def test_answers_with_less_are_counted_by_what_is_missing(server: Server, tmp_path: Path):
    (found,) = ask(server.target("less"), [Phase("less", 0.0, connections=1, requests=3)], tmp_path)
    assert found.incomplete == {"ranker: deadline": 3}


@pytest.mark.parametrize("parting", ["last", "forget"])
def test_a_connection_that_the_server_closes_after_an_answer_costs_no_request(
    server: Server, tmp_path: Path, parting: str
):
    """Said in the answer, or not said at all."""
    (found,) = ask(server.target(parting), [Phase("closing", 0.0, connections=1, requests=5)], tmp_path)
    assert found.statuses == {"200": 5}
    assert server.requests == [parting.encode()] * 5
    assert server.connections == 5


def test_asked_to_end_it_reports_what_it_has(server: Server, tmp_path: Path):
    with asking(server.target("fine"), [Phase("long", 60.0, rate=200)], tmp_path) as process:
        wait_until(lambda: len(server.requests) >= 10)
        process.terminate()
        process.wait()
    (found,) = asked(process, tmp_path)
    assert found.statuses == {"200": len(server.requests)}
