"""A shard takes in what follows its positions: not what it has, and nothing behind a gap."""

import pytest
import redis

from flows.batches import to_batch
from flows.shard_state import ShardState
from flows.source import LogSlice
from flows.split import COUNTERS, ShardSplitter
from headrace.aggregates.layout import Layout
from headrace.aggregates.spec import AggregateSpec, ViewSpec
from headrace.identity import shard_of
from headrace.stores.commits import ShardCommit
from headrace.stores.log import LogEntry
from headrace.stores.shards import OwnedShard, ShardStatus
from tests.unit.flows.memory_log import entry

HOUR_US = 3_600_000_000
VIEWS = AggregateSpec("views_1h", ("view",), None, "count", 0, HOUR_US, HOUR_US // 4)
SPEC = ViewSpec("user_activity", "user_id", "user_key", (VIEWS,), None, HOUR_US, HOUR_US)
COLUMNS = ["event_id", "type", "user_key", "item_id", "timestamp", "received_at"]


def state(shards: int = 1, shard: int = 0, **status: dict[int, int]) -> ShardState:
    owned = OwnedShard(redis.Redis(), shard, "me", 1_000)  # connects to nothing
    return ShardState(owned, ShardStatus(**status), {SPEC.name: Layout(SPEC)}, shards)  # type: ignore[arg-type]


def advance(shard: ShardState, entries: list[LogEntry], after: dict[int, int], shards: int = 1) -> ShardCommit:
    reached = after | {each.partition: each.position for each in entries}
    batch = to_batch(LogSlice(entries, after, reached, dict.fromkeys(after, 50)), COLUMNS)
    split = ShardSplitter({SPEC.name: SPEC}, shards, HOUR_US)(batch, range(shards))
    parts = list(shard.parts(split, may_empty=True))
    for part in parts:
        keys = part.state.missing(part.entities)
        part.state.load_rows(keys, [None] * len(keys))
    return shard.advance(split, parts)


def test_a_batch_that_follows_is_taken_whole() -> None:
    commit = advance(state(positions={0: 10}), [entry(0, 11, "a", "b"), entry(0, 12, "c")], {0: 10})
    assert (commit.positions, commit.complete) == ({0: 12}, {0: 50})
    assert commit.counters["events"] == 3
    assert [packed.keys for packed in commit.rows[SPEC.name]] == [["u"]]


def test_what_a_shard_has_already_is_left_out() -> None:
    shard = state(positions={0: 11})
    commit = advance(shard, [entry(0, 11, "a", "b"), entry(0, 12, "c")], {0: 10})
    assert (commit.positions, commit.counters["events"]) == ({0: 12}, 1)
    commit = advance(shard, [entry(0, 11, "a", "b")], {0: 10})
    assert (commit.positions, commit.counters["events"], commit.rows) == ({0: 12}, 0, {})


def test_a_batch_behind_a_gap_moves_nothing() -> None:
    commit = advance(state(positions={0: 5, 1: 20}), [entry(0, 11, "a"), entry(1, 21, "b")], {0: 10, 1: 20})
    assert (commit.positions, commit.counters["events"]) == ({1: 21}, 1)


def test_positions_that_went_back_do_not_count_again_what_was_counted() -> None:
    commit = advance(state(positions={0: 5}, counted={0: 11}), [entry(0, 11, "a"), entry(0, 12, "b")], {0: 5})
    assert commit.counters["events"] == 1
    assert sum(len(packed.keys) for packed in commit.rows[SPEC.name]) == 1


@pytest.mark.parametrize("shards", [2, 3])
def test_all_shards_together_count_and_fold_each_event_once(shards: int) -> None:
    entries = [entry(p, at, f"e{p}{at}") for p in (0, 1) for at in (1, 2, 3)]
    commits = [advance(state(shards, shard), entries, {0: 0, 1: 0}, shards) for shard in range(shards)]
    assert sum(commit.counters.get("events", 0) for commit in commits) == 6
    assert [bool(commit.rows) for commit in commits] == [shard == shard_of("u", shards) for shard in range(shards)]
    assert {kind for commit in commits for kind in commit.counters} == set(COUNTERS)


def test_a_shard_says_what_it_holds_in_memory() -> None:
    shard = state()
    assert shard.entities == 0
    advance(shard, [entry(0, 11, "a", "b")], {0: 0})
    assert shard.entities == 1
    assert shard.nbytes > 0
