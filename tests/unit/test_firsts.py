"""Each number once: where it first comes, and what all its appearances say."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.firsts import firsts, merge


@settings(deadline=None)  # compiling takes long
@given(st.lists(st.tuples(st.integers(-3, 40) | st.integers(-(2**63), 2**63 - 1), st.integers(0, 255)), max_size=200))
def test_a_number_stands_where_it_first_came_with_the_bits_of_all_its_appearances(given: list[tuple[int, int]]) -> None:
    expected: dict[int, int] = {}
    for number, bits in given:
        expected[number] = expected.get(number, 0) | bits
    numbers = np.array([number for number, _ in given], np.int64)
    places, merged = merge(numbers, np.array([bits for _, bits in given], np.int64))
    assert list(zip(numbers[places].tolist(), merged.tolist(), strict=True)) == list(expected.items())
    assert places.tolist() == sorted(places.tolist())
    assert firsts(numbers).tolist() == places.tolist()
