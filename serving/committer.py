"""Group commit: concurrent requests share one append to the log, so one flush of the disk serves many of them."""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

import redis

from headrace import names
from headrace.events import encode_records
from headrace.identity import shard_of
from headrace.settings import Settings
from headrace.stores.log import EventLog, LogFullError, LogUnavailableError, open_log
from headrace.stores.redis_client import StoreAddressError, connect
from serving.disk import DiskFullError, check_disk
from serving.metrics import CollectorMetrics, ItemsMetrics

logger = logging.getLogger(__name__)

Record = dict[str, Any]
Positions = dict[int, int]

MAX_GROUP_RECORDS: Final = 5_000
MAX_WAITING_RECORDS: Final = 50_000
ROOM_CHECK_S: Final = 1.0
# A disk may be busy; after that a client is told to come again.
LOG_TIMEOUT_S: Final = 5.0


class LogWriter:
    """Appends records, each to its user's partition, opening the log when first needed and again after a failure.

    `check_disk` raises DiskFullError where there is no room for more; it is asked before the log is.
    """

    def __init__(self, open_log: Callable[[], EventLog], check_disk: Callable[[], None] = lambda: None) -> None:
        self._open_log = open_log
        self._check_disk = check_disk
        self._log: EventLog | None = None
        self._room_checked = -ROOM_CHECK_S

    def write(self, records: Sequence[Record]) -> Positions:
        """The log position of each partition written to, once on disk. Raises LogUnavailableError, also when full."""
        groups: dict[str, list[Record]] = {}
        for record in records:
            groups.setdefault(record[names.USER_KEY], []).append(record)
        return self.write_encoded([(key, encode_records(group), len(group)) for key, group in groups.items()])

    def write_encoded(self, groups: Sequence[tuple[str, bytes, int]]) -> Positions:
        """The same of records that are encoded: user key, lines, and how many there are, of each group."""
        try:
            log = self._open_with_room()
            payloads: dict[int, list[bytes]] = {}
            counts: dict[int, int] = {}
            for key, lines, count in groups:
                partition = shard_of(key, log.partitions)
                payloads.setdefault(partition, []).append(lines)
                counts[partition] = counts.get(partition, 0) + count
            return log.append({partition: b"\n".join(parts) for partition, parts in payloads.items()}, counts)
        except LogFullError:
            raise
        except (LogUnavailableError, StoreAddressError, redis.RedisError) as error:
            self._log = None
            raise _as_full(error) or LogUnavailableError(str(error)) from error

    def positions_of(self, records: Sequence[Record], written: Positions) -> Positions:
        """Of the positions that a write returned, those of the partitions that these records went to."""
        assert self._log is not None, "a write has returned"
        return {partition: written[partition] for partition in {_partition_of(each, self._log) for each in records}}

    def _open_with_room(self) -> EventLog:
        """The log. Looks for room every ROOM_CHECK_S, and before each write as long as there is none."""
        due = time.monotonic() - self._room_checked >= ROOM_CHECK_S
        if due:
            self._check_disk()
        log = self._log = self._log or self._open_log()
        if due:
            log.check_room()
            self._room_checked = time.monotonic()
        return log


def _as_full(error: Exception) -> LogFullError | None:
    """What a server that refuses writes says of its disk or its memory; None where it says something else."""
    said = error.__cause__ or error
    if isinstance(said, redis.exceptions.OutOfMemoryError):
        return LogFullError(f"the event log's server is at its bound of memory (maxmemory): {said}")
    if isinstance(said, redis.ResponseError) and "MISCONF" in str(said):
        return DiskFullError(f"the event log's server cannot write to its disk: {said}")
    return None


def _partition_of(record: Record, log: EventLog) -> int:
    return shard_of(record[names.USER_KEY], log.partitions)


def log_writer(settings: Settings) -> LogWriter:
    """A writer of the stack's event log. Connects with the first use."""
    return LogWriter(
        lambda: open_log(connect(settings, timeout_s=LOG_TIMEOUT_S), settings), lambda: check_disk(settings)
    )


@dataclass(frozen=True)
class _Waiter:
    records: Sequence[Record]
    done: "asyncio.Future[Positions]"


class GroupCommitter:
    """Collects what arrives while the last append is under way, and appends it all at once. Lives on one event loop."""

    def __init__(self, writer: LogWriter, metrics: CollectorMetrics | ItemsMetrics) -> None:
        self._writer = writer
        self._metrics = metrics
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="log-append")
        self._waiting: list[_Waiter] = []
        self._waiting_records = 0
        self._worker: asyncio.Task[None] | None = None
        self._trouble = ""

    async def commit(self, records: Sequence[Record]) -> Positions:
        """Returns once all records are on disk: the log position of each partition they went to.

        Raises LogUnavailableError when they may not be, and whatever else the append raised; the same records may then
        be sent again.
        """
        if self._waiting_records + len(records) > MAX_WAITING_RECORDS:
            raise LogUnavailableError(f"{self._waiting_records} events are already waiting for the disk")
        waiter = _Waiter(records, asyncio.get_running_loop().create_future())
        self._waiting.append(waiter)
        self._waiting_records += len(records)
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._append_until_empty())
        return await waiter.done

    async def close(self) -> None:
        """Finish what was begun."""
        if self._worker is not None:
            await self._worker
        self._thread.shutdown()

    async def _append_until_empty(self) -> None:
        while self._waiting:
            group = self._take_group()
            records = [record for waiter in group for record in waiter.records]
            started = time.perf_counter()
            try:
                positions = await asyncio.get_running_loop().run_in_executor(self._thread, self._writer.write, records)
            except LogUnavailableError as error:
                self._say(str(error))
                _fail(group, error)
            except Exception as error:
                # A fault of ours: each request must hear of it, and the next group have its turn.
                logger.exception("a group of %d events could not be appended", len(records))
                _fail(group, error)
            else:
                self._metrics.append_seconds.observe(time.perf_counter() - started)
                self._metrics.group_records.observe(len(records))
                self._say("")
                self._acknowledge(group, positions)

    def _say(self, trouble: str) -> None:
        """Tell the log once what is wrong, and once that it is over."""
        if trouble and trouble != self._trouble:
            logger.warning("events are refused: %s", trouble)
        elif self._trouble and not trouble:
            logger.warning("events are taken again")
        self._trouble = trouble

    def _acknowledge(self, group: Sequence[_Waiter], positions: Positions) -> None:
        for waiter in group:
            if not waiter.done.done():  # else its client went away
                waiter.done.set_result(self._writer.positions_of(waiter.records, positions))

    def _take_group(self) -> list[_Waiter]:
        """The first waiter and as many more as fit in one group."""
        group = [self._waiting.pop(0)]
        size = len(group[0].records)
        while self._waiting and size + len(self._waiting[0].records) <= MAX_GROUP_RECORDS:
            group.append(self._waiting.pop(0))
            size += len(group[-1].records)
        self._waiting_records -= size
        return group


def _fail(group: Sequence[_Waiter], error: Exception) -> None:
    for waiter in group:
        if not waiter.done.done():
            waiter.done.set_exception(error)
