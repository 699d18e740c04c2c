"""The built-in shop: visitors with latent tastes that drift, sessions, and a catalogue. Seeded: a config is a history.

A visitor's taste is a distribution over categories, drawn around that of the visitor's segment and redrawn a little
each day. A session moves between two categories of that taste and stays where it is with probability `_STAY` a step (a
Markov chain); inside a category a segment favours its own brands. So the last few items say what comes next, the
profile helps a newcomer, and popularity alone does poorly. Some sessions are shown a slate by a simple policy (popular
items, half of them of the category last looked at): its impressions carry a `request_id` and positions, and the clicks,
carts and purchases that follow answer it.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import log
from typing import Any, Final

import numpy as np
import pyarrow as pa

from headrace import names
from headrace.ingest.plain_rows import item_table, profile_table
from headrace.ingest.shop import ShopConfig, Stock, Visitors, invite_visitors, stock_shop
from headrace.ingest.source import ItemRow, ProfileRow, RawEvent, SourceRow, content_id, iso
from headrace.settings import DAY_US, HOUR_US, MICROS

__all__ = ["ShopConfig", "ShopHistory", "click_chance", "simulate"]

_STAY: Final = 0.92
_MEAN_STEPS: Final = 7.0
_SLATE_SHARE: Final = 0.4
_SLATE: Final = 6
_POLICY: Final = {"source": "shop", "model_version": "shop-policy"}
_DEVICES: Final = ("desktop", "phone", "tablet")

Event = dict[str, Any]
Draw = Callable[[], float]
"""Returns the next uniform number in [0, 1)."""


@dataclass(frozen=True)
class ShopHistory:
    """What happened in the shop; a `Source` for `ingest`."""

    config: ShopConfig
    items: list[ItemRow]
    users: list[ProfileRow]
    events: list[Event]
    """JSON-able events in the shape of the contract, in (timestamp, event_id) order."""
    name: str = "simulator"

    @property
    def catalogue(self) -> pa.Table:
        """Rows as the lake's `items` table has them."""
        return item_table(self.items)

    @property
    def profiles(self) -> pa.Table:
        """Rows as the lake's `profiles` table has them; anonymous visitors have none."""
        return profile_table(self.users)

    def read(self) -> Iterator[SourceRow]:
        yield from self.items
        yield from self.users
        yield from (RawEvent(event, f"simulator:{number}") for number, event in enumerate(self.events, start=1))


def simulate(config: ShopConfig) -> ShopHistory:
    """Play the shop from `config.start_us` to `config.end_us`."""
    rng = np.random.default_rng(config.seed)
    stock, visitors = stock_shop(config, rng), invite_visitors(config, rng)
    who, when = _arrivals(config, visitors, rng)
    draw = _uniforms(rng).__next__
    played: list[tuple[int, Event]] = []
    for session, (visitor, start_us) in enumerate(zip(who, when, strict=True)):
        if len(played) >= config.events:
            break
        visit = _Visit(config, stock, visitors, visitor, f"session-{session:06d}", start_us, draw)
        visit.play()
        played += visit.events
    named = [(at_us, content_id("shop", repr((at_us, event))), event) for at_us, event in played]
    named.sort(key=lambda entry: entry[:2])
    events = [{"event_id": event_id, "timestamp": iso(at_us), **event} for at_us, event_id, event in named]
    return ShopHistory(config, stock.rows, visitors.rows, events)


def click_chance(is_wanted: bool, is_own: bool, position: int) -> float:
    """That a visitor clicks on what stands at a place of a slate, from 0: an item of the category wanted, of a brand of the own segment."""
    pleases = 0.04 if not is_wanted else 0.6 if is_own else 0.3
    return pleases * 0.92**position


def _arrivals(config: ShopConfig, visitors: Visitors, rng: np.random.Generator) -> tuple[list[int], list[int]]:
    """Who comes and when, in no order; more sessions than are needed, as each makes at least one event."""
    who = rng.choice(config.users, size=config.events, p=visitors.activity)
    by_hour = 1 + 0.8 * np.sin((np.arange(24) - 8) / 24 * 2 * np.pi)
    hour = rng.choice(24, size=config.events, p=by_hour / by_hour.sum())
    day = rng.integers(config.days, size=config.events)
    when = config.start_us + day * DAY_US + hour * HOUR_US + rng.integers(HOUR_US, size=config.events)
    return who.tolist(), when.tolist()


