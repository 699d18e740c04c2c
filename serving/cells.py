"""Counters, gauges and histograms that all processes of one application count into, each in a file of its own.

A process maps its file into memory and counts there, so what it counted outlives it, to the last increment. It holds a
lock on the file, which the system drops with the process: a file that can be locked belongs to one that is gone. Its
counters stay in the sum, its gauges do not, and the next process that starts goes on counting in it
(docs/adr/0009-metrics-of-several-replicas.md).
"""

import fcntl
import itertools
import logging
import math
import mmap
import struct
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import IO, Final, TypeVar

import orjson
from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

logger = logging.getLogger(__name__)

# A file is a table of records: a key (name and label values), then the numbers of that counter, gauge or histogram.
RECORDS: Final = 1_024
KEY_BYTES: Final = 128
NUMBERS: Final = 24
NUMBER_BYTES: Final = 8
RECORD_BYTES: Final = KEY_BYTES + NUMBERS * NUMBER_BYTES
TABLE_BYTES: Final = RECORDS * RECORD_BYTES
COUNTER, GAUGE, HISTOGRAM = "counter", "gauge", "histogram"

Key = tuple[str, ...]
Numbers = Sequence[float]


@dataclass(frozen=True)
class Declaration:
    """`across` makes one number of the gauges of several processes; `bounds` are a histogram's, without infinity."""

    kind: str
    name: str
    text: str
    labels: tuple[str, ...] = ()
    bounds: tuple[float, ...] = ()
    across: Callable[[Iterable[float]], float] = max


class Cell:
    """The numbers of one counter, gauge or histogram with its label values.

    `inc` and `observe` take the lock of their process's table; `add`, many times within one `with cells.lock`, costs a
    fraction of that.
    """

    __slots__ = ("_bounds", "_lock", "_numbers", "_start", "_sum")

    def __init__(self, numbers: "memoryview[float]", start: int, bounds: tuple[float, ...], lock: Lock) -> None:
        self._numbers = numbers
        self._start = start
        self._bounds = bounds
        self._sum = start + len(bounds) + 1
        self._lock = lock


class Counter(Cell):
    __slots__ = ()

    def add(self, amount: float = 1.0) -> None:
        self._numbers[self._start] += amount

    def inc(self, amount: float = 1.0) -> None:
        with self._lock:
            self._numbers[self._start] += amount

    @property
    def value(self) -> float:
        """What this process, and those before it in its file, have counted."""
        return self._numbers[self._start]


class Gauge(Cell):
    """Not shown until it is set."""

    __slots__ = ()

    def set(self, value: float) -> None:
        self._numbers[self._start] = value


class Histogram(Cell):
    __slots__ = ()

    def add(self, value: float) -> None:
        self._numbers[self._start + bisect_left(self._bounds, value)] += 1.0
        self._numbers[self._sum] += value

    def observe(self, value: float) -> None:
        with self._lock:
            self.add(value)


C = TypeVar("C", Counter, Gauge, Histogram)
Values = str | tuple[str, ...]


class Family(dict[Values, C]):
    """One metric with labels, as a dictionary of its series by label value (a tuple where it has several labels)."""

    def __init__(self, make: Callable[[Values], C], drop: Callable[[Values], None]) -> None:
        super().__init__()
        self._make: Callable[[Values], C] = make
        self._drop: Callable[[Values], None] = drop

    def __missing__(self, values: Values) -> C:
        return self.setdefault(values, self._make(values))

    def labels(self, *values: str) -> C:
        return self[values if len(values) > 1 else values[0]]

    def remove(self, *values: str) -> None:
        """No longer shown. Only for gauges: a counter that vanishes is one that went backwards."""
        key = values if len(values) > 1 else values[0]
        if self.pop(key, None) is not None:
            self._drop(key)


