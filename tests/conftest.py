"""Shared parts: a real Valkey, settings of a test's own directory, the public data sets, a wait that ends."""

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import prometheus_client  # noqa: F401 - before Feast, whose import turns on its multi-process mode for metrics
import pytest
import redis
from hypothesis import settings as hypothesis_settings

from headrace.ops.ports import free_port
from headrace.ops.valkey import ValkeyServer
from headrace.settings import Settings

ROOT = Path(__file__).parent.parent

# One state of the code, one outcome; `make test-slow` explores.
hypothesis_settings.register_profile("same", derandomize=True)
hypothesis_settings.register_profile("explore", print_blob=True)
hypothesis_settings.load_profile("same")


def wait_until(condition: Callable[[], bool], timeout_s: float = 20.0, every_s: float = 0.02) -> None:
    """Return as soon as `condition()` holds; fail the test after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"not so within {timeout_s} s: {getattr(condition, '__name__', condition)}")
        time.sleep(every_s)


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """A developer's own HEADRACE_* variables change no test."""
    for name in [name for name in os.environ if name.startswith("HEADRACE_") and name != "HEADRACE_DATASETS"]:
        monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def valkey_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ValkeyServer]:
    """One server for the whole run, `appendfsync always`. Tests share it: use `valkey`, which empties it first."""
    directory = tmp_path_factory.mktemp("valkey")
    server = ValkeyServer(directory / "data", free_port(), directory / "valkey.log")
    server.start()
    yield server
    server.stop()


@pytest.fixture
def valkey(valkey_server: ValkeyServer) -> str:
    """URL of an empty Valkey."""
    with redis.Redis.from_url(valkey_server.url) as client:
        client.flushall()
    return valkey_server.url


@pytest.fixture
def make_valkey(tmp_path: Path) -> Iterator[Callable[[], ValkeyServer]]:
    """Starts a server of the test's own, which it may `kill()` and `start()` again: same address, same data."""
    servers: list[ValkeyServer] = []

    def make() -> ValkeyServer:
        name = f"valkey-{len(servers)}"
        servers.append(ValkeyServer(tmp_path / name, free_port(), tmp_path / f"{name}.log"))
        servers[-1].start()
        return servers[-1]

    yield make
    for server in servers:
        server.kill()


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Settings with a data directory of the test's own and no store."""
    return Settings(data=tmp_path / "var", feature_repo=ROOT / "feature_repo")


@pytest.fixture(scope="session")
def datasets() -> Path:
    """Where the public data sets lie; skips the test where they are absent."""
    folder = Path(os.environ.get("HEADRACE_DATASETS", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no data sets in {folder}: set HEADRACE_DATASETS")
    return folder