def _uniforms(rng: np.random.Generator) -> Iterator[float]:
    while True:
        yield from rng.random(65_536).tolist()


class _Visit:
    """One session of one visitor: `play` fills `events` with (time, event)."""

    def __init__(
        self,
        config: ShopConfig,
        stock: Stock,
        visitors: Visitors,
        visitor: int,
        session_id: str,
        start_us: int,
        draw: Draw,
    ) -> None:
        self.events: list[tuple[int, Event]] = []
        self._stock = stock
        self._segment = visitors.segment[visitor]
        self._taste = visitors.taste[(start_us - config.start_us) // DAY_US][visitor]
        self._end_us = config.end_us
        self._hour = (start_us - config.start_us) // HOUR_US
        self._now_us = start_us
        self._draw = draw
        device = _DEVICES[int(3 * draw())]
        self._common = visitors.identity[visitor] | {"session_id": session_id, "context": {"device": device}}

    def play(self) -> None:
        draw = self._draw
        category, other = self._fancy(), self._fancy()
        steps = 1 + int(-(_MEAN_STEPS - 1) * log(1 - draw()))
        slate_at = int(draw() * steps) if draw() < _SLATE_SHARE else -1
        if draw() < 0.2:
            self._add(names.SEARCH, query=self._stock.kinds[category])
        for step in range(steps):
            if step and draw() > _STAY:
                category, other = other, category
            if self._now_us >= self._end_us:
                return
            if step == slate_at:
                self._see_slate(category, category if step else None)
            self._look_at(self._stock.pick(category, self._segment, self._hour, draw()), {}, clicks=draw() < 0.3)

    def _fancy(self) -> int:
        """A category by today's taste."""
        return min(bisect_right(self._taste, self._draw() * self._taste[-1]), len(self._taste) - 1)

    def _see_slate(self, wanted: int, last_seen: int | None) -> None:
        """Show distinct items, and follow those that please: mostly of the wanted category, sooner near the top."""
        stock, draw = self._stock, self._draw
        slate: list[int] = []
        for attempt in range(4 * _SLATE):
            of_category = last_seen is not None and attempt % 2 == 0
            item = stock.pick(wanted, -1, self._hour, draw()) if of_category else stock.pick_popular(self._hour, draw())
            if item not in slate and len(slate) < _SLATE:
                slate.append(item)
        request_id = f"{self._common['session_id']}-slate"
        as_of = iso(self._now_us)
        for position, item in enumerate(slate):
            answers = {"request_id": request_id, "position": position}
            score = round(1 / (1 + position), 6)
            self._add(names.IMPRESSION, item, answers, gap_s=0, as_of=as_of, score=score, **_POLICY)
        for position, item in enumerate(slate):
            chance = click_chance(stock.category[item] == wanted, stock.segment[item] == self._segment, position)
            if draw() < chance:
                self._look_at(item, {"request_id": request_id, "position": position}, clicks=True)

    def _look_at(self, item: int, answers: Event, clicks: bool) -> None:
        draw = self._draw
        if clicks:
            self._add(names.CLICK, item, answers, gap_s=2)
        self._add(names.VIEW, item, answers, gap_s=35)
        if draw() < 0.1:
            self._add(names.DWELL, item, answers, gap_s=20, value=round(5 + 60 * draw(), 1))
        if draw() < 0.02:
            self._add(names.LIKE, item, answers, gap_s=5)
        if draw() < 0.01:
            self._add(names.RATE, item, answers, gap_s=10, value=float(1 + int(5 * draw())))
        if draw() < 0.12:
            self._add(names.ADD_TO_CART, item, answers, gap_s=10, quantity=1)
            outcome = draw()
            if outcome < 0.4:
                self._add(names.PURCHASE, item, answers, gap_s=60, quantity=1)
            elif outcome < 0.5:
                self._add(names.REMOVE_FROM_CART, item, answers, gap_s=60)

    def _add(
        self, kind: str, item: int | None = None, answers: Event | None = None, gap_s: float = 10, **fields: Any
    ) -> None:
        """Note an event at the present moment, then let `gap_s` seconds pass in the mean."""
        if self._now_us >= self._end_us:
            return
        event: Event = {"type": kind, **self._common}
        if item is not None:
            event["item_id"] = self._stock.ids[item]
            event["price"] = self._stock.price(item, self._now_us)
        self.events.append((self._now_us, event | (answers or {}) | fields))
        if gap_s:
            self._now_us += 200_000 - int(gap_s * MICROS * log(1 - self._draw()))
