import math
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import IO

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Histogram

from serving import cells as c
from serving.cells import Cells
from tests.conftest import ROOT


def registry_of(cells: Cells) -> CollectorRegistry:
    registry = CollectorRegistry()
    registry.register(cells)
    return registry


COUNTING = """
import sys
from pathlib import Path
from serving.cells import Cells
cells = Cells("app", Path(sys.argv[1]))
done, reasons = cells.counter("done", ""), cells.counters("by_reason", "", "reason")
waiting, seconds = cells.gauge("waiting", "", sum), cells.histogram("seconds", "", (1.0, 2.0))
for line in sys.stdin:
    done.inc(int(line))
    reasons["deadline"].inc()
    waiting.set(int(line))
    seconds.observe(float(line))
    print("counted", flush=True)
"""


class Counting:
    """A process of its own that counts what it is told."""

    def __init__(self, folder: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", COUNTING, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)},
        )  # fmt: skip

    def count(self, number: int) -> None:
        stdin, stdout = self.process.stdin, self.process.stdout
        assert isinstance(stdin, IO) or stdin is not None
        assert stdout is not None
        stdin.write(f"{number}\n")
        stdin.flush()
        assert stdout.readline() == "counted\n"

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.communicate()


def seen_in(folder: Path) -> CollectorRegistry:
    """What another process of the application shows, which counts nothing itself."""
    cells = Cells("app", folder)
    cells.counter("done", "")
    cells.counters("by_reason", "", "reason")
    cells.gauge("waiting", "", sum)
    cells.histogram("seconds", "", (1.0, 2.0))
    return registry_of(cells)


def test_a_scrape_sums_two_processes_and_a_killed_one_keeps_its_counts_and_loses_its_gauges(tmp_path: Path):
    first, second = Counting(tmp_path), Counting(tmp_path)
    try:
        first.count(1)
        second.count(2)
        second.count(3)
        seen = seen_in(tmp_path)
        assert seen.get_sample_value("done_total") == 6.0
        assert seen.get_sample_value("by_reason_total", {"reason": "deadline"}) == 3.0
        assert seen.get_sample_value("waiting") == 4.0
        assert seen.get_sample_value("seconds_bucket", {"le": "2.0"}) == 2.0
        assert seen.get_sample_value("seconds_sum") == 6.0

        second.kill()
        assert seen.get_sample_value("done_total") == 6.0
        assert seen.get_sample_value("seconds_count") == 3.0
        assert seen.get_sample_value("waiting") == 1.0

        third = Counting(tmp_path)
        try:
            third.count(10)
            assert seen.get_sample_value("done_total") == 16.0
            assert seen.get_sample_value("waiting") == 11.0
        finally:
            third.kill()
        assert len(list(tmp_path.glob("*.cells"))) == 3  # the third went on in the file of the second
    finally:
        first.kill()
        second.kill()


def test_two_applications_in_one_folder_do_not_mix(tmp_path: Path):
    for application in ("one", "other"):
        cells = Cells(application, tmp_path)
        cells.counter("done", "").inc()
        assert registry_of(cells).get_sample_value("done_total") == 1.0


def test_a_gauge_is_not_shown_before_it_is_set_nor_after_it_is_removed(tmp_path: Path):
    cells = Cells("app", tmp_path)
    versions, age = cells.gauges("version", "", "version"), cells.gauge("age", "")
    registry = registry_of(cells)
    assert registry.get_sample_value("age") is None
    age.set(0.0)
    versions["3"].set(1)
    assert registry.get_sample_value("age") == 0.0
    assert registry.get_sample_value("version", {"version": "3"}) == 1.0
    versions.remove("3")
    assert registry.get_sample_value("version", {"version": "3"}) is None


def test_versions_that_come_and_go_use_no_more_room(tmp_path: Path):
    cells = Cells("app", tmp_path)
    versions = cells.gauges("version", "", "version")
    for number in range(2 * c.RECORDS):
        versions[str(number)].set(1)
        versions.remove(str(number))
    versions["last"].set(1)
    assert registry_of(cells).get_sample_value("version", {"version": "last"}) == 1.0


def test_where_no_file_can_be_made_the_process_counts_for_itself_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    (tmp_path / "folder").write_text("a file where the folder should be")
    cells = Cells("app", tmp_path / "folder")
    cells.counter("done", "").inc()
    assert registry_of(cells).get_sample_value("done_total") == 1.0
    assert "kept in this process alone" in caplog.text


def test_a_series_that_finds_no_room_is_said_and_counts_nowhere(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    cells = Cells("app", tmp_path)
    family = cells.counters("done", "", "reason")
    family["x" * c.KEY_BYTES].inc()
    assert "no room for the metric done" in caplog.text
    for number in range(c.RECORDS + 3):
        family[str(number)].inc()
    shown = [sample for metric in cells.collect() for sample in metric.samples]
    assert len(shown) == c.RECORDS


def test_a_file_that_is_just_being_made_and_a_half_written_record_are_passed_over(tmp_path: Path):
    cells = Cells("app", tmp_path)
    cells.counter("done", "").inc()
    (tmp_path / "app-8.cells").write_bytes(b"")
    half = bytearray(c.TABLE_BYTES)
    half[:5] = b'["don'
    (tmp_path / "app-9.cells").write_bytes(half)
    assert registry_of(cells).get_sample_value("done_total") == 1.0


def test_threads_lose_no_increment(tmp_path: Path):
    cells = Cells("app", tmp_path)
    done = cells.counters("done", "", "reason")

    def count() -> None:
        for _ in range(20_000):
            done["same"].inc()

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert done["same"].value == 80_000


@given(
    st.lists(st.tuples(st.integers(0, 2), st.floats(0, 10, allow_nan=False)), max_size=40),
    st.lists(st.floats(0.1, 9), min_size=1, max_size=10, unique=True).map(sorted),
)
def test_histograms_of_several_processes_read_as_one_of_the_official_client(
    tmp_path_factory: pytest.TempPathFactory, observed: list[tuple[int, float]], bounds: list[float]
):
    folder = tmp_path_factory.mktemp("cells")
    processes = [Cells("app", folder) for _ in range(3)]
    ours = [cells.histogram("seconds", "", tuple(bounds)) for cells in processes]
    registry = CollectorRegistry()
    theirs = Histogram("seconds", "", buckets=bounds, registry=registry)
    for who, value in observed:
        ours[who].observe(value)
        theirs.observe(value)
    shown = registry_of(processes[0])
    for bound in (*map(str, bounds), "+Inf"):
        labels = {"le": bound}
        assert shown.get_sample_value("seconds_bucket", labels) == registry.get_sample_value("seconds_bucket", labels)
    assert shown.get_sample_value("seconds_count") == registry.get_sample_value("seconds_count")
    total = registry.get_sample_value("seconds_sum")
    assert total is not None
    assert math.isclose(shown.get_sample_value("seconds_sum") or 0.0, total, abs_tol=1e-9)
