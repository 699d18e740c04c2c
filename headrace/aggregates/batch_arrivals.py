"""Events that were under way: they happened before the time asked about, and arrived after it."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from headrace.aggregates.batch_events import Events
from headrace.aggregates.batch_order import Ordered, first_places, places_before
from headrace.arrays import Ints
from headrace.kernel import kernel

_MAX_COPIED_EVENTS: Final = 4_000_000


@dataclass(frozen=True)
class Part:
    """Some of the pairs, and the events that they may see."""

    rows: Ints
    """(Q,) the pairs' own rows, ascending; `asked` numbers them from 0."""
    events: Events
    asked: Ordered


def split_by_arrival(events: Events, asked: Ordered) -> Iterator[Part]:
    """Leaves out, for each pair, what had not arrived by its time.

    Pairs with nothing under way, most of them, see the events as they are; each of the others its own copy of what had
    arrived, some million events at a time.
    """
    assert events.received is not None
    first, last = first_places(events.order, asked), places_before(events.order, asked, asked.times)
    newest = _newest_arrival(events.received, events.order.starts)
    under_way = np.zeros(len(last), dtype=np.bool_)
    seen = last > first
    under_way[seen] = newest[last[seen] - 1] > asked.times[seen]
    yield _part(events, asked.select(~under_way))
    touched = np.flatnonzero(under_way)
    batches = np.cumsum((last - first)[touched]) // _MAX_COPIED_EVENTS
    for places in np.split(touched, np.flatnonzero(np.diff(batches)) + 1):
        if len(places):
            yield _part(*_copied(events, asked, places, first[places], last[places]))


def _part(events: Events, asked: Ordered) -> Part:
    rows = np.sort(asked.rows)
    return Part(rows, events, replace(asked, rows=np.searchsorted(rows, asked.rows)))


def _copied(events: Events, asked: Ordered, places: Ints, first: Ints, last: Ints) -> tuple[Events, Ordered]:
    """Some pairs, each an entity of its own, and the events that had arrived by its time."""
    assert events.received is not None
    times = asked.times[places]
    kept, starts = _arrived(events.received, first, last, times)
    copies = Events(
        frame=events.frame,
        order=Ordered(events.order.rows[kept], events.order.times[kept], starts),
        types=events.types[kept],
        received=events.received[kept],
        type_names=events.type_names,
    )
    return copies, Ordered(asked.rows[places], times, np.arange(len(places) + 1))


@kernel
def _newest_arrival(received: Ints, starts: Ints) -> Ints:
    """(E,) the latest arrival among an entity's events up to each place."""
    newest = received.copy()
    for entity in range(len(starts) - 1):
        for place in range(starts[entity] + 1, starts[entity + 1]):
            newest[place] = max(newest[place], newest[place - 1])
    return newest


@kernel
def _arrived(received: Ints, first: Ints, last: Ints, times: Ints) -> tuple[Ints, Ints]:
    """Places that had arrived, pair after pair, and where those of each pair start."""
    total = 0
    for pair in range(len(first)):
        total += last[pair] - first[pair]
    kept, starts = np.empty(total, np.int64), np.zeros(len(first) + 1, np.int64)
    at = 0
    for pair in range(len(first)):
        for place in range(first[pair], last[pair]):
            if received[place] <= times[pair]:
                kept[at] = place
                at += 1
        starts[pair + 1] = at
    return kept[:at], starts
