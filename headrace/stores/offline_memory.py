"""How much of a source is held at a time: all of it where it fits, else ranges of entities, one after another."""

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np
import polars as pl
import psutil

from headrace.arrays import Ints
from headrace.stores.offline_labels import ViewKeys
from headrace.stores.offline_newest import CODE
from headrace.stores.sources import Source

_SHARE: Final = 2
_MIB: Final = 1 << 20
_LEAST: Final = 64 * _MIB
_GROUP: Final = Path("/sys/fs/cgroup")


def memory_bound(memory_mb: float | None, group: Path = _GROUP) -> int:
    """Bytes that the rows of a source may take while they are joined: as set, or half of what is free now.

    Free of the machine's memory, or of the control group's where that is less.
    """
    if memory_mb:
        return round(memory_mb * _MIB)
    free = int(psutil.virtual_memory().available)
    limit = group / "memory.max"
    if limit.exists() and (text := limit.read_text().strip()) != "max":
        free = min(free, int(text) - _used(group))
    return max(free, _LEAST) // _SHARE


def _used(group: Path) -> int:
    """Bytes that a control group holds, without the files that the kernel caches for it."""
    stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    return (
        int((group / "memory.current").read_text())
        - int(stat.get("inactive_file", 0))
        - int(stat.get("active_file", 0))
    )


def key_ranges(
    source: Source, rows: pl.LazyFrame, keys: ViewKeys, on: list[str], bytes_per_row: int, bound: int
) -> Iterator[Ints]:
    """The label rows of some entities at a time, those whose rows of the source fit into `bound` bytes together.

    `rows` are the ones that matter, their join keys in the columns `on`. Entities are numbered by their hash; one that
    does not fit is a range of its own.
    """
    if source.count() * bytes_per_row <= bound:
        yield np.arange(len(keys))
        return
    matched = rows.select(on).join(keys.frame.lazy(), left_on=on, right_on=list(keys.columns.values()))
    counts = source.collect(matched.group_by(CODE).len())
    sizes = np.zeros(keys.frame.height, dtype=np.int64)
    sizes[counts[CODE].to_numpy()] = counts["len"].to_numpy() * bytes_per_row
    ranges = (np.cumsum(sizes) // max(bound, 1))[keys.codes]
    order = np.argsort(ranges, kind="stable")
    yield from np.split(order, np.flatnonzero(np.diff(ranges[order])) + 1)
