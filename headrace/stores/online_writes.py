"""Writes of plain rows: the newest by (timestamp, created) stays, the later write wins a tie, whoever writes at the same time."""

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value

from headrace.clock import to_micros
from headrace.hashing import shards_of
from headrace.stores.change_feed import changes_key
from headrace.stores.online_keys import key_of
from headrace.stores.plain_puts import PUT_SCRIPT
from headrace.stores.plain_rows import PlainLayout
from headrace.stores.shards import commit_key, row_key

FeastRow = tuple[EntityKey, Mapping[str, Value], datetime, datetime | None]
"""Entity, values, timestamp, created; naive times mean UTC."""

_BATCH: Final = 1_000


class FutureRowError(ValueError):
    """A plain row dated after now: it would hide every row until then."""


def pack_rows(layout: PlainLayout, data: Sequence[FeastRow], now_us: int) -> tuple[list[str], list[bytes]]:
    """Entity keys and packed rows. Raises FutureRowError, EntityKeyError, RowValueError: then nothing may be written."""
    keys = [key_of(entity) for entity, _, _, _ in data]
    times = [_micros(timestamp) for _, _, timestamp, _ in data]
    ahead = next((place for place, at in enumerate(times) if at > now_us), None)
    if ahead is not None:
        raise FutureRowError(
            f"view '{layout.view}', entity '{keys[ahead]}': the row is dated {data[ahead][2]}, which is after now; "
            "correct its timestamp, or write it when its time has come"
        )
    rows = [
        layout.pack(values, at, _micros(created) if created else 0)
        for (_, values, _, created), at in zip(data, times, strict=True)
    ]
    return keys, rows


def queue_rows(
    pipeline: Any, view: str, keys: Sequence[str], rows: Sequence[bytes], shards: int, *, announced: bool
) -> None:
    """Put the writes into a pipeline of redis-py, sync or async: one command for at most 1,000 rows of a shard.

    `announced`: the same command tells the change feed which of them were written.
    """
    for shard, places in _batches(keys, shards):
        words = [part for place in places for part in (keys[place], rows[place])]
        names = (commit_key(shard), changes_key(shard))
        pipeline.execute_command(
            "EVAL", PUT_SCRIPT, len(names), *names, view if announced else "", row_key(shard, view, ""), *words
        )


def _batches(keys: Sequence[str], shards: int) -> Iterator[tuple[int, list[int]]]:
    """Places of the rows of each shard, in their order."""
    by_shard: dict[int, list[int]] = {}
    for place, shard in enumerate(shards_of(keys, shards).tolist()):
        by_shard.setdefault(shard, []).append(place)
    for shard, places in by_shard.items():
        for start in range(0, len(places), _BATCH):
            yield shard, places[start : start + _BATCH]


def _micros(moment: datetime) -> int:
    return to_micros(moment if moment.tzinfo else moment.replace(tzinfo=UTC))
