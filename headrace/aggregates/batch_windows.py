"""Sums, means, deviations, extremes and decayed sums of moving windows, without ever subtracting.

Each is a value that two neighbouring runs of events combine into the value of both. A window that moves forward is kept
as two such runs that meet at a pivot: `ahead[i]` for every place i before it, and one that grows behind it; when the
window leaves the pivot behind, the pivot moves to the window's end. Each event is combined twice, whatever the windows.
(The two-stack queue; see Tangwongsan, Hirzel, Schneider: General Incremental Sliding-Window Aggregation, VLDB 2015.)

So a value depends on the window's own events alone: a difference of prefix sums would carry the rounding of all that came
before. Sums are kept in double-double (Dekker 1971), mean and squared deviation are merged by the formula of Chan, Golub
and LeVeque (1979).
"""

from typing import Final

import numpy as np

from headrace.aggregates.batch_order import Ordered
from headrace.aggregates.spec import DECAYED_SUM, MAX, MEAN, MIN, STD, SUM
from headrace.arrays import Floats, Ints
from headrace.kernel import kernel

_SUM, _MEAN, _MIN, _MAX, _STD, _DECAYED = range(6)
_KINDS: Final = {SUM: _SUM, MEAN: _MEAN, MIN: _MIN, MAX: _MAX, STD: _STD, DECAYED_SUM: _DECAYED}
"""The functions that this module computes."""


def fold_windows(
    function: str, values: Floats, timeline: Ordered, asked: Ordered, first: Ints, last: Ints, span_us: int | None
) -> Floats:
    """(Q,) the function of values[first:last] for each pair asked; of no values, 0.

    `values` (N,) belong to the timeline's places. `first` and `last` ascend within each entity, empty windows apart.
    `span_us` is the half-life of a decayed sum, whose weights are those at `asked.times`.
    """
    half_life = float(span_us or 1)
    answer = _fold(
        _KINDS[function], values, timeline.times, timeline.starts, asked.times, asked.starts, first, last, half_life
    )
    return np.asarray(answer)


@kernel
def _fold(
    kind: int,
    values: Floats,
    times: Ints,
    starts: Ints,
    asked: Ints,
    asked_starts: Ints,
    first: Ints,
    last: Ints,
    half_life: float,
) -> Floats:
    results = np.zeros(len(asked))
    longest = 0
    for entity in range(len(starts) - 1):
        longest = max(longest, starts[entity + 1] - starts[entity])
    ahead = np.empty((longest, 3))
    for entity in range(len(starts) - 1):
        base = starts[entity]
        pivot, end, behind = np.int64(-1), np.int64(-1), (0.0, 0.0, 0.0)
        for pair in range(asked_starts[entity], asked_starts[entity + 1]):
            low, high = first[pair], last[pair]
            if low == high:
                continue
            if low > pivot:
                pivot = end = high
                node = _one(kind, values[high - 1], times[high - 1])
                ahead[high - 1 - base] = node
                for place in range(high - 2, low - 1, -1):
                    node = _combine(kind, _one(kind, values[place], times[place]), node, half_life)
                    ahead[place - base] = node
            while end < high:
                node = _one(kind, values[end], times[end])
                behind = node if end == pivot else _combine(kind, behind, node, half_life)
                end += 1
            if low == pivot:
                node = behind
            else:
                node = (ahead[low - base, 0], ahead[low - base, 1], ahead[low - base, 2])
                if end > pivot:
                    node = _combine(kind, node, behind, half_life)
            results[pair] = _result(kind, node, high - low, asked[pair], half_life)
    return results


@kernel
def _one(kind: int, value: float, time: int) -> tuple[float, float, float]:
    """A single event: (sum, its rounding, -), (extreme, -, -), (n, mean, squared deviation), (sum, as of when, -)."""
    if kind == _STD:
        return 1.0, value, 0.0
    return value, float(time) if kind == _DECAYED else 0.0, 0.0


@kernel
def _combine(
    kind: int, left: tuple[float, float, float], right: tuple[float, float, float], half_life: float
) -> tuple[float, float, float]:
    if kind == _MIN:
        return min(left[0], right[0]), 0.0, 0.0
    if kind == _MAX:
        return max(left[0], right[0]), 0.0, 0.0
    if kind == _STD:
        n, apart = left[0] + right[0], right[1] - left[1]
        return n, left[1] + apart * (right[0] / n), left[2] + right[2] + apart * apart * (left[0] * (right[0] / n))
    if kind == _DECAYED:
        return left[0] * np.exp2((left[1] - right[1]) / half_life) + right[0], right[1], 0.0
    total = left[0] + right[0]
    shadow = total - left[0]
    error = (left[0] - (total - shadow)) + (right[0] - shadow) + left[1] + right[1]
    return total, error, 0.0


@kernel
def _result(kind: int, node: tuple[float, float, float], count: int, time: int, half_life: float) -> float:
    if kind in (_MIN, _MAX):
        return node[0]
    if kind == _STD:
        return float(np.sqrt(node[2] / node[0]))
    if kind == _DECAYED:
        return float(node[0] * np.exp2((node[1] - time) / half_life))
    total = node[0] + node[1] if np.isfinite(node[0]) else node[0]
    return total / count if kind == _MEAN else total
