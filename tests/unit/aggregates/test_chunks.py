"""Chunks keep their content as they grow, never overlap, and are used again."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.aggregates.chunks import ARENA, LINE, ROOM, SIZE, START, reserve, shift


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(1, 300)), max_size=60))
def test_parts_that_grow_in_any_order_keep_what_they_hold(growth: list[tuple[int, int]]) -> None:
    data, arena, lines = np.zeros(1, np.uint8), np.zeros(ARENA, np.int64), np.zeros((5, LINE), np.int64)
    expected = [b"" for _ in lines]
    for step, (part, more) in enumerate(growth):
        line = lines[part]
        data = reserve(data, arena, line, line[SIZE] + more)
        added = bytes([step + 1]) * more
        data[line[START] + line[SIZE] : line[START] + line[SIZE] + more] = np.frombuffer(added, np.uint8)
        line[SIZE] += more
        expected[part] += added
    held = [data[line[START] : line[START] + line[SIZE]].tobytes() for line in lines]
    assert held == expected


def test_a_chunk_that_was_outgrown_is_used_again() -> None:
    data, arena, lines = np.zeros(1, np.uint8), np.zeros(ARENA, np.int64), np.zeros((2, LINE), np.int64)
    data = reserve(data, arena, lines[0], 20)
    data = reserve(data, arena, lines[0], 40)
    end = int(arena[0])
    data = reserve(data, arena, lines[1], 30)
    assert (int(arena[0]), lines[1, START], lines[1, ROOM]) == (end, 0, 32)


@settings(deadline=None)
@given(st.integers(0, 50), st.integers(0, 50), st.integers(-50, 50))
def test_bytes_move_as_a_slice_would_even_onto_themselves(start: int, size: int, by: int) -> None:
    data = np.arange(250, dtype=np.uint8)
    expected = data.copy()
    expected[60 + start + by : 60 + start + size + by] = data[60 + start : 60 + start + size]
    shift(data, 60 + start, 60 + start + size, by)
    assert np.array_equal(data, expected)
