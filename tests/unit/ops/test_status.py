import io
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
from rich.console import Console

from headrace.ops.interrupts import Interrupts
from headrace.ops.stack import EXPLORATION, Stack, addresses, with_exploration
from headrace.ops.status import as_table, status
from headrace.settings import Settings

READY: dict[str, Any] = {
    "ready": True,
    "model_version": "7",
    "catalogue": {"items": 3, "origin": "live"},
    "problems": {"champion": "version 8 is refused: it was trained on other features [user_activity]"},
}


class Answering(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = json.dumps(READY).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def served(settings: Settings) -> Iterator[Settings]:
    """Settings of a data directory whose API answers `GET /readyz` with READY."""
    with HTTPServer(("127.0.0.1", 0), Answering) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield settings.model_copy(update={"http_port": server.server_port})
        server.shutdown()
        thread.join()


def shown(table: Any) -> str:
    said = io.StringIO()
    Console(file=said, width=200).print(table)
    return said.getvalue()


def test_status_shows_the_model_in_service_and_the_one_that_was_refused(served: Settings):
    found = status(served)
    assert found.to_dict()["serves"] == READY
    text = shown(as_table(found))
    assert "│ model" in text
    assert "│ 7 " in text
    assert "problem: champion" in text
    assert "version 8 is refused: it was trained on other features [user_activity]" in text


def test_up_shows_them_once_it_has_started(served: Settings):
    text = shown(addresses(Stack(served, print, Interrupts())))
    assert "│ 7 " in text
    assert "version 8 is refused" in text


def test_without_an_answer_nothing_is_said_of_models(settings: Settings):
    text = shown(as_table(status(settings.model_copy(update={"http_port": 9}))))
    assert "no answer" in text
    assert "model" not in text


def test_a_stack_that_stays_explores_unless_it_is_told_how_much(settings: Settings) -> None:
    assert settings.exploration == 0.0
    assert with_exploration(settings).exploration == EXPLORATION == 0.05
    assert with_exploration(settings.model_copy(update={"exploration": 0.0})).exploration == 0.0
