"""Generated event streams, as a log would hold them: stamped by the door, late, repeated, out of order, tied on boundaries."""

import random
from collections.abc import Iterable
from typing import Any, Final

import numpy as np
import polars as pl
import pyarrow as pa
from hypothesis import strategies as st

from headrace import names
from headrace.clock import from_micros
from headrace.events import RECORD_SCHEMA, EventIn, parse, stamp
from headrace.settings import MICROS
from tests.oracles import Event

SECOND: Final = MICROS
MINUTE: Final = 60 * SECOND
HOUR: Final = 60 * MINUTE
DAY: Final = 24 * HOUR
NOON: Final = 1_700_049_600 * SECOND
"""2023-11-15 12:00 UTC, where every hop of `definitions.WINDOWS` begins."""
CLOCK_AHEAD_US: Final = 5 * MINUTE
USERS: Final = ("u1", "u2", "anon:a1")
ITEMS: Final = ("a", "b", "c")
AGES: Final = (
    1, SECOND, 3 * SECOND, 4 * SECOND, MINUTE, 9 * MINUTE, 10 * MINUTE, 11 * MINUTE, 12 * MINUTE, 12 * MINUTE + 1, 20 * MINUTE,
    30 * MINUTE, 30 * MINUTE + 1, HOUR, 70 * MINUTE, DAY, 28 * HOUR, 30 * DAY,
)  # fmt: skip
"""How long after its newest event an entity is read."""

# On hops, one microsecond before and after them, a session's gap apart, and days apart.
MOMENTS: Final = st.builds(
    lambda minutes, seconds, shift: NOON + minutes * MINUTE + seconds * SECOND + shift,
    st.sampled_from(
        [0, 0, 1, 2, 9, 10, 11, 29, 30, 30, 31, 59, 60, 60, 61, 90, 90, 240, -1, -1_439, -1_440, -1_441, -2_900]
    ),
    st.sampled_from([0, 0, 1, 2, 3]),
    st.sampled_from([0, 0, -1, 1, 500_000]),
)
_EVENTS: Final = st.fixed_dictionaries(
    {
        "type": st.sampled_from(["view", "view", "view", "click", "purchase", "search", "impression"]),
        "user": st.sampled_from([*USERS, "u1"]),
        "item": st.sampled_from(ITEMS),
        "happened": MOMENTS,
        "delay": st.sampled_from([0, 0, 0, 1, MINUTE, 31 * MINUTE, DAY, DAY + 1]),
        "ahead": st.sampled_from([0, 0, 0, 0, 1, CLOCK_AHEAD_US]),
        "jitter": st.sampled_from([0, 0, 0, -25 * MINUTE, 25 * MINUTE]),
        "retries": st.sampled_from([0, 0, 0, 1, 2]),
        "price": st.sampled_from([None, 0.1, 0.2, 0.3, 7.0, 1e12]),
        "quantity": st.sampled_from([None, 1, 3, 7]),
        "query": st.sampled_from([None, "shoes", "", "größe 42"]),
    }
)


@st.composite
def logs(draw: st.DrawFn, max_events: int = 30) -> list[Event]:
    """Records in log order, a retry being a later record with the same event_id.

    Arrival decides the order, but for the half hour that the clocks of two doors may differ by.
    """
    raw = draw(st.lists(_EVENTS, max_size=max_events))
    ids = draw(st.permutations(range(len(raw))))
    arrivals = []
    for one, number in zip(raw, ids, strict=True):
        received_us = one["happened"] + one["delay"]
        for attempt in range(1 + one["retries"]):
            at_us = received_us + attempt * SECOND
            arrivals.append((at_us + one["jitter"], number, record_of(one, f"e{number:03}", received_us, at_us)))
    arrivals.sort(key=lambda arrival: arrival[:2])
    return [record for _, _, record in arrivals]


def record_of(raw: dict[str, Any], event_id: str, client_received_us: int, received_us: int) -> Event:
    """What the door makes of it. A clock that is ahead is so at the first attempt; a retry repeats what the client said."""
    kind, user = raw["type"], raw["user"]
    happened = client_received_us + raw["ahead"] if raw["ahead"] else raw["happened"]
    sent: dict[str, Any] = {"event_id": event_id, "type": kind, "timestamp": from_micros(happened).isoformat()}
    if user.startswith(names.ANONYMOUS_PREFIX):
        sent["anonymous_id"] = user.removeprefix(names.ANONYMOUS_PREFIX)
    else:
        sent["user_id"] = user
    if kind == names.SEARCH:
        sent["query"] = raw["query"] or ""
    else:
        sent |= {"item_id": raw["item"], "query": raw["query"]}
    sent |= {name: raw[name] for name in ("price", "quantity")}
    event = parse({name: value for name, value in sent.items() if value is not None})
    assert isinstance(event, EventIn), event
    return stamp(event, received_us, CLOCK_AHEAD_US)


