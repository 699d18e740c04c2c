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
from serving.metrics import CollectorMetrics

logger = logging.getLogger(__name__)

Record = dict[str, Any]
Positions = dict[int, int]

MAX_GROUP_RECORDS: Final = 5_000
MAX_WAITING_RECORDS: Final = 50_000
ROOM_CHECK_S: Final = 1.0
LOG_TIMEOUT_S: Final = 2.0


class LogWriter:
    """Appends records, each to its user's partition, opening the log when first needed and again after a failure."""

    def __init__(self, open_log: Callable[[], EventLog]) -> None:
        self._open_log = open_log
        self._log: EventLog | None = None
        self._room_checked = -ROOM_CHECK_S

    def write(self, records: Sequence[Record]) -> Positions:
        """The log position of each partition written to, once on disk. Raises LogUnavailableError, also when full."""
        try:
            log = self._log = self._log or self._open_log()
            self._check_room_sometimes(log)
            groups: dict[int, list[Record]] = {}
            for record in records:
                groups.setdefault(shard_of(record[names.USER_KEY], log.partitions), []).append(record)
            payloads = {partition: encode_records(group) for partition, group in groups.items()}
            return log.append(payloads, {partition: len(group) for partition, group in groups.items()})
        except LogFullError:
            raise
        except (LogUnavailableError, StoreAddressError, redis.RedisError) as error:
            self._log = None
            raise LogUnavailableError(str(error)) from error

    def _check_room_sometimes(self, log: EventLog) -> None:
        if time.monotonic() - self._room_checked >= ROOM_CHECK_S:
            log.check_room()  # a full log is asked again by the next write
            self._room_checked = time.monotonic()


def log_writer(settings: Settings) -> LogWriter:
    """A writer of the stack's event log. Connects with the first use."""
    return LogWriter(lambda: open_log(connect(settings, timeout_s=LOG_TIMEOUT_S), settings))


@dataclass(frozen=True)
class _Waiter:
    records: Sequence[Record]
    done: "asyncio.Future[Positions]"


class GroupCommitter:
    """Collects what arrives while the last append is under way, and appends it all at once. Lives on one event loop."""

    def __init__(self, writer: LogWriter, metrics: CollectorMetrics) -> None:
        self._writer = writer
        self._metrics = metrics
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="log-append")
        self._waiting: list[_Waiter] = []
        self._waiting_records = 0
        self._worker: asyncio.Task[None] | None = None

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
                _resolve(group, error)
            except (
                Exception
            ) as error:  # a fault of ours: each request must hear of it, and the next group have its turn
                logger.exception("a group of %d events could not be appended", len(records))
                _resolve(group, error)
            else:
                self._metrics.append_seconds.observe(time.perf_counter() - started)
                self._metrics.group_records.observe(len(records))
                _resolve(group, positions)

    def _take_group(self) -> list[_Waiter]:
        """The first waiter and as many more as fit in one group."""
        group, size = [self._waiting.pop(0)], 0
        size = len(group[0].records)
        while self._waiting and size + len(self._waiting[0].records) <= MAX_GROUP_RECORDS:
            group.append(self._waiting.pop(0))
            size += len(group[-1].records)
        self._waiting_records -= size
        return group


def _resolve(group: Sequence[_Waiter], outcome: Positions | Exception) -> None:
    for waiter in group:
        if waiter.done.done():  # its client went away
            continue
        if isinstance(outcome, Exception):
            waiter.done.set_exception(outcome)
        else:
            waiter.done.set_result(outcome)
