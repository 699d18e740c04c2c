"""Each number of a list once, in the order in which they first come: what a set does, over arrays."""

from typing import Final

import numpy as np

from headrace.arrays import Ints
from headrace.kernel import kernel

_FREE: Final = -1
_SPREAD = np.uint64(0x9E3779B97F4A7C15)
"""2^64 over the golden ratio: a product with it has well-mixed high bits."""


@kernel
def firsts(numbers: Ints) -> Ints:
    """The place of each number's first appearance, in order."""
    return merge(numbers, numbers)[0]


@kernel
def merge(numbers: Ints, bits: Ints) -> tuple[Ints, Ints]:
    """The place of each number's first appearance, in order, and the bits of all its appearances."""
    shift = np.uint64(63)
    while (np.int64(1) << (np.int64(64) - np.int64(shift))) < 2 * len(numbers):
        shift -= np.uint64(1)
    table = np.full(np.int64(1) << (np.int64(64) - np.int64(shift)), _FREE, np.int64)
    places, merged = np.empty(len(numbers), np.int64), np.empty(len(numbers), np.int64)
    count = 0
    for i in range(len(numbers)):
        slot = np.int64((np.uint64(numbers[i]) * _SPREAD) >> shift)
        while table[slot] != _FREE and numbers[places[table[slot]]] != numbers[i]:
            slot = (slot + 1) & (len(table) - 1)
        if table[slot] == _FREE:
            table[slot] = count
            places[count], merged[count] = i, 0
            count += 1
        merged[table[slot]] |= bits[i]
    return places[:count], merged[:count]