def first_deliveries(log: Iterable[Event]) -> list[Event]:
    """Without what an earlier record of the log repeats, in order."""
    first: dict[str, Event] = {}
    for event in log:
        first.setdefault(event["event_id"], event)
    return list(first.values())


def renamed(log: Iterable[Event], prefix: str) -> list[Event]:
    """The same stream of other people, other items and other event ids."""

    def rename(name: str, value: Any) -> Any:
        if name == names.USER_KEY and value.startswith(names.ANONYMOUS_PREFIX):
            return f"{names.ANONYMOUS_PREFIX}{prefix}{value.removeprefix(names.ANONYMOUS_PREFIX)}"
        ids = (names.USER_KEY, names.USER_ID, "anonymous_id", names.ITEM_ID, names.EVENT_ID)
        return f"{prefix}{value}" if name in ids and value is not None else value

    return [{name: rename(name, value) for name, value in event.items()} for event in log]


def frame(events: Iterable[Event]) -> pl.DataFrame:
    """Rows of RECORD_SCHEMA."""
    rows = [{name: event.get(name) for name in RECORD_SCHEMA.names} for event in events]
    return pl.DataFrame(pa.Table.from_pylist(rows, schema=RECORD_SCHEMA))


def crowd(events: int, users: int, items: int, seed: int) -> list[Event]:
    """Many entities, one in five events by a few that are very active: days of events with late ones and ties, in order of arrival."""
    rng = np.random.default_rng(seed)
    at_us = NOON + np.sort(rng.integers(0, 2 * DAY // MINUTE, events)) * MINUTE
    kinds = rng.choice(["view", "view", "click", "purchase", "search"], events).tolist()
    delays = rng.choice([0, 0, 0, SECOND, HOUR, DAY + 1], events)
    arrivals = sorted(range(events), key=lambda number: (at_us[number] + delays[number], number))
    busy = rng.random(events) < 0.2
    who = np.where(busy, rng.geometric(0.4, events) - 1, rng.integers(0, users, events))
    what = np.where(busy & (rng.random(events) < 0.3), rng.geometric(0.4, events) - 1, rng.integers(0, items, events))
    prices, quantities = rng.choice([0.1, 0.25, 3.0, 1e6], events), rng.integers(1, 5, events)
    return [
        {
            "event_id": f"e{number:07}",
            "type": kinds[number],
            "user_key": f"u{who[number]}",
            "user_id": f"u{who[number]}",
            "item_id": None if kinds[number] == names.SEARCH else f"i{what[number]}",
            "query": f"q{what[number] % 900}" if kinds[number] == names.SEARCH else None,
            "timestamp": int(at_us[number]),
            "received_at": int(at_us[number] + delays[number]),
            "price": float(prices[number]),
            "quantity": int(quantities[number]),
        }
        for number in arrivals
    ]


def crawl(events: int, seconds: int, seed: int) -> list[Event]:
    """One visitor, who is its only item's only one too, with a different price, query and time in almost every event."""
    rng = np.random.default_rng(seed)
    times = NOON + np.sort(rng.integers(0, seconds * SECOND, events))
    return [
        {
            "event_id": f"e{number:05}",
            "type": "view",
            "user_key": "crawler",
            "user_id": "crawler",
            "item_id": "crawler",
            "query": f"q{rng.integers(10**6)}",
            "timestamp": at_us,
            "received_at": at_us,
            "price": float(rng.integers(1, 10**6)) / 7,
            "quantity": int(rng.integers(1, 10**6)),
        }
        for number, at_us in enumerate(times.tolist())
    ]


def bridged(events: int, gap_us: int, seed: int) -> list[Event]:
    """One visitor's views, each `gap_us` after the one before; all of them arrive at the end, in any order."""
    order = random.Random(seed).sample(range(events), events)
    end_us = NOON + (events - 1) * gap_us
    return [
        {
            "event_id": f"e{number:03}",
            "type": "view",
            "user_key": "bridge",
            "user_id": "bridge",
            "item_id": "bridge",
            "timestamp": NOON + number * gap_us,
            "received_at": end_us + place,
        }
        for place, number in enumerate(order)
    ]
