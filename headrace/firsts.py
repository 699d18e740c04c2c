"""Each number of a list once, in the order in which they first come: what a set does, over arrays."""

import numpy as np

from headrace.arrays import Ints
from headrace.hash_table import FREE, first_slot, free_table, shift_for
from headrace.kernel import kernel


@kernel
def firsts(numbers: Ints) -> Ints:
    """The place of each number's first appearance, in order."""
    return merge(numbers, numbers)[0]


@kernel
def merge(numbers: Ints, bits: Ints) -> tuple[Ints, Ints]:
    """The place of each number's first appearance, in order, and the bits of all its appearances."""
    shift = shift_for(len(numbers))
    table = free_table(shift)
    places, merged = np.empty(len(numbers), np.int64), np.empty(len(numbers), np.int64)
    count = 0
    for i in range(len(numbers)):
        slot = first_slot(numbers[i], shift)
        while table[slot] != FREE and numbers[places[table[slot]]] != numbers[i]:
            slot = (slot + 1) & (len(table) - 1)
        if table[slot] == FREE:
            table[slot] = count
            places[count], merged[count] = i, 0
            count += 1
        merged[table[slot]] |= bits[i]
    return places[:count], merged[:count]
