"""Where a number stands in a hash table of a kernel: by its product with 2^64 over the golden ratio (Knuth, TAOCP volume 3, 6.4).

A table is an array whose free slots hold FREE. Whoever walks it goes from a number's first slot to the next, the last one's being the
first, until the number or a free slot comes; half of the slots at least are free.
"""

from typing import Final

import numpy as np

from headrace.arrays import Ints
from headrace.kernel import kernel

FREE: Final = -1
_SPREAD = np.uint64(0x9E3779B97F4A7C15)


@kernel
def shift_for(count: int) -> np.uint64:
    """What `first_slot` shifts by in a table for so many numbers."""
    shift = np.uint64(63)
    while (np.int64(1) << (np.int64(64) - np.int64(shift))) < 2 * count:
        shift -= np.uint64(1)
    return shift


@kernel
def free_table(shift: np.uint64) -> Ints:
    return np.full(np.int64(1) << (np.int64(64) - np.int64(shift)), FREE, np.int64)


@kernel
def first_slot(number: np.int64, shift: np.uint64) -> np.int64:
    return np.int64((np.uint64(number) * _SPREAD) >> shift)
