"""A full disk under the lake: it is said, nothing half written is read, and all of it goes in once when there is space again."""

import resource
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from headrace import names
from headrace.settings import Settings
from headrace.stores.lake import EventLake
from headrace.stores.log import open_log
from headrace.stores.redis_client import connect
from tests.conftest import ROOT, wait_until
from tests.integration.test_feature_flow import append, random_events

pytestmark = pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="limits of another process are Linux's")

FULL_AT_BYTES = 1_000

StartLake = Callable[[], "subprocess.Popen[bytes]"]


@pytest.fixture
def said(tmp_path: Path) -> Path:
    """What the lake flow prints."""
    return tmp_path / "lake.log"


@pytest.fixture
def start_lake(said: Path) -> Iterator[StartLake]:
    """Starts the lake flow; what still runs at the end obeys SIGTERM."""
    started: list[subprocess.Popen[bytes]] = []

    def start() -> "subprocess.Popen[bytes]":
        # Through a pipe: the limit on the size of files holds for its log as well.
        keep = subprocess.Popen(["tee", "-a", str(said)], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
        flow = subprocess.Popen([sys.executable, "-m", "flows.lake"], cwd=ROOT, stderr=keep.stdin)
        assert keep.stdin is not None
        keep.stdin.close()
        started.extend([flow, keep])
        return flow

    yield start
    for flow in started[::2]:
        if flow.poll() is None:
            flow.terminate()
    for process in started:
        process.wait(timeout=30)


def limit_files(flow: "subprocess.Popen[bytes]", size: int) -> None:
    """No file that it writes grows beyond that size, as on a disk without room."""
    resource.prlimit(flow.pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def rows(settings: Settings) -> Counter[str]:
    return Counter(EventLake(settings.lake_dir).scan([names.EVENT_ID]).collect()[names.EVENT_ID])


def once_each(events: list[dict[str, object]]) -> Counter[str]:
    return Counter(str(event["event_id"]) for event in events)


def positions(settings: Settings) -> dict[int, int]:
    return EventLake(settings.lake_dir).positions(range(settings.log_partitions))


@pytest.mark.parametrize("killed", [False, True], ids=["goes on by itself", "is killed meanwhile"])
def test_with_the_disk_full_the_lake_stays_as_it_was_and_takes_everything_in_once_there_is_space(
    stack: Settings, start_lake: StartLake, said: Path, killed: bool
) -> None:
    events = random_events(300, seed=31)
    log = open_log(connect(stack), stack)
    append(log, events[:100])
    flow = start_lake()
    wait_until(lambda: rows(stack).total() == 100, 60)
    before = positions(stack)

    limit_files(flow, FULL_AT_BYTES)
    append(log, events[100:])
    wait_until(lambda: "File too large" in said.read_text(), 60)
    assert rows(stack) == once_each(events[:100])
    assert positions(stack) == before
    assert flow.poll() is None

    append(log, events[50:150])  # retries of what is in, and of what is not
    if killed:
        flow.kill()
        flow.wait()
        start_lake()
    else:
        limit_files(flow, resource.RLIM_INFINITY)
    wait_until(lambda: positions(stack) == log.end(), 60)
    assert rows(stack) == once_each(events)


APPEND_ON_A_FULL_DISK = """
import resource, sys
from pathlib import Path
from headrace.stores.lake import EventLake
from tests.integration.test_lake import events
lake = EventLake(Path(sys.argv[1]))
lake.append(events((0, 1)), {0: 1})
_, most = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), most))
try:
    lake.append(events((0, 1), (0, 2)), {0: 2})
except Exception as error:
    print(error)
resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
assert lake.positions([0]) == {0: 1}
assert lake.append(events((0, 1), (0, 2)), {0: 2}) == 1
"""


def append_on_a_full_disk(lake_dir: Path) -> str:
    """What a lake says that had no room for its second append, and room again for the third."""
    command = [sys.executable, "-c", APPEND_ON_A_FULL_DISK, str(lake_dir), str(FULL_AT_BYTES)]
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True, timeout=120).stdout


def test_an_append_without_room_changes_nothing_and_the_same_append_goes_in_later(tmp_path: Path) -> None:
    assert "File too large" in append_on_a_full_disk(tmp_path)
    assert sorted(EventLake(tmp_path).scan([names.EVENT_ID]).collect()[names.EVENT_ID]) == ["0-1", "0-2"]


def test_an_append_without_room_names_the_lake(tmp_path: Path) -> None:
    assert str(tmp_path / names.EVENTS_TABLE) in append_on_a_full_disk(tmp_path)
