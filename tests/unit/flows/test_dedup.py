"""Duplicates are a function of the log: whoever reads it, from wherever, however often, drops the same events."""

import random
from typing import Any

import pytest

from flows.batches import to_batch
from flows.dedup import Deduplicator
from flows.source import LogSlice
from headrace.stores.log import LogEntry
from tests.unit.flows.memory_log import MemoryLog, entry


def take(
    deduplicator: Deduplicator, log: MemoryLog, after: dict[int, int], count: int
) -> tuple[list[Any], dict[int, int]]:
    """Places (partition, position, line) that are kept of the next `count` entries a partition, and the positions reached."""
    entries = log.read(after, count)
    reached = dict(after)
    for each in entries:
        reached[each.partition] = each.position
    batch = deduplicator(to_batch(LogSlice(entries, after, reached, {})))
    places = batch.places
    kept = zip(places.partition.tolist(), places.position.tolist(), places.index.tolist(), strict=True)
    return list(kept), reached


def plainly(entries: list[LogEntry], ids: dict[tuple[int, int, int], str], horizon: int) -> set[tuple[int, int, int]]:
    """The places that are no duplicates, by the sentence of the rule."""
    times = {(e.partition, e.position): e.ingested_at_us for e in entries}
    kept = set()
    for place, event_id in ids.items():
        now = times[place[:2]]
        earlier = [
            other
            for other, other_id in ids.items()
            if other_id == event_id and other[0] == place[0] and other[1:] < place[1:]
        ]
        if not any(times[other[:2]] >= now - horizon for other in earlier):
            kept.add(place)
    return kept


def test_a_repeated_id_is_dropped_within_its_partition_and_horizon() -> None:
    log = MemoryLog([entry(0, 10, "a", "b", "a"), entry(1, 11, "a"), entry(0, 15, "b"), entry(0, 40, "a")])
    kept, _ = take(Deduplicator(log, 20), log, {0: 0, 1: 0}, 9)  # type: ignore[arg-type]
    assert kept == [(0, 10, 0), (0, 10, 1), (0, 40, 0), (1, 11, 0)]


def test_a_reader_that_begins_late_knows_the_horizon_before() -> None:
    log = MemoryLog([entry(0, 10, "old"), entry(0, 30, "a"), entry(0, 40, "a", "old")])
    kept, _ = take(Deduplicator(log, 20), log, {0: 30}, 9)  # type: ignore[arg-type]
    assert kept == [(0, 40, 1)]


def test_a_reader_that_goes_back_gets_the_same_answers_without_rereading_the_horizon() -> None:
    log = MemoryLog([entry(0, at, "a", f"b{at}") for at in range(1, 9)])
    deduplicator = Deduplicator(log, 100)  # type: ignore[arg-type]
    first, _ = take(deduplicator, log, {0: 0}, 9)
    log.reads = 0
    again, _ = take(deduplicator, log, {0: 3}, 9)
    assert again == [place for place in first if place[1] > 3]
    assert log.reads == 1


@pytest.mark.parametrize("seed", range(8))
def test_whatever_way_a_reader_jumps_it_answers_by_the_rule(seed: int) -> None:
    rng = random.Random(seed)
    entries, ids, position = [], {}, 0
    for _ in range(120):
        position += rng.choice([1, 1, 2, 9])
        partition, line = rng.randrange(2), [f"e{rng.randrange(40)}" for _ in range(rng.randrange(1, 5))]
        entries.append(entry(partition, position, *line))
        ids |= {(partition, position, index): event_id for index, event_id in enumerate(line)}
    horizon = rng.choice([3, 30, 1_000])
    expected = plainly(entries, ids, horizon)
    log = MemoryLog(entries)
    deduplicator = Deduplicator(log, horizon)  # type: ignore[arg-type]
    stand = {0: 0, 1: 0}
    for _ in range(40):
        kept, reached = take(deduplicator, log, stand, rng.randrange(1, 12))
        between = {place for place in ids if stand[place[0]] < place[1] <= reached[place[0]]}
        assert set(kept) == expected & between
        if rng.random() < 0.3:
            deduplicator = rng.choice([deduplicator, Deduplicator(log, horizon)])  # type: ignore[arg-type]
            reached = {p: rng.choice([0, *(e.position for e in entries if e.partition == p)]) for p in reached}
        stand = reached
