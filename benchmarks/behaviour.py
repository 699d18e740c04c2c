"""Made behaviour for the flow's benchmarks: full-contract events of users and items by Pareto, repeated and out of order as stated."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import orjson

from headrace import names
from headrace.hashing import shards_of

START_US: Final = 1_790_000_000_000_000
_TYPES: Final = (
    names.IMPRESSION,
    names.VIEW,
    names.CLICK,
    names.DWELL,
    names.ADD_TO_CART,
    names.PURCHASE,
    names.SEARCH,
)
_SHARES: Final = (0.30, 0.40, 0.12, 0.08, 0.05, 0.02, 0.03)
_CONTEXT: Final = {
    "context_device": "mobile",
    "context_page": "https://shop.example/c/shoes?sort=price",
    "context_referrer": "https://search.example/?q=running+shoes",
    "context_country": "DE",
    "context_locale": "de-DE",
}


@dataclass(frozen=True)
class Behaviour:
    """`users` and `items` by Pareto; `per_second` is the pace of event time. `out_of_order` are up to a minute late."""

    users: int = 20_000
    items: int = 5_000
    duplicates: float = 0.01
    out_of_order: float = 0.05
    per_second: int = 2_000
    entry_events: int = 250
    partitions: int = 4
    seed: int = 0


def entries(behaviour: Behaviour, events: int, first: int = 0) -> Iterator[tuple[int, bytes, list[dict[str, Any]]]]:
    """(partition, payload, its records) of the log entries of `events` events, numbered from `first`.

    A duplicate repeats one of the last thousand events of its partition.
    """
    rng = np.random.default_rng(behaviour.seed + first)
    waiting: list[list[dict[str, Any]]] = [[] for _ in range(behaviour.partitions)]
    recent: list[list[dict[str, Any]]] = [[] for _ in range(behaviour.partitions)]
    for start in range(first, first + events, 10_000):
        for partition, record in _records(behaviour, start, min(10_000, first + events - start), rng):
            past, group = recent[partition], waiting[partition]
            if past and rng.random() < behaviour.duplicates:
                record = past[int(rng.integers(len(past)))]
            elif len(past) < 1_000:
                past.append(record)
            else:
                past[int(rng.integers(1_000))] = record
            group.append(record)
            if len(group) == behaviour.entry_events:
                yield partition, b"\n".join(map(orjson.dumps, group)), group
                waiting[partition] = []
    for partition, group in enumerate(waiting):
        if group:
            yield partition, b"\n".join(map(orjson.dumps, group)), group


def _records(
    behaviour: Behaviour, first: int, count: int, rng: np.random.Generator
) -> Iterator[tuple[int, dict[str, Any]]]:
    users = [f"user-{n:06d}" for n in _pareto(rng, count, behaviour.users)]
    items = [f"item-{n:05d}" for n in _pareto(rng, count, behaviour.items)]
    kinds = rng.choice(len(_TYPES), count, p=_SHARES)
    arrivals = START_US + (first + np.arange(count)) * 1_000_000 // behaviour.per_second
    late = np.where(rng.random(count) < behaviour.out_of_order, rng.integers(1, 60_000_000, count), 0)
    partitions = shards_of(users, behaviour.partitions)
    ids = rng.bytes(8 * count).hex()
    prices = np.round(rng.gamma(2.0, 20.0, count), 2)
    scores = rng.random(count)
    for i in range(count):
        kind = _TYPES[kinds[i]]
        record = {
            "event_id": f"{ids[16 * i : 16 * i + 16]}-{first + i:012d}",
            "type": kind,
            "user_id": users[i],
            "session_id": f"session-{users[i]}-{(first + i) // 50_000}",
            "item_id": items[i],
            "request_id": f"request-{ids[16 * i : 16 * i + 12]}",
            "position": i % 20,
            **(
                {"score": float(scores[i]), "source": "two_tower", "model_version": "v17", "propensity": 1.0}
                if kind == names.IMPRESSION
                else {"value": 12.5, "price": float(prices[i]), "quantity": 1 + i % 3}
            ),
            **({"query": "running shoes"} if kind == names.SEARCH else {}),
            "schema_version": 1,
            "user_key": users[i],
            "timestamp": int(arrivals[i] - late[i]),
            "received_at": int(arrivals[i]),
            **_CONTEXT,
            "properties": '{"campaign":"autumn","variant":"b","list":"search results"}',
        }
        yield int(partitions[i]), record


def _pareto(rng: np.random.Generator, count: int, size: int) -> list[int]:
    """Numbers below `size`, the small ones far more often (Pareto with exponent 1.16: the 80/20 rule)."""
    return [int(n) for n in np.minimum((rng.pareto(1.16, count) * size / 50).astype(np.int64), size - 1)]
