"""Law of the spool: an event whose append has returned is there until it is acknowledged, and not after, whatever crash comes between."""

import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headrace.client.disk_spool import CURSOR, SUFFIX, DiskSpool
from headrace.client.errors import ClosedError, SpoolError, SpoolFullError, SpoolHeldError
from headrace.client.spool_lines import line_of

BOUND = 1_000  # bytes; a segment is then full at 62


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[DiskSpool]:
    spool = DiskSpool(tmp_path, BOUND)
    yield spool
    spool.close()


def everything(spool: DiskSpool) -> list[bytes]:
    """All that is left, in order, acknowledged one batch at a time."""
    found: list[bytes] = []
    while (taken := spool.take(3, 100)).events:
        found += taken.events
        spool.ack(taken)
    return found


def segments(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"*{SUFFIX}"))


def test_events_come_out_in_order_and_stay_until_they_are_acknowledged(spool: DiskSpool):
    for event in (b"1", b"2", b"3"):
        spool.append(event)
    assert spool.take(2, 100).events == spool.take(2, 100).events == (b"1", b"2")
    spool.ack(spool.take(2, 100))
    assert spool.take(2, 100).events == (b"3",)
    assert (spool.appended, spool.acknowledged) == (3, 2)


def test_a_batch_is_bounded_in_bytes_but_holds_one_event_however_large(spool: DiskSpool):
    for event in (b"x" * 50, b"y" * 5, b"z" * 5):
        spool.append(event)
    assert spool.take(9, 20).events == (b"x" * 50,)
    spool.ack(spool.take(9, 20))
    assert spool.take(9, 20).events == (b"y" * 5,)


