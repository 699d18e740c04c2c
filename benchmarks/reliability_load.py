"""Everyday traffic with every answer checked: slates for random visitors, posts of events, changes of items. Open loop, in a thread.

An answer is right if it is 200 with exactly min(n, eligible) items, each once and each allowed, from one model version; or 429 with
Retry-After. Whatever else comes is a failure (no answer, another status) or wrong (an answer that is not as it must be).
"""

import asyncio
import random
import threading
import time
import uuid
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Any, Final, Self

import orjson

from benchmarks.posting import Answer, Poster
from benchmarks.reliability_shop import AVAILABLE, DELETED, UNAVAILABLE, Item, KnownShop
from headrace import names
from headrace.clock import Clock, from_micros
from headrace.settings import Settings
from serving import candidates as c

RECOMMEND: Final = "/v1/recommend"
ALLOWANCE_MS: Final = 50.0
"""What the way to the replica and back, and this client itself, may add to a deadline."""
OWN_EVENTS: Final = "load-"
"""How the ids of its events begin."""
FAINT: Final = 1e-16
"""Scores of a model in `Load.faint` are below this, those of any other above: an answer of two models gives itself away."""
_TRY_AGAIN_S: Final = 0.5
_EVENT_TYPES: Final = (names.VIEW, names.CLICK, names.ADD_TO_CART, names.PURCHASE)
_EVENT_SHARES: Final = (70, 20, 7, 3)
_STRANGERS: Final = 0.05
SNAPSHOT_S: Final = 60.0
"""An answer that says it is from the snapshot on disk knows the shop as it was, at the most, so long ago."""
_RANKED: Final = frozenset({c.UNKNOWN_USER, c.UNKNOWN_HISTORY, c.STALE_CATALOGUE, c.FROM_SNAPSHOT, c.NO_POPULARITY})
"""Reasons that a slate with the ranker's scores may name; any other may have left the ranker out."""


@dataclass(frozen=True)
class Rates:
    """A second: slates, posts of one to five events, changes of items."""

    slates: float = 50.0
    posts: float = 20.0
    changes: float = 2.0


@dataclass(frozen=True)
class Asked:
    """One request for a slate. `sent_s` is a time of `time.perf_counter`; `wrong` says what is, and is empty where nothing is."""

    sent_s: float
    took_s: float
    status: int
    deadline_ms: float
    degraded: tuple[str, ...] = ()
    wrong: str = ""
    age_ms: float | None = None
    served_ms: float = 0.0
    version: str | None = None
    said: str = ""
    """The begin of an answer that is neither 200 nor 429."""

    @property
    def done_s(self) -> float:
        return self.sent_s + self.took_s

    @property
    def failed(self) -> bool:
        return self.status not in (200, 429)

    @property
    def late(self) -> bool:
        """By the client's watch, which runs from before the request leaves until the answer has been read."""
        return self.status == 200 and self.took_s * 1_000 > self.deadline_ms + ALLOWANCE_MS

    @property
    def served_late(self) -> bool:
        """By the replica's own watch."""
        return self.status == 200 and self.served_ms > self.deadline_ms


@dataclass(frozen=True)
class Posted:
    """One attempt to post events."""

    sent_s: float
    took_s: float
    status: int
    events: int


