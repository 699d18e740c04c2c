"""What a flow reads next: from where its state stands, to where the log ends, at the pace that is set."""

from collections.abc import Callable, Mapping
from datetime import timedelta

import pytest

from flows.recovery import Recovery, StopFlag
from flows.source import LogReader, LogSlice, LogSource, Pace
from headrace.stores.log import LogEntry, LogUnavailableError
from tests.unit.flows.memory_log import MemoryLog, entry

AT_ONCE = Pace(poll=timedelta(0), heartbeat=timedelta(hours=1))


def reader(
    log: MemoryLog, stand: Callable[[], Mapping[int, int]], pace: Pace = AT_ONCE, until_end: bool = False
) -> tuple[LogReader, Recovery]:
    recovery = Recovery(StopFlag(), forget=lambda: None)
    source = LogSource(log, stand, recovery, lambda: 1_000, pace, until_end)  # type: ignore[arg-type]
    return source.build("read", 0, 1), recovery


def positions(slices: list[LogSlice]) -> list[int]:
    return [each.position for piece in slices for each in piece.entries]


def test_each_read_begins_where_the_state_stands_also_when_that_goes_back() -> None:
    log = MemoryLog([entry(0, 1, "a"), entry(0, 2, "b"), entry(0, 3, "c")])
    stands = iter([{0: 0}, {0: 3}, {0: 1}])
    source, _ = reader(log, lambda: next(stands))
    assert [positions(source.next_batch()) for _ in range(3)] == [[1, 2, 3], [], [2, 3]]


def test_a_slice_says_from_where_to_where_it_goes_and_up_to_when_it_is_complete() -> None:
    log = MemoryLog([entry(0, 1, "a"), entry(0, 2, "b"), entry(1, 700, "c")])
    source, _ = reader(log, lambda: {0: 1, 1: 0})
    [piece] = source.next_batch()
    assert (piece.after, piece.positions) == ({0: 1, 1: 0}, {0: 2, 1: 700})
    assert piece.complete == {0: 1_000, 1: 1_000}  # the log was asked for its end at 1,000


def test_a_partition_that_was_not_read_to_its_end_is_complete_up_to_its_last_entry() -> None:
    log = MemoryLog([entry(0, 1, "a"), entry(0, 20, "b")], partitions=1)
    source, _ = reader(log, lambda: {0: 0}, Pace(max_events=1, heartbeat=timedelta(hours=1)))
    log.read, whole = (lambda after, count, wait_s=0.0: whole(after, 1)), log.read  # type: ignore[method-assign]
    [piece] = source.next_batch()
    assert (piece.positions, piece.complete) == ({0: 1}, {0: 1})


def test_without_shards_nothing_is_read() -> None:
    log = MemoryLog([entry(0, 1, "a")])
    source, _ = reader(log, dict)
    assert source.next_batch() == []
    assert log.reads == 0
    assert source.next_awake() is not None


def test_it_ends_at_the_end_of_the_log_if_it_is_told_to() -> None:
    log, stand = MemoryLog([entry(0, 1, "a")]), {0: 0}
    source, _ = reader(log, lambda: stand, until_end=True)
    assert positions(source.next_batch()) == [1]
    stand[0] = 1
    assert source.next_batch() == []
    with pytest.raises(StopIteration):
        source.next_batch()


def test_between_two_slices_it_lingers_unless_the_last_one_was_full() -> None:
    log, stand = MemoryLog([entry(0, 1, "a", "b")], partitions=1), {0: 0}
    pace = Pace(linger=timedelta(hours=1), max_events=2, poll=timedelta(0), heartbeat=timedelta(hours=2))
    source, _ = reader(log, lambda: stand, pace)
    assert positions(source.next_batch()) == [1]
    log.entries.append(entry(0, 2, "c"))
    stand[0] = 1
    assert positions(source.next_batch()) == [2]  # at once: the one before was full
    log.entries.append(entry(0, 3, "d"))
    stand[0] = 2
    assert source.next_batch() == []
    assert source.next_awake() is not None


def test_a_log_that_does_not_answer_is_asked_again_after_a_rest_and_what_was_not_committed_is_forgotten() -> None:
    class Flaky(MemoryLog):
        def read(self, after: Mapping[int, int], max_entries: int, wait_s: float = 0.0) -> list[LogEntry]:
            raise LogUnavailableError("down")

    forgotten: list[bool] = []
    recovery = Recovery(StopFlag(), forget=lambda: forgotten.append(True))
    source = LogSource(Flaky(), lambda: {0: 0}, recovery, lambda: 1, AT_ONCE).build("read", 0, 1)  # type: ignore[arg-type]
    assert source.next_batch() == []
    assert forgotten == [True]
    assert source.next_batch() == []  # it rests
    assert forgotten == [True]
    assert source.next_awake() is not None


def test_several_workers_in_one_process_are_refused_with_what_to_do_instead() -> None:
    recovery = Recovery(StopFlag(), forget=lambda: None)
    source = LogSource(MemoryLog(), dict, recovery, lambda: 1, AT_ONCE)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"start `python -m flows.features` again"):
        source.build("read", 0, 2)
