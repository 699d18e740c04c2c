"""Structured logs: one JSON object a line, with the id of the request it is about, and nothing of who asked for what.

Lines go to standard error, or into a file that several processes share: each line is one append, so lines never mix.
"""

import contextvars
import json
import logging
import sys
import threading
import uuid
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Literal, TextIO

request_id: Final[contextvars.ContextVar[str | None]] = contextvars.ContextVar("request_id", default=None)

LogFormat = Literal["json", "text"]
# Ray Serve's own logger hands nothing on to the root logger.
RAY_SERVE: Final = "ray.serve"
# In bytes; a longer one could be cut in two by another process's.
LONGEST_LINE: Final = 1024**2


def new_request_id() -> str:
    """An id for the request at hand, which every line logged from here on in its context carries."""
    made = str(uuid.uuid4())
    request_id.set(made)
    return made


class JsonLines(logging.Formatter):
    """`time` (UTC), `level`, `logger`, `message`, `pid`; `request_id` and `exception` where there is one."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": _time_of(record),
            "level": record.levelname,
            "logger": record.name,
            "message": _as_utf8(record.getMessage()),
            "pid": record.process,
        }
        asked = request_id.get()
        if asked is not None:
            line["request_id"] = asked
        if record.exc_info:
            line["exception"] = _as_utf8(self.formatException(record.exc_info))
        return json.dumps(line)


class TextLines(logging.Formatter):
    """The same for reading by eye; an exception follows its line."""

    def format(self, record: logging.LogRecord) -> str:
        asked = request_id.get()
        about = f" [{asked}]" if asked is not None else ""
        line = f"{_time_of(record)} {record.levelname} {record.name}{about}: {record.getMessage()}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


class AppendedLines(logging.StreamHandler[TextIO]):
    """Writes each record to the end of a file in one call, so that processes can share it."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        super().__init__(path.open("a", buffering=LONGEST_LINE, encoding="utf-8", errors="backslashreplace"))

    def close(self) -> None:
        self.stream.close()
        super().close()


def configure(log_format: LogFormat, file: Path | None = None) -> None:
    """This process's log: to `file`, else to standard error. Exceptions that nobody catches are lines of it, too."""
    handler = logging.StreamHandler() if file is None else AppendedLines(file)
    handler.setFormatter(JsonLines() if log_format == "json" else TextLines())
    handler.addFilter(_is_no_access_line)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
    if file is not None:  # a replica, whose Ray Serve also keeps a file of its own
        logging.getLogger(RAY_SERVE).addHandler(handler)
    sys.excepthook = _log_uncaught
    threading.excepthook = _log_uncaught_in_thread


def take_over_ray_serve() -> None:
    """What Ray Serve says to the terminal becomes lines of this process's log. Call once it is imported."""
    logging.getLogger(RAY_SERVE).handlers[:] = logging.getLogger().handlers


def message_of(line: str) -> str:
    """What a line of a log says to a reader: a JSON line's message with the end of its exception, another line itself."""
    try:
        said = json.loads(line)
    except ValueError:
        return line
    if not isinstance(said, dict) or "message" not in said:
        return line
    last = str(said.get("exception", "")).strip().rpartition("\n")[2]
    return f"{said['message']}: {last}" if last else str(said["message"])


def _time_of(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, tz=UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _as_utf8(text: str) -> str:
    """Half a surrogate pair, which some client sent, would make the line one that not every reader of JSON takes."""
    return text.encode(errors="backslashreplace").decode()


def _is_no_access_line(record: logging.LogRecord) -> bool:
    """Ray Serve's line for each request has the request's path in it, and so perhaps a user's id."""
    return not getattr(record, "serve_access_log", False)


def _log_uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)
        return
    logging.getLogger("uncaught").critical("the process ends", exc_info=(kind, error, trace))


def _log_uncaught_in_thread(arguments: threading.ExceptHookArgs) -> None:
    if arguments.exc_value is not None and not issubclass(arguments.exc_type, SystemExit):
        name = arguments.thread.name if arguments.thread else "?"
        cause = (arguments.exc_type, arguments.exc_value, arguments.exc_traceback)
        logging.getLogger("uncaught").critical("the thread %s ends", name, exc_info=cause)
