"""Parts of the entities: each key is in exactly one, however many there are."""

import polars as pl
import pytest

from headrace.ops.lake_parts import parts_for


@pytest.mark.parametrize(("events", "parts"), [(0, 1), (1, 1), (10, 1), (11, 2), (95, 10)])
def test_there_are_as_many_parts_as_keep_each_near_its_size(events: int, parts: int) -> None:
    assert [(part.number, part.of) for part in parts_for(events, 10)] == [(n, parts) for n in range(parts)]


def test_every_key_is_in_one_part_and_no_part_is_empty() -> None:
    keys = pl.Series([f"u{n}" for n in range(1_000)])
    held = pl.DataFrame([part.holds(keys).alias(str(part.number)) for part in parts_for(70, 10)])
    assert held.sum_horizontal().to_list() == [1] * 1_000
    assert held.sum().min_horizontal().item() > 100
