import io
import logging
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import orjson
import pydantic
import pytest

from headrace import logs
from headrace.events import EventIn


@pytest.fixture(autouse=True)
def _logging_as_it_was() -> Iterator[None]:
    root, serve = logging.getLogger(), logging.getLogger(logs.RAY_SERVE)
    kept = root.handlers[:], root.level, serve.handlers[:], sys.excepthook, threading.excepthook
    yield
    for handler in root.handlers:
        if handler not in kept[0]:
            handler.close()
    root.handlers[:], serve.handlers[:] = kept[0], kept[2]
    root.setLevel(kept[1])
    sys.excepthook, threading.excepthook = kept[3], kept[4]


def lines_of(path: Path) -> list[dict[str, object]]:
    return [orjson.loads(line) for line in path.read_text().splitlines()]


def test_a_line_is_one_object_with_time_level_logger_message_and_the_exception_as_text(tmp_path: Path):
    logs.configure("json", tmp_path / "log" / "app.log")
    try:
        raise LookupError("two\nlines \ud800")
    except LookupError:
        logging.getLogger("serving.x").exception("failed %s", "here")
    [line] = lines_of(tmp_path / "log" / "app.log")
    assert set(line) == {"time", "level", "logger", "message", "pid", "exception"}
    assert (line["level"], line["logger"], line["message"]) == ("ERROR", "serving.x", "failed here")
    assert str(line["time"]).endswith("Z")
    assert str(line["exception"]).startswith("Traceback (most recent call last):\n")


def test_a_line_carries_the_id_of_its_request_and_no_other(tmp_path: Path):
    logs.configure("json", tmp_path / "app.log")

    def request() -> None:
        made = logs.new_request_id()
        logging.getLogger("a").info("in %s", made)

    thread = threading.Thread(target=request)
    thread.start()
    thread.join()
    logging.getLogger("a").info("outside")
    inside, outside = lines_of(tmp_path / "app.log")
    assert inside["message"] == f"in {inside['request_id']}"
    assert "request_id" not in outside


def test_text_is_for_the_eye(tmp_path: Path):
    logs.configure("text", tmp_path / "app.log")
    logging.getLogger("a").warning("careful")
    assert (tmp_path / "app.log").read_text().endswith("Z WARNING a: careful\n")


def test_ray_serves_lines_come_too_but_not_those_with_the_paths_of_requests(tmp_path: Path):
    logs.configure("json", tmp_path / "app.log")
    serve = logging.getLogger(logs.RAY_SERVE)
    serve.propagate, before = False, serve.propagate
    serve.error("Request failed.")
    serve.error("GET /v1/users/u-1/profile 200 3ms", extra={"serve_access_log": True})
    serve.propagate = before
    assert [line["message"] for line in lines_of(tmp_path / "app.log")] == ["Request failed."]


def test_an_exception_that_nobody_catches_is_a_line_of_the_log(tmp_path: Path):
    logs.configure("json", tmp_path / "app.log")

    def fail() -> None:
        raise ValueError("unexpected")

    thread = threading.Thread(target=fail, name="worker")
    thread.start()
    thread.join()
    try:
        fail()
    except ValueError as error:
        sys.excepthook(type(error), error, error.__traceback__)
    assert [(line["level"], line["message"]) for line in lines_of(tmp_path / "app.log")] == [
        ("CRITICAL", "the thread worker ends"),
        ("CRITICAL", "the process ends"),
    ]


def test_without_a_file_lines_go_to_standard_error(monkeypatch: pytest.MonkeyPatch):
    said = io.StringIO()
    monkeypatch.setattr(sys, "stderr", said)
    logs.configure("json")
    logging.getLogger("a").info("hello")
    assert orjson.loads(said.getvalue())["message"] == "hello"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("plain words", "plain words"),
        ('{"message": "it failed", "level": "ERROR"}', "it failed"),
        (
            '{"message": "it failed", "exception": "Traceback\\n  line\\nOSError: no disk"}',
            "it failed: OSError: no disk",
        ),
        ("3", "3"),
        ('{"other": 1}', '{"other": 1}'),
    ],
)
def test_a_reader_of_a_log_gets_the_message_out_of_a_line(line: str, said: str):
    assert logs.message_of(line) == said


def test_what_a_bad_event_holds_is_not_in_its_error():
    with pytest.raises(pydantic.ValidationError) as caught:
        EventIn.model_validate({"event_id": "e", "type": "click", "user_id": ["marker"], "item_id": 3})
    assert "user_id" in str(caught.value)
    assert "marker" not in str(caught.value)
