"""A stack of a test's own: an applied feature repository, an empty Valkey, an empty lake, and the flows as processes."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from headrace.settings import Settings
from headrace.stores.definitions import FILE
from tests.conftest import ROOT
from tests.integration.open_shop import Shop
from tests.integration.open_shop import open_shop as opened


@pytest.fixture(scope="session")
def applied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a feature repository that `feast apply` has been run in, as a user runs it: no server, no flag."""
    return feast_applied(tmp_path_factory.mktemp("applied"))


def feast_applied(directory: Path) -> Path:
    shutil.copytree(ROOT / "feature_repo", directory / "feature_repo", ignore=shutil.ignore_patterns("__pycache__"))
    environment = os.environ | {"HEADRACE_DATA": str(directory / "var")}
    feast = Path(sys.executable).parent / "feast"
    subprocess.run([feast, "apply"], cwd=directory / "feature_repo", env=environment, check=True, capture_output=True)
    return directory


@pytest.fixture
def stack(applied: Path, valkey: str, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Settings of that repository with nothing in log, store and lake. Child processes see the same through the environment."""
    for path in (applied / "var").iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name not in ("registry.pb", FILE):
            path.unlink()
    monkeypatch.setenv("HEADRACE_DATA", str(applied / "var"))
    monkeypatch.setenv("HEADRACE_FEATURE_REPO", str(applied / "feature_repo"))
    monkeypatch.setenv("HEADRACE_REDIS_URL", valkey)
    monkeypatch.setenv("HEADRACE_FLOW_LEASE_S", "1")  # what the successor of a killed flow waits for
    return Settings()


@pytest.fixture
def start_flow() -> Iterator[Callable[[str], subprocess.Popen[bytes]]]:
    """Starts `flows.<name>` as a process of its own; what still runs at the end must obey SIGTERM."""
    started: list[subprocess.Popen[bytes]] = []

    def start(name: str = "features") -> subprocess.Popen[bytes]:
        started.append(subprocess.Popen([sys.executable, "-m", f"flows.{name}"], cwd=ROOT, stderr=subprocess.DEVNULL))
        return started[-1]

    yield start
    alive = [flow for flow in started if flow.poll() is None]
    for flow in alive:
        flow.terminate()
    codes = [flow.wait(timeout=30) for flow in alive]
    assert codes == [0] * len(alive)


@pytest.fixture(scope="module")
def open_shop(applied: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    """One for all tests of a module: each has users of its own, and leaves the catalogue as it was."""
    with opened(applied, tmp_path_factory.mktemp("shop")) as shop:
        yield shop