@dataclass
class Load:
    """Runs between `with` and its end. What was asked and posted is appended to the lists as it ends."""

    settings: Settings
    shop: KnownShop
    visitors: Sequence[Mapping[str, str]]
    rates: Rates
    clock: Clock
    seed: int = 0
    faint: set[str] = field(default_factory=set)
    asked: list[Asked] = field(default_factory=list)
    posted: list[Posted] = field(default_factory=list)
    changed: list[Posted] = field(default_factory=list)
    acknowledged: set[str] = field(default_factory=set)
    """Ids of the events that were."""

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)
        self._stop = threading.Event()
        self._failed: list[BaseException] = []
        self._thread = threading.Thread(target=self._run, name="load", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Waits for what is under way. Raises what ended the load before its time."""
        self._stop.set()
        self._thread.join()
        if self._failed:
            raise self._failed.pop()

    def since(self, sent_s: float) -> list[Asked]:
        """Requests sent from then on that have been answered by now."""
        return [each for each in list(self.asked) if each.sent_s >= sent_s]

    def _run(self) -> None:
        try:
            asyncio.run(self._all())
        except BaseException as error:  # noqa: BLE001 - told by `stop`
            self._failed.append(error)

    async def _all(self) -> None:
        async with (
            Poster(self.settings, RECOMMEND) as slates,
            Poster(self.settings) as events,
            Poster(self.settings, names.ITEMS_PATH) as items,
        ):
            await asyncio.gather(
                self._on_schedule(self.rates.slates, lambda: self._ask(slates)),
                self._on_schedule(self.rates.posts, lambda: self._post(events)),
                self._on_schedule(self.rates.changes, lambda: self._change(items)),
            )

    async def _on_schedule(self, rate: float, act: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """However long an act takes, the next begins when it is due."""
        begun, number = time.perf_counter(), 0
        async with asyncio.TaskGroup() as under_way:
            while rate and not self._stop.is_set():
                await asyncio.sleep(max(0.0, begun + number / rate - time.perf_counter()))
                under_way.create_task(act())
                number += 1

    async def _ask(self, slates: Poster) -> None:
        body = self._request()
        sent_s = time.perf_counter()
        answer = await slates.post(orjson.dumps(body))
        done_s = time.perf_counter()
        self.asked.append(self._judge(body, answer, sent_s, done_s))

    def _request(self) -> dict[str, Any]:
        draw = self._random
        stranger = {"user_id": f"stranger-{draw.randrange(10**9)}"}
        body: dict[str, Any] = dict(stranger if draw.random() < _STRANGERS else draw.choice(self.visitors))
        body["n"] = draw.choice((1, 5, 10, 20, 20, 20, 50))
        if len(self.shop) and draw.random() < 0.4:
            body["exclude"] = draw.choices(self.shop.item_ids, k=draw.randrange(1, 20))
        if len(self.shop) and draw.random() < 0.4:
            body["filter"] = self._filter()
        return body

    def _filter(self) -> dict[str, Any]:
        draw = self._random
        like = self.shop.item(draw.choice(self.shop.item_ids))
        wanted: dict[str, Any] = {}
        if like.category is not None and draw.random() < 0.5:
            wanted["category"] = [like.category]
        if like.brand is not None and draw.random() < 0.3:
            wanted["brand"] = [like.brand]
        if like.price is not None and draw.random() < 0.4:
            wanted |= {"min_price": like.price / 2, "max_price": like.price * 2}
        if draw.random() < 0.2:
            wanted["include_unavailable"] = True
        return wanted

    def _judge(self, body: Mapping[str, Any], answer: Answer, sent_s: float, done_s: float) -> Asked:
        deadline_ms = body.get("deadline_ms", self.settings.deadline_ms)
        bare = Asked(sent_s, done_s - sent_s, answer.status, deadline_ms)
        if answer.status == 429:
            return replace(bare, wrong="" if b"retry-after" in answer.headers else "429 without Retry-After")
        if answer.status != 200:
            return replace(bare, said=answer.body[:200].decode(errors="replace"))
        said = orjson.loads(answer.body)
        return replace(
            bare,
            degraded=tuple(said["degraded"]),
            wrong=self._what_is_wrong(body, said, sent_s, done_s),
            age_ms=said["features_age_ms"],
            served_ms=said["took_ms"],
            version=said["model_version"],
        )

    def _what_is_wrong(self, body: Mapping[str, Any], said: Mapping[str, Any], sent_s: float, done_s: float) -> str:
        item_ids = [item["item_id"] for item in said["items"]]
        wanted, exclude = body.get("filter", {}), body.get("exclude", ())
        if c.FROM_SNAPSHOT in said["degraded"]:
            sent_s -= SNAPSHOT_S
        eligible = self.shop.eligible(wanted, exclude, sent_s, done_s)
        least, most = (min(body["n"], count) for count in eligible)
        if len(set(item_ids)) < len(item_ids):
            return "an item twice"
        if not least <= len(item_ids) <= most:
            return f"{len(item_ids)} items, not {least} to {most}"
        if not set(item_ids).isdisjoint(exclude):
            return "an item that is excluded"
        for item_id in item_ids:
            if not self.shop.may_show(item_id, wanted, sent_s, done_s):
                return f"{item_id}, which may not be shown"
        if "filter" not in body and _RANKED.issuperset(said["degraded"]):
            scores = [item["score"] for item in said["items"]]
            if {score < FAINT for score in scores} != {said["model_version"] in self.faint}:
                return f"scores {min(scores):.3g} to {max(scores):.3g}, which are not of model {said['model_version']}"
        return ""

    async def _post(self, poster: Poster) -> None:
        """Sent until it is acknowledged, as a client does; an event_id counts once."""
        events = [self._event() for _ in range(self._random.randrange(1, 6))]
        if await self._until_taken(poster, {"events": events}, self.posted, len(events)):
            self.acknowledged.update(event["event_id"] for event in events)

    def _event(self) -> dict[str, Any]:
        return {
            "event_id": f"{OWN_EVENTS}{uuid.uuid4()}",
            "type": self._random.choices(_EVENT_TYPES, _EVENT_SHARES)[0],
            **self._random.choice(self.visitors),
            "item_id": self._random.choice(self.shop.item_ids),
            "timestamp": from_micros(self.clock()).isoformat(),
        }

    async def _change(self, poster: Poster) -> None:
        item_id, item, body = self._operation()
        self.shop.change(item_id, item, time.perf_counter())
        if await self._until_taken(poster, body, self.changed, 1):
            self.shop.acknowledge(item_id, time.perf_counter())

    def _operation(self) -> tuple[str, Item, dict[str, Any]]:
        """A change of an item that none is under way of."""
        draw = self._random
        item_id = draw.choice(self.shop.item_ids)
        while self.shop.is_changing(item_id):
            item_id = draw.choice(self.shop.item_ids)
        before, what = self.shop.item(item_id), draw.random()
        if what < 0.2:
            item_id = f"new-{uuid.uuid4()}"
        if what < 0.5:
            price = round(5 + 95 * draw.random(), 2)
            row = {"item_id": item_id, "category": before.category, "brand": before.brand, "price": price}
            given = {name: value for name, value in row.items() if value is not None}
            return item_id, Item(before.category, before.brand, price), {"upsert": [given]}
        if what < 0.6:
            return item_id, replace(before, state=DELETED), {"delete": [item_id]}
        available = before.state != AVAILABLE
        state = AVAILABLE if available else UNAVAILABLE
        body = {"availability": [{"item_id": item_id, "available": available}]}
        return item_id, replace(before, state=state), body

    async def _until_taken(self, poster: Poster, body: Any, into: list[Posted], count: int) -> bool:
        """Whether it was, before the load's end."""
        content = orjson.dumps(body)
        while True:
            sent_s = time.perf_counter()
            answer = await poster.post(content)
            into.append(Posted(sent_s, time.perf_counter() - sent_s, answer.status, count))
            if answer.status == 200:
                refused = orjson.loads(answer.body)["refused"]
                if refused:
                    raise ValueError(f"a good operation was refused: {refused[0]}")
                return True
            if self._stop.is_set():
                return False
            await asyncio.sleep(_TRY_AGAIN_S)
