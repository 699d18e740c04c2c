"""Every compiled loop once, before a worker takes shards: compiling takes seconds, and leases would run out meanwhile."""

from collections.abc import Mapping, Sequence

import redis

from flows.batches import to_batch
from flows.dedup import Known
from flows.shard_state import ShardState
from flows.source import LogSlice
from flows.split import ShardSplitter
from headrace import names
from headrace.aggregates.layout import Layout
from headrace.aggregates.spec import ViewSpec
from headrace.events import encode_records
from headrace.settings import MICROS
from headrace.stores.commits import pack
from headrace.stores.event_log import LogEntry
from headrace.stores.shards import OwnedShard, ShardStatus


def warm_up(client: "redis.Redis", specs: Mapping[str, ViewSpec], columns: Sequence[str]) -> None:
    """Made-up events of every type through the steps of the flow, into state that is thrown away. Asks the store nothing."""
    entry = LogEntry(0, 1, MICROS, encode_records([_event(event_type) for event_type in names.EVENT_TYPES]))
    batch = to_batch(LogSlice([entry, entry], {0: 0}, {0: 1}, {}), columns)
    known = Known(MICROS, 0)
    known.duplicates(batch.events[names.EVENT_ID], batch.places)
    known.duplicates(batch.events[names.EVENT_ID], batch.places)
    layouts = {name: Layout(spec) for name, spec in specs.items()}
    owned = OwnedShard(client, 0, "warm-up", 1)
    split = ShardSplitter(specs, 1, 0)(batch, [0])
    rows: dict[str, Sequence[bytes | None]] = {}
    for _ in range(2):  # entities that are new, and entities whose rows are read
        state = ShardState(owned, ShardStatus(), layouts, 1)
        parts = list(state.parts(split, may_empty=False))
        for part in parts:
            keys = part.state.missing(part.entities)
            part.state.load_rows(keys, rows.get(part.view, [None] * len(keys)))
        commit = state.advance(split, parts)
        pack(owned, commit, {})
        rows = {
            view: [row for some in packed for row in some.as_dict().values()] for view, packed in commit.rows.items()
        }


def _event(event_type: str) -> dict[str, object]:
    return {
        "event_id": event_type,
        "type": event_type,
        "user_key": "u",
        "item_id": "i",
        "timestamp": MICROS,
        "received_at": MICROS,
        "session_id": "s",
        "value": 1.0,
        "price": 1.0,
        "quantity": 1,
    }
