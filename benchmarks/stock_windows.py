"""The stock way to a sliding count in Bytewax, by its documented operators: `python -m benchmarks.stock_windows LOG OUT END`

LOG holds entries of JSON lines, each preceded by its length. Every event goes through `key_on` and `fold_window` with an `EventClock` and
a `SlidingWindower` (10 minutes, every minute), which counts by type for each user. OUT gets the counts, what they took, and the memory.
What the flow of the product does besides is left out: deduplication, dead letters, items, lists, sessions, state on disk.
"""

import argparse
import json
import struct
import time
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import bytewax.operators as op
import bytewax.operators.windowing as win
import orjson
from bytewax.dataflow import Dataflow
from bytewax.inputs import DynamicSource, StatelessSourcePartition
from bytewax.operators.windowing import EventClock, SlidingWindower
from bytewax.outputs import DynamicSink, StatelessSinkPartition
from bytewax.run import cli_main

from benchmarks.children import peak_mb
from headrace.clock import from_micros

EPOCH: Final = datetime(2020, 1, 1, tzinfo=UTC)
LENGTH: Final = timedelta(minutes=10)
OFFSET: Final = timedelta(minutes=1)
# Events of the benchmark are at most a minute late; the rest is for the clock of `EventClock`, which goes on while events wait for it.
LATE: Final = timedelta(minutes=10)


def write_entries(path: Path, payloads: Iterator[bytes]) -> None:
    with path.open("wb") as file:
        for payload in payloads:
            file.write(struct.pack("<I", len(payload)) + payload)


def read_entries(path: Path) -> Iterator[bytes]:
    data, at = path.read_bytes(), 0
    while at < len(data):
        (size,) = struct.unpack_from("<I", data, at)
        yield data[at + 4 : at + 4 + size]
        at += 4 + size


class _Entries(StatelessSourcePartition[bytes]):  # type: ignore[misc]
    def __init__(self, path: Path) -> None:
        self._entries = read_entries(path)

    def next_batch(self) -> list[bytes]:
        return [next(self._entries)]


class EntrySource(DynamicSource[bytes]):  # type: ignore[misc]
    def __init__(self, path: Path) -> None:
        self._path = path

    def build(self, step_id: str, worker_index: int, worker_count: int) -> _Entries:
        return _Entries(self._path)


class _Collect(StatelessSinkPartition[Any]):  # type: ignore[misc]
    def __init__(self, into: dict[tuple[str, int], dict[str, int]]) -> None:
        self._into = into

    def write_batch(self, items: list[Any]) -> None:
        for user, (window, counts) in items:
            self._into[user, window] = counts


class Collect(DynamicSink[Any]):  # type: ignore[misc]
    """Keeps the windows' counts in memory: nothing that would slow the baseline."""

    def __init__(self, into: dict[tuple[str, int], dict[str, int]]) -> None:
        self._into = into

    def build(self, step_id: str, worker_index: int, worker_count: int) -> _Collect:
        return _Collect(self._into)


def get_flow(path: Path, into: dict[tuple[str, int], dict[str, int]]) -> Dataflow:
    flow = Dataflow("stock_windows")
    entries = op.input("read", flow, EntrySource(path))  # bytes
    events = op.flat_map("decode", entries, lambda payload: map(orjson.loads, payload.split(b"\n")))  # dict
    keyed = op.key_on("by_user", events, lambda event: str(event["user_key"]))  # (user, dict)
    clock = EventClock(lambda event: from_micros(event["timestamp"]), LATE)
    windower = SlidingWindower(LENGTH, OFFSET, EPOCH)
    counted = win.fold_window("count", keyed, clock, windower, Counter, _count, _merge)  # (user, (window, counts))
    op.output("collect", counted.down, Collect(into))
    return flow


def _count(counts: "Counter[str]", event: dict[str, Any]) -> "Counter[str]":
    counts[event["type"]] += 1
    return counts


def _merge(one: "Counter[str]", other: "Counter[str]") -> "Counter[str]":
    return one + other


def window_of(end: datetime) -> int:
    """The number of the window that ends at a whole minute."""
    return (end - LENGTH - EPOCH) // OFFSET


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("log", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("end_us", type=int, help="counts of the windows that end here are written")
    arguments = parser.parse_args()
    found: dict[tuple[str, int], dict[str, int]] = {}
    started = time.perf_counter()
    cli_main(get_flow(arguments.log, found))
    seconds = time.perf_counter() - started
    wanted = window_of(from_micros(arguments.end_us))
    counts = {user: dict(each) for (user, window), each in found.items() if window == wanted}
    arguments.out.write_text(json.dumps({"seconds": seconds, "peak_mb": peak_mb(), "counts": counts}))


if __name__ == "__main__":
    main()
