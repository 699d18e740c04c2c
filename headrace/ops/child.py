"""A child process with a log file, which can be started again after it has ended."""

import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from headrace.logs import message_of
from headrace.settings import Settings

EXCHANGED: Final = 75
"""Exit code of a flow whose state `headrace backfill` has exchanged: it goes on when it is started again."""


class ChildFailedError(RuntimeError):
    """A process of the stack ended or did not get ready."""


def environment_of(settings: Settings) -> dict[str, str]:
    """The environment in which a child process reads exactly these settings, whatever directory it starts in."""
    chosen = settings.model_dump(include=settings.model_fields_set, exclude_none=True)
    chosen |= {"data": settings.data.resolve(), "feature_repo": settings.feature_repo.resolve()}
    others = {name: value for name, value in os.environ.items() if not name.startswith("HEADRACE_")}
    ours = {f"HEADRACE_{name.upper()}": str(value) for name, value in chosen.items()}
    return others | ours | {"PYTHONUNBUFFERED": "1"}


def failure_of(name: str, what: str, log: Path) -> ChildFailedError:
    """The error that says what went wrong and where to read on."""
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    last = next((message_of(line.strip()) for line in reversed(lines) if line.strip()), "no output")
    return ChildFailedError(f"{name} {what}; its last line: {last[:300]} (all of it: {log})")


class Child:
    """One process of the stack. Its output goes to `log`, appended. It has a session of its own, so that Ctrl-C in the
    terminal reaches the supervisor alone, which ends its children in order."""

    def __init__(self, name: str, command: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        self.name = name
        self.log = log
        self._command = list(command)
        self._environment = dict(environment)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> int:
        """Starts it and returns its process number."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as output:
            self._process = subprocess.Popen(
                self._command,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return self._process.pid

    @property
    def pid(self) -> int:
        assert self._process is not None, f"{self.name} was not started"
        return self._process.pid

    def exit_code(self) -> int | None:
        """None while it runs, or before it was started."""
        return self._process.poll() if self._process else None

    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def terminate(self) -> None:
        """Ask it to end (SIGTERM). Returns at once."""
        if self._process is not None:
            self._process.terminate()

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def wait(self, timeout_s: float | None = None) -> int:
        """Its exit code. Raises subprocess.TimeoutExpired."""
        assert self._process is not None, f"{self.name} was not started"
        return self._process.wait(timeout_s)

    def failure(self, what: str) -> ChildFailedError:
        return failure_of(self.name, what, self.log)
