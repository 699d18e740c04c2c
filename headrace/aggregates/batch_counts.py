"""Counts of moving windows that are more than a distance of places: different values, buckets, sessions."""

import numpy as np
import numpy.typing as npt
import polars as pl

from headrace.aggregates.batch_order import Ordered, read_only
from headrace.aggregates.spec import DISTINCT_BOUND
from headrace.arrays import Floats, Ints
from headrace.hashing import Hashes, hash_slices, xxh64
from headrace.kernel import kernel


def value_hashes(values: pl.Series) -> Hashes:
    """(N,) xxh64 of each value: a string's UTF-8, the eight little-endian bytes of a number; anything at nulls."""
    if values.dtype == pl.String:
        return xxh64(values)
    if values.dtype.is_float():
        numbers: npt.NDArray[np.generic] = values.cast(pl.Float64).fill_null(0.0).to_numpy() + 0.0  # -0.0 is 0.0
    else:
        numbers = values.to_physical().cast(pl.Int64).fill_null(0).to_numpy()
    eight = np.arange(len(numbers) + 1, dtype=np.int64) * 8
    data = read_only(np.ascontiguousarray(numbers).view(np.uint8))
    return np.asarray(hash_slices(data, read_only(eight), np.uint64(0)))


def distinct_in_windows(hashes: Hashes, timeline: Ordered, asked: Ordered, first: Ints, last: Ints) -> Ints:
    """(Q,) how many different hashes stand in places first to last, of each pair asked.

    Exact up to DISTINCT_BOUND. Beyond it Wegman's adaptive sampling (Flajolet 1990): of the hashes that begin with p zero
    bits, p the least for which no more than the bound do, each stands for 2^p.
    """
    different, numbers = np.unique(hashes, return_inverse=True)
    zeros = _leading_zeros(different)
    return np.asarray(_distinct(numbers, zeros, timeline.starts, asked.starts, first, last, DISTINCT_BOUND))


@kernel
def _leading_zeros(hashes: Hashes) -> npt.NDArray[np.uint8]:
    zeros = np.empty(len(hashes), np.uint8)
    for i in range(len(hashes)):
        bit = 63
        while bit >= 0 and (hashes[i] >> np.uint64(bit)) == 0:
            bit -= 1
        zeros[i] = 63 - bit
    return zeros


@kernel
def _distinct(
    numbers: Ints,
    zeros: npt.NDArray[np.uint8],
    starts: Ints,
    asked_starts: Ints,
    first: Ints,
    last: Ints,
    bound: int,
) -> Ints:
    results = np.zeros(len(first), np.int64)
    seen = np.zeros(len(zeros), np.int64)
    by_zeros = np.zeros(65, np.int64)
    for entity in range(len(starts) - 1):
        low = high = starts[entity]
        total = 0
        for pair in range(asked_starts[entity], asked_starts[entity + 1]):
            if first[pair] == last[pair]:
                continue
            while high < last[pair]:
                number = numbers[high]
                if seen[number] == 0:
                    total += 1
                    by_zeros[zeros[number]] += 1
                seen[number] += 1
                high += 1
            while low < first[pair]:
                number = numbers[low]
                seen[number] -= 1
                if seen[number] == 0:
                    total -= 1
                    by_zeros[zeros[number]] -= 1
                low += 1
            kept, level = total, 0
            while kept > bound:
                kept -= by_zeros[level]
                level += 1
            results[pair] = kept << level
        for place in range(low, high):
            seen[numbers[place]] = 0
        by_zeros[:] = 0
    return results


def zscores(timeline: Ordered, asked: Ordered, ends: Ints, short_us: int, buckets: int) -> Floats:
    """(Q,) the newest bucket's count against mean and deviation of the others; NaN where they do not deviate.

    The last of the `buckets` of `short_us` each ends, exclusively, at `ends` (Q,).
    """
    return np.asarray(_zscores(timeline.times, timeline.starts, asked.starts, ends, short_us, buckets))


@kernel
def _zscores(times: Ints, starts: Ints, asked_starts: Ints, ends: Ints, short: int, buckets: int) -> Floats:
    results = np.empty(len(ends))
    places = np.empty(buckets + 1, np.int64)
    others = buckets - 1
    for entity in range(len(starts) - 1):
        places[:] = starts[entity]
        for pair in range(asked_starts[entity], asked_starts[entity + 1]):
            for i in range(buckets + 1):
                while places[i] < starts[entity + 1] and times[places[i]] < ends[pair] - i * short:
                    places[i] += 1
            total = places[1] - places[buckets]
            squares = 0.0  # of the deviations, each times the number of the other buckets: differences of integers
            for i in range(1, buckets):
                squares += float(others * (places[i] - places[i + 1]) - total) ** 2
            ahead = float(others * (places[0] - places[1]) - total)
            results[pair] = ahead / np.sqrt(squares / others) if squares > 0 else np.nan
    return results


@kernel
def session_starts(times: Ints, starts: Ints, gap: int) -> Ints:
    """(N,) the place where the session of each event begins: a new one begins after a gap."""
    begins = np.empty(len(times), np.int64)
    for entity in range(len(starts) - 1):
        for place in range(starts[entity], starts[entity + 1]):
            continues = place > starts[entity] and times[place] - times[place - 1] <= gap
            begins[place] = begins[place - 1] if continues else place
    return begins