class Cells(Collector):
    """What one process counts, and what all processes of its application have counted.

    Without a folder, or where no file can be made in it, this process counts for itself alone.
    """

    def __init__(self, application: str = "", folder: Path | None = None) -> None:
        self._application = application
        self._folder = folder
        self._table, self._is_shared = _open_table(application, folder)
        self._bytes = memoryview(self._table)
        self._numbers = self._bytes.cast("d")
        self.lock = Lock()
        self._making = Lock()
        self._declared: dict[str, Declaration] = {}
        self._records = {key: index for index, key, _ in _records_of(self._table)}
        used = set(self._records.values())
        self._free = [index for index in reversed(range(RECORDS)) if index not in used]

    def counter(self, name: str, text: str) -> Counter:
        """`name` without `_total`, which the text format adds."""
        return self._cell(Counter, self._declare(Declaration(COUNTER, name, text)), (name,))

    def counters(self, name: str, text: str, *labels: str) -> Family[Counter]:
        return self._family(Counter, Declaration(COUNTER, name, text, labels))

    def gauge(self, name: str, text: str, across: Callable[[Iterable[float]], float] = max) -> Gauge:
        return self._cell(Gauge, self._declare(Declaration(GAUGE, name, text, across=across)), (name,))

    def gauges(
        self, name: str, text: str, *labels: str, across: Callable[[Iterable[float]], float] = max
    ) -> Family[Gauge]:
        return self._family(Gauge, Declaration(GAUGE, name, text, labels, across=across))

    def histogram(self, name: str, text: str, bounds: tuple[float, ...]) -> Histogram:
        return self._cell(Histogram, self._declare(Declaration(HISTOGRAM, name, text, (), bounds)), (name,))

    def histograms(self, name: str, text: str, *labels: str, bounds: tuple[float, ...]) -> Family[Histogram]:
        return self._family(Histogram, Declaration(HISTOGRAM, name, text, labels, bounds))

    def collect(self) -> Iterable[Metric]:
        """All processes' numbers, as Prometheus' client knows them. Reads the files: for a scrape, not for a request."""
        counted: dict[Key, list[Numbers]] = {}
        live: dict[Key, list[float]] = {}
        for table, is_live in self._tables():
            for _, key, numbers in _records_of(table):
                counted.setdefault(key, []).append(numbers)
                if is_live and not math.isnan(numbers[0]):
                    live.setdefault(key, []).append(numbers[0])
        for declared in self._declared.values():
            series = (live if declared.kind == GAUGE else counted).keys()
            keys = [key for key in series if key[0] == declared.name and len(key) == 1 + len(declared.labels)]
            yield _as_metric(declared, sorted(keys), counted, live)

    def _tables(self) -> Iterator[tuple[bytes, bool]]:
        """Each process's table, and whether the process is alive."""
        if not self._is_shared:
            yield bytes(self._bytes), True
        if self._folder is not None:
            for path in sorted(self._folder.glob(f"{self._application}-*.cells")):
                with path.open("rb") as file:
                    is_live = not _can_lock(file, fcntl.LOCK_SH)
                    table = file.read()
                if len(table) == TABLE_BYTES:  # else its process is just making it
                    yield table, is_live

    def _declare(self, declared: Declaration) -> Declaration:
        assert declared.name not in self._declared, f"{declared.name} is declared twice"
        assert len(declared.bounds) + 2 <= NUMBERS, f"{declared.name} has too many buckets"
        self._declared[declared.name] = declared
        if declared.kind == GAUGE:  # what the process before this one in its file had to say of itself
            for key in [key for key in self._records if key[0] == declared.name]:
                self._forget(key)
        return declared

    def _family(self, kind: type[C], declared: Declaration) -> Family[C]:
        self._declare(declared)

        def key_of(values: Values) -> Key:
            key = (declared.name, values) if isinstance(values, str) else (declared.name, *values)
            assert len(key) == 1 + len(declared.labels), f"{declared.name} has the labels {declared.labels}"
            return key

        return Family(
            lambda values: self._cell(kind, declared, key_of(values)), lambda values: self._forget(key_of(values))
        )

    def _cell(self, kind: type[C], declared: Declaration, key: Key) -> C:
        with self._making:
            index = self._records.get(key)
            if index is None:
                index = self._add(key, math.nan if declared.kind == GAUGE else 0.0)
        if index is None:
            logger.error("no room for the metric %s: %d series are kept, or its labels are long", key[0], RECORDS)
            return kind(memoryview(bytearray(RECORD_BYTES)).cast("d"), 0, declared.bounds, self.lock)
        return kind(self._numbers, (index * RECORD_BYTES + KEY_BYTES) // NUMBER_BYTES, declared.bounds, self.lock)

    def _add(self, key: Key, first: float) -> int | None:
        """A record for `key`: its numbers are in place before its name is, since others read at any moment."""
        name = orjson.dumps(key)
        if not self._free or len(name) > KEY_BYTES:
            return None
        index = self._records[key] = self._free.pop()
        start = index * RECORD_BYTES
        self._bytes[start + KEY_BYTES : start + RECORD_BYTES] = struct.pack(
            f"{NUMBERS}d", first, *[0.0] * (NUMBERS - 1)
        )
        self._bytes[start + 1 : start + len(name)] = name[1:]
        self._bytes[start : start + 1] = name[:1]
        return index

    def _forget(self, key: Key) -> None:
        with self._making:
            index = self._records.pop(key, None)
            if index is not None:
                start = index * RECORD_BYTES
                self._bytes[start : start + KEY_BYTES] = bytes(KEY_BYTES)
                self._free.append(index)


def _open_table(application: str, folder: Path | None) -> tuple[bytearray | mmap.mmap, bool]:
    """The first file of this application that no living process holds, mapped; and whether it is a file."""
    if folder is None:
        return bytearray(TABLE_BYTES), False
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for number in itertools.count():
            with (folder / f"{application}-{number}.cells").open("a+b") as file:
                if _can_lock(file, fcntl.LOCK_EX):
                    if file.seek(0, 2) != TABLE_BYTES:
                        file.truncate(0)
                        file.write(bytes(TABLE_BYTES))  # written, so that a disk that fills up later cannot harm us
                        file.flush()
                    # The mapping keeps the file open, and so the lock, for as long as it lives.
                    return mmap.mmap(file.fileno(), TABLE_BYTES), True
    except OSError as error:
        logger.warning("metrics are kept in this process alone, and end with it: %s", error)
    return bytearray(TABLE_BYTES), False


def _can_lock(file: IO[bytes], how: int) -> bool:
    try:
        fcntl.flock(file, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _records_of(table: bytes | bytearray | mmap.mmap) -> Iterator[tuple[int, Key, Numbers]]:
    """Index, name with label values, and numbers of each record in use. Passes over one that is just being written."""
    for index in range(RECORDS):
        start = index * RECORD_BYTES
        if table[start] != 0:
            name = table[start : start + KEY_BYTES].rstrip(b"\0")
            try:
                key = tuple(orjson.loads(name))
            except orjson.JSONDecodeError:
                continue
            yield index, key, struct.unpack_from(f"{NUMBERS}d", table, start + KEY_BYTES)


def _as_metric(
    declared: Declaration, keys: Iterable[Key], counted: dict[Key, list[Numbers]], live: dict[Key, list[float]]
) -> Metric:
    name, text, labels = declared.name, declared.text, declared.labels
    if declared.kind == GAUGE:
        gauge = GaugeMetricFamily(name, text, labels=labels)
        for key in keys:
            gauge.add_metric(key[1:], declared.across(live[key]))
        return gauge
    if declared.kind == COUNTER:
        counter = CounterMetricFamily(name, text, labels=labels)
        for key in keys:
            counter.add_metric(key[1:], sum(numbers[0] for numbers in counted[key]))
        return counter
    histogram = HistogramMetricFamily(name, text, labels=labels)
    for key in keys:
        columns = zip(*counted[key], strict=True)
        *within, total = (sum(column) for column in itertools.islice(columns, len(declared.bounds) + 2))
        ends = [*(str(float(bound)) for bound in declared.bounds), "+Inf"]
        histogram.add_metric(key[1:], list(zip(ends, itertools.accumulate(within), strict=True)), total)
    return histogram
