import asyncio
import threading
from collections.abc import Mapping

import orjson
import pytest
import redis

from headrace.identity import shard_of
from headrace.stores.log import LogFullError, LogUnavailableError
from serving.committer import GroupCommitter, LogWriter
from serving.disk import DiskFullError
from serving.metrics import CollectorMetrics


class MemoryLog:
    """Keeps appended payloads; waits at a gate when there is one; fails while `down`."""

    partitions = 4

    def __init__(self) -> None:
        self.appends: list[dict[int, list[str]]] = []
        self.down = self.full = False
        self.gate: threading.Event | None = None

    def check_room(self) -> None:
        if self.full:
            raise LogFullError("full")

    def append(self, payloads: Mapping[int, bytes], counts: Mapping[int, int]) -> dict[int, int]:
        if self.gate is not None:
            self.gate.wait(5)
        if self.down:
            raise LogUnavailableError("down")
        lines = {
            p: [orjson.loads(line)["event_id"] for line in payload.split(b"\n")] for p, payload in payloads.items()
        }
        assert {p: len(ids) for p, ids in lines.items()} == dict(counts)
        self.appends.append(lines)
        return dict.fromkeys(payloads, len(self.appends))


def record(event_id: str, user: str = "u") -> dict[str, str]:
    return {"event_id": event_id, "user_key": user}


def committer_of(log: MemoryLog) -> GroupCommitter:
    return GroupCommitter(LogWriter(lambda: log), CollectorMetrics())


def test_records_go_to_the_partition_of_their_user_in_the_order_given():
    log = MemoryLog()
    positions = asyncio.run(committer_of(log).commit([record("1", "a"), record("2", "c"), record("3", "a")]))
    a, c = shard_of("a", 4), shard_of("c", 4)
    assert a != c
    assert log.appends == [{a: ["1", "3"], c: ["2"]}]
    assert positions == {a: 1, c: 1}


def test_each_request_is_told_the_positions_of_its_own_partitions_alone():
    log = MemoryLog()
    log.gate = threading.Event()

    async def story() -> list[dict[int, int]]:
        committer = committer_of(log)
        first = asyncio.create_task(committer.commit([record("1")]))
        await asyncio.sleep(0)  # the first is taken up before the others arrive
        await asyncio.sleep(0)
        others = [asyncio.create_task(committer.commit([record(user, user)])) for user in ("a", "c")]
        await asyncio.sleep(0)
        log.gate.set()
        await first
        return await asyncio.gather(*others)

    a, c = shard_of("a", 4), shard_of("c", 4)
    assert asyncio.run(story()) == [{a: 2}, {c: 2}]
    assert log.appends[1] == {a: ["a"], c: ["c"]}


def test_requests_that_arrive_during_an_append_share_the_next_one():
    log = MemoryLog()
    log.gate = threading.Event()

    async def story() -> list[dict[int, int]]:
        committer = committer_of(log)
        first = asyncio.create_task(committer.commit([record("1")]))
        await asyncio.sleep(0)  # the first is taken up before the others arrive
        await asyncio.sleep(0)
        others = [asyncio.create_task(committer.commit([record(str(number))])) for number in range(2, 12)]
        await asyncio.sleep(0)
        log.gate.set()
        return await asyncio.gather(first, *others)

    positions = asyncio.run(story())
    partition = shard_of("u", 4)
    assert log.appends == [{partition: ["1"]}, {partition: [str(number) for number in range(2, 12)]}]
    assert positions == [{partition: 1}, *[{partition: 2}] * 10]


def test_every_waiter_of_a_failed_group_fails_and_the_next_append_opens_the_log_again():
    log, opened = MemoryLog(), []

    def open_log() -> MemoryLog:
        opened.append(True)
        return log

    async def story() -> list[object]:
        committer = GroupCommitter(LogWriter(open_log), CollectorMetrics())
        log.down = True
        outcomes = await asyncio.gather(*[committer.commit([record(str(n))]) for n in range(3)], return_exceptions=True)
        log.down = False
        return [*outcomes, await committer.commit([record("again")])]

    *failed, positions = asyncio.run(story())
    assert [type(each) for each in failed] == [LogUnavailableError] * 3
    assert positions == {shard_of("u", 4): 1}
    assert len(opened) == 2


def test_a_client_that_went_away_does_not_disturb_the_others_of_its_group():
    log = MemoryLog()
    log.gate = threading.Event()

    async def story() -> dict[int, int]:
        committer = committer_of(log)
        gone = asyncio.create_task(committer.commit([record("1")]))
        stays = asyncio.create_task(committer.commit([record("2")]))
        await asyncio.sleep(0)
        gone.cancel()
        await asyncio.sleep(0)
        log.gate.set()
        return await stays

    assert asyncio.run(story()) == {shard_of("u", 4): 1}


def test_a_fault_of_ours_is_heard_by_every_request_of_its_group_and_the_next_group_goes_in():
    async def story() -> list[object]:
        committer = committer_of(MemoryLog())
        unwritable = {**record("1"), "value": object()}
        outcomes = await asyncio.gather(
            committer.commit([unwritable]), committer.commit([record("2")]), return_exceptions=True
        )
        return [*outcomes, await committer.commit([record("3")])]

    *failed, positions = asyncio.run(asyncio.wait_for(story(), 5))
    assert [type(each) for each in failed] == [orjson.JSONEncodeError] * 2
    assert positions == {shard_of("u", 4): 1}


def test_without_room_on_the_disk_the_log_is_not_even_opened_and_the_next_write_looks_again():
    opened: list[MemoryLog] = []
    full = True

    def open_log() -> MemoryLog:
        opened.append(MemoryLog())
        return opened[-1]

    def check_disk() -> None:
        if full:
            raise DiskFullError("3 MB are free")

    writer = LogWriter(open_log, check_disk)
    with pytest.raises(DiskFullError):
        writer.write([record("1")])
    assert opened == []
    full = False
    assert writer.write([record("1")]) == {shard_of("u", 4): 1}


@pytest.mark.parametrize(
    ("said", "becomes"),
    [
        (redis.ResponseError("MISCONF Errors writing to the AOF file: No space left on device"), DiskFullError),
        (redis.exceptions.OutOfMemoryError("command not allowed when used memory > 'maxmemory'."), LogFullError),
        (redis.ResponseError("UNBLOCKED"), LogUnavailableError),
    ],
)
def test_a_server_that_refuses_writes_is_understood(said: redis.RedisError, becomes: type[Exception]):
    class RefusingLog(MemoryLog):
        def append(self, payloads: Mapping[int, bytes], counts: Mapping[int, int]) -> dict[int, int]:
            raise LogUnavailableError("the event log did not confirm the write") from said

    with pytest.raises(LogUnavailableError) as caught:
        LogWriter(RefusingLog).write([record("1")])
    assert type(caught.value) is becomes


def test_a_failure_is_logged_once_and_so_is_its_end(caplog: pytest.LogCaptureFixture):
    log = MemoryLog()

    async def story() -> None:
        committer = committer_of(log)
        for log.down in (True, True, False, False):
            await asyncio.gather(committer.commit([record("1")]), return_exceptions=True)

    asyncio.run(story())
    assert [entry.message for entry in caplog.records] == ["events are refused: down", "events are taken again"]


def test_a_full_log_is_said_to_be_full():
    log = MemoryLog()
    log.full = True
    with pytest.raises(LogFullError):
        LogWriter(lambda: log).write([record("1")])
