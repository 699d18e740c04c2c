"""One side of a benchmark of training sets: a call timed in a process of its own, its peak of memory, and its answer kept."""

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.children import peak_mb

COLUMNS: Final = ("case", "label rows", "rows/s", "s", "CPU s", "rows/s again", "peak MB", "MB before", "answer MB")
LABEL: Final = "label"
"""Numbers the label rows, for the comparison."""


def report(answer: Callable[[], pa.Table], keep: Path | None, columns: Sequence[str], again: bool = False) -> None:
    """Time a call, keep its label and `columns` in a file, and print the figures; with `again`, those of a second call too.

    The first is the one that counts: what a process loads and opens once is inside it.
    """
    before = peak_mb()
    side, table = _timed(answer)
    side |= {"peak_mb": peak_mb(), "before_mb": before, "answer_mb": table.nbytes / 2**20}
    if keep:
        pq.write_table(table.select([LABEL, *columns]), keep)
    del table
    if again:
        side["again"] = _timed(answer)[0]
    print(json.dumps(side))


def _timed(answer: Callable[[], pa.Table]) -> tuple[dict[str, Any], pa.Table]:
    start, cpu = time.perf_counter(), time.process_time()
    table = answer()
    seconds, cpu_s = time.perf_counter() - start, time.process_time() - cpu
    figures = {"rows": table.num_rows, "seconds": seconds, "cpu_s": cpu_s, "rows_per_s": table.num_rows / seconds}
    return figures, table


def cells(sides: dict[str, dict[str, Any]]) -> list[tuple[object, ...]]:
    """Rows of the table with `COLUMNS`."""
    figures = ("rows", "rows_per_s", "seconds", "cpu_s", "again", "peak_mb", "before_mb", "answer_mb")
    shown = [side | {"again": side["again"]["rows_per_s"] if "again" in side else ""} for side in sides.values()]
    return [(name, *[side[figure] for figure in figures]) for name, side in zip(sides, shown, strict=True)]


def headline(ours: dict[str, Any], baseline: dict[str, Any]) -> dict[str, Any]:
    """The figures that the benchmarks share."""
    return {
        "rows_per_s": ours["rows_per_s"],
        "baseline_rows_per_s": baseline["rows_per_s"],
        "ratio": ours["rows_per_s"] / baseline["rows_per_s"],
        "peak_mb": ours["peak_mb"],
        "baseline_peak_mb": baseline["peak_mb"],
        "cpu_ratio": baseline["cpu_s"] / ours["cpu_s"],
        "memory_ratio": ours["peak_mb"] / baseline["peak_mb"],
        "again_rows_per_s": ours["again"]["rows_per_s"],
    }


def compare(ours: Path, theirs: Path) -> int:
    """How many rows the other answer holds; every value of them equals ours, or the benchmark ends here."""
    mine, others = (
        pl.read_parquet(path).select(LABEL, pl.exclude(LABEL).cast(pl.Float64).fill_nan(None)).sort(LABEL)
        for path in (ours, theirs)
    )
    if not mine.join(others.select(LABEL), on=LABEL, how="semi", maintain_order="left").equals(others):
        raise SystemExit(f"the answers {ours.stem} and {theirs.stem} differ")
    return others.height