def test_at_the_bound_the_event_is_refused_and_none_is_dropped(spool: DiskSpool, tmp_path: Path):
    kept = [b"%020d" % number for number in range(BOUND // 30)]
    for event in kept:
        spool.append(event)
    with pytest.raises(SpoolFullError, match=f"holds 990 bytes .* bound is {BOUND}"):
        spool.append(b"%020d" % 0)
    assert sum(path.stat().st_size for path in segments(tmp_path)) <= BOUND
    assert everything(spool) == kept
    spool.append(b"there is room again")
    assert everything(spool) == [b"there is room again"]


def test_the_bound_counts_what_waits_alone_also_where_one_segment_holds_all_of_it(spool: DiskSpool):
    for _ in range(10):
        spool.append(b"x" * 900)
        assert everything(spool) == [b"x" * 900]


def test_acknowledged_segments_are_deleted(spool: DiskSpool, tmp_path: Path):
    for number in range(20):
        spool.append(b"%020d" % number)
    assert len(segments(tmp_path)) == 7  # three events of 30 bytes each
    everything(spool)
    assert len(segments(tmp_path)) == 1


def test_one_client_at_a_time(spool: DiskSpool, tmp_path: Path):
    with pytest.raises(SpoolHeldError, match=f"process {os.getpid()}"):
        DiskSpool(tmp_path, BOUND)
    spool.close()
    DiskSpool(tmp_path, BOUND).close()


def test_what_cannot_be_a_spool_is_refused_by_name(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SpoolError, match="file cannot be a spool"):
        DiskSpool(tmp_path / "file", BOUND)


def test_closed_it_takes_no_more(spool: DiskSpool):
    spool.close()
    with pytest.raises(ClosedError):
        spool.append(b"1")


def test_a_lost_cursor_means_once_more_never_less(tmp_path: Path):
    spool = DiskSpool(tmp_path, 100_000)
    for event in (b"1", b"2"):
        spool.append(event)
    spool.ack(spool.take(1, 100))
    spool.close()
    (tmp_path / CURSOR).write_bytes(b"00000000 9 9\n")
    spool = DiskSpool(tmp_path, 100_000)
    assert everything(spool) == [b"1", b"2"]
    spool.close()


def test_a_damaged_line_in_the_middle_is_counted_and_passed_over(tmp_path: Path):
    spool = DiskSpool(tmp_path, 100_000)
    for event in (b"1", b"2", b"3"):
        spool.append(event)
    spool.close()
    [path] = segments(tmp_path)
    path.write_bytes(path.read_bytes().replace(b" 2\n", b" 5\n"))
    spool = DiskSpool(tmp_path, 100_000)
    assert (spool.damaged, spool.appended) == (1, 2)
    assert everything(spool) == [b"1", b"3"]
    spool.close()


def test_a_line_that_is_damaged_after_it_was_written_is_counted_and_waited_for_no_more(tmp_path: Path):
    spool = DiskSpool(tmp_path, 100_000)
    for event in (b"1", b"2"):
        spool.append(event)
    [path] = segments(tmp_path)
    with path.open("r+b") as file:  # in place: the spool has it open
        damaged = path.read_bytes().replace(b" 2\n", b" 5\n")
        file.write(damaged)
    assert everything(spool) == [b"1"]
    assert (spool.damaged, spool.appended, spool.acknowledged) == (1, 2, 2)
    spool.append(b"3")
    assert everything(spool) == [b"3"]
    spool.close()


def test_threads_that_append_at_once_lose_nothing_and_share_flushes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    flushes = 0
    flush = os.fsync

    def counted(descriptor: int) -> None:
        nonlocal flushes
        flushes += 1
        flush(descriptor)

    monkeypatch.setattr(os, "fsync", counted)
    spool = DiskSpool(tmp_path, 1_000_000)
    together = threading.Barrier(8)

    def append(thread: int) -> None:
        for number in range(20):
            together.wait()
            spool.append(b"%d-%d" % (thread, number))

    threads = [threading.Thread(target=append, args=(thread,)) for thread in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    appended_with = flushes
    assert sorted(everything(spool)) == sorted(
        b"%d-%d" % (thread, number) for thread in range(8) for number in range(20)
    )
    assert appended_with < 160
    spool.close()


def test_after_a_failed_flush_nothing_more_is_taken_and_what_was_taken_goes_out(
    spool: DiskSpool, monkeypatch: pytest.MonkeyPatch
):
    def fail(_: int) -> None:
        raise OSError("I/O error")

    spool.append(b"1")
    with monkeypatch.context() as broken:
        broken.setattr(os, "fsync", fail)
        with pytest.raises(SpoolError, match="could not be written"):
            spool.append(b"2")
    with pytest.raises(SpoolError, match="takes no more since its disk failed"):
        spool.append(b"3")
    assert everything(spool) == [b"1"]


def test_without_room_for_the_cursor_acknowledged_files_are_deleted_all_the_same(
    spool: DiskSpool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def fail(_source: Path, _target: Path) -> None:
        raise OSError("No space left on device")

    for number in range(20):
        spool.append(b"%020d" % number)
    with monkeypatch.context() as full:
        full.setattr(os, "replace", fail)
        spool.ack(spool.take(10, 1_000))
    assert len(segments(tmp_path)) == 6
    assert everything(spool)[0] == b"%020d" % 3


@pytest.mark.parametrize("left", range(31))
def test_not_flushed_and_cut_short_by_a_loss_of_power_what_is_appended_later_is_not_lost(tmp_path: Path, left: int):
    """Lines of 10, 11 and 10 bytes, the first acknowledged: the cursor may stand behind the end of what is left."""
    spool = DiskSpool(tmp_path, 100_000, durable=False)
    for event in (b"", b"2", b""):
        spool.append(event)
    spool.ack(spool.take(1, 100))
    spool.close()
    os.truncate(segments(tmp_path)[0], left)
    spool = DiskSpool(tmp_path, 100_000, durable=False)
    spool.append(b"later")
    assert everything(spool) == [b"2"] * (left >= 21) + [b"later"]
    spool.close()


def test_while_threads_append_across_segments_and_one_acknowledges_each_event_comes_out_once(tmp_path: Path):
    """Segments of one to three events, at the bound all the time: they begin, become readable and are deleted under way."""
    spool = DiskSpool(tmp_path, 600)
    expected = {b"%d-%d" % (thread, number) for thread in range(8) for number in range(15)}
    found: list[bytes] = []
    pause = threading.Event()
    failed: list[BaseException] = []

    def append(thread: int) -> None:
        try:
            for number in range(15):
                while True:
                    try:
                        spool.append(b"%d-%d" % (thread, number))
                        break
                    except SpoolFullError:
                        pause.wait(0.001)
        except BaseException as error:
            failed.append(error)
            raise

    threads = [threading.Thread(target=append, args=(thread,)) for thread in range(8)]
    for thread in threads:
        thread.start()
    while not failed and (len(found) < len(expected) or any(thread.is_alive() for thread in threads)):
        before = spool.appended
        found += everything(spool)
        assert spool.acknowledged >= before  # what could be taken was
        assert len(found) == spool.acknowledged
    for thread in threads:
        thread.join()
    assert (failed, sorted(found)) == ([], sorted(expected))
    spool.close()


def test_a_full_disk_refuses_the_event_and_leaves_the_spool_whole(tmp_path: Path):
    """A limit on the size of files stands in for the disk: a write is cut in the middle of a line."""
    code = """
import resource, signal, sys
from pathlib import Path
from headrace.client.disk_spool import DiskSpool
from headrace.client.errors import SpoolError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
spool = DiskSpool(Path(sys.argv[1]), 100_000)
spool.append(b"first")
resource.setrlimit(resource.RLIMIT_FSIZE, (40, resource.RLIM_INFINITY))
try:
    spool.append(b"x" * 50)
except SpoolError as error:
    print(error)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
spool.append(b"last")
"""
    done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=True)
    assert "make room, then send it again" in done.stdout
    spool = DiskSpool(tmp_path, 100_000)
    assert (everything(spool), spool.damaged) == ([b"first", b"last"], 0)
    spool.close()


def test_a_forked_child_does_not_keep_the_directory(tmp_path: Path):
    code = """
import os, sys, time
from pathlib import Path
from headrace.client.disk_spool import DiskSpool
from headrace.client.errors import ClosedError
spool = DiskSpool(Path(sys.argv[1]), 100_000)
ready, forked = os.pipe()
child = os.fork()
if child == 0:
    try:
        spool.append(b"1")
    except ClosedError as error:
        os.write(forked, str(error).encode())
    os.read(0, 1)  # lives on until the parent's parent lets it
    os._exit(0)
print(os.read(ready, 1_000).decode(), flush=True)
"""
    process = subprocess.Popen([sys.executable, "-c", code, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    assert b"before a fork: make one in each process" in process.stdout.readline()
    process.wait(30)
    DiskSpool(tmp_path, 100_000).close()
    process.stdin.close()
    process.stdout.close()


Step = tuple[str, int]
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("append"), st.integers(1, 90)),
        st.tuples(st.just("acknowledge"), st.integers(1, 5)),
        st.tuples(st.just("crash"), st.integers(0, 60)),
        st.tuples(st.just("crash in the cursor"), st.integers(0, 20)),
    ),
    max_size=40,
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(STEPS)
def test_what_was_flushed_is_delivered_until_acknowledged_and_never_after(steps: list[Step]):
    """`crash`: of the line of an append that has not returned, any number of bytes have reached the disk."""
    with tempfile.TemporaryDirectory() as directory:
        folder = Path(directory)
        spool = DiskSpool(folder, BOUND)
        waiting: list[bytes] = []
        torn = 0
        for number, (step, size) in enumerate(steps):
            event = b"%d:" % number + b"x" * size
            match step:
                case "append":
                    try:
                        spool.append(event)
                        waiting.append(event)
                    except SpoolFullError:
                        assert sum(path.stat().st_size for path in segments(folder)) + len(line_of(event)) > BOUND
                case "acknowledge":
                    taken = spool.take(size, 200)
                    assert list(taken.events) == waiting[: len(taken.events)]
                    assert bool(taken.events) == bool(waiting)
                    spool.ack(taken)
                    waiting = waiting[len(taken.events) :]
                case "crash":
                    spool.close()  # writes nothing: what is on disk is as it was
                    if files := segments(folder):
                        line = line_of(event)
                        with files[-1].open("ab") as file:
                            file.write(line[:size])
                        torn = int(0 < size < len(line))
                        waiting += [event] if size >= len(line) else []
                    else:
                        torn = 0
                    spool = DiskSpool(folder, BOUND)
                    assert spool.appended == len(waiting)
                    assert spool.damaged >= torn
                case _:
                    spool.close()
                    (folder / CURSOR).with_suffix(".new").write_bytes(b"0" * size)
                    spool = DiskSpool(folder, BOUND)
        spool.close()
        spool = DiskSpool(folder, BOUND)
        assert everything(spool) == waiting
        spool.close()
