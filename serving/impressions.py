"""Impressions go into the event log after the answer: a bounded queue and a thread, so no request waits for the log."""

import logging
import queue
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import orjson

from headrace import names
from headrace.events import MODEL_VERSION_CHARS, SCHEMA_VERSION, Context
from headrace.identity import user_key
from headrace.stores.log import LogUnavailableError
from serving.answers import UNKNOWN
from serving.candidates import Slate
from serving.committer import LogWriter, Record
from serving.metrics import RecommenderMetrics

logger = logging.getLogger(__name__)

MAX_WAITING_SLATES: Final = 2_000
MAX_GROUP_SLATES: Final = 500
LINGER_S: Final = 0.1
"""How long slates gather. Each write to the log is one flush of the disk, in which the store answers nobody."""
NO_MODEL_VERSION: Final = "none"
_SURE: Final = b'"propensity":1.0,'
_EXPLORED: Final = b'"propensity":%%b,"properties":"{\\"%b\\":%%b,\\"%b\\":%%b}",' % (
    names.GREEDY.encode(),
    names.DRAWN.encode(),
)


@dataclass(frozen=True)
class Shown:
    """A slate as it was answered. `who`: `user_id`, `anonymous_id`, `session_id` as far as the request has them."""

    slate: Slate
    request_id: str
    who: dict[str, str]
    context: Context | None
    shown_us: int

    def __len__(self) -> int:
        return len(self.slate.item_ids) + len(self.slate.unknown)

    @property
    def user_key(self) -> str:
        return user_key(self.who.get("user_id"), self.who.get("anonymous_id"))


def lines_of(shown: Shown) -> bytes:
    """A line of JSON for each item shown, by position. What is the same of all of them is encoded once.

    They are what `encode_records` makes of the records of valid events: everything comes from a request that was validated, and from us.
    Without exploration the propensity is 1: the slate is a function of the features. An event id is made of the request's id and the place,
    so an impression written twice counts once.
    """
    slate = shown.slate
    same: Record = {
        "type": names.IMPRESSION,
        **shown.who,
        "user_key": shown.user_key,
        "timestamp": shown.shown_us,
        "received_at": shown.shown_us,
        "request_id": shown.request_id,
        "model_version": (slate.model_version or NO_MODEL_VERSION)[:MODEL_VERSION_CHARS],
        "as_of": slate.as_of_us,
        "schema_version": SCHEMA_VERSION,
    }
    if shown.context is not None:
        same |= {f"context_{key}": value for key, value in shown.context.model_dump(exclude_none=True).items()}
    end = orjson.dumps(same)[1:]
    start = b'{"event_id":"%b:%d","position":%d,%b"item_id":%b,"source":"%b",'
    request_id, dumps = shown.request_id.encode(), orjson.dumps
    chances = chances_of(slate, len(shown))
    known = zip(slate.item_ids, slate.sources, slate.items.scores.tolist(), strict=True)
    lines = [
        b'%b"score":%b,%b'
        % (start % (request_id, at, at, chances[at], dumps(item), source.encode()), dumps(score), end)
        for at, (item, source, score) in enumerate(known)
    ]
    lines += [
        start % (request_id, at, at, chances[at], dumps(item), UNKNOWN.encode()) + end
        for at, item in enumerate(slate.unknown, start=len(lines))
    ]
    return b"\n".join(lines)


def chances_of(slate: Slate, count: int) -> list[bytes]:
    """What the lines of `count` places say of chance. What stands behind the places that were explored follows from them."""
    lines: list[bytes] = []
    if slate.chances is not None:
        each = (slate.chances.propensities, slate.chances.drawn, slate.chances.greedy)
        shown = zip(*(column[: len(slate.item_ids)].tolist() for column in each), strict=True)
        lines = [
            _EXPLORED % tuple(map(orjson.dumps, (propensity, greedy, drawn))) for propensity, drawn, greedy in shown
        ]
    return lines + [_SURE] * (count - len(lines))


class ImpressionLog:
    """Takes slates at once, writes their impressions in the background. What cannot be kept is dropped and counted."""

    def __init__(self, writer: LogWriter, metrics: RecommenderMetrics) -> None:
        self._writer = writer
        self._metrics = metrics
        self._queue: queue.Queue[Shown | None] = queue.Queue(MAX_WAITING_SLATES)
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._write_until_closed, name="impressions", daemon=True)
        self._thread.start()

    def add(self, shown: Shown) -> None:
        try:
            self._queue.put_nowait(shown)
        except queue.Full:
            self._drop("queue_full", len(shown))

    def close(self, timeout_s: float = 2.0) -> None:
        """Write what waits, for at most `timeout_s`; what waits then is dropped."""
        deadline = time.monotonic() + timeout_s
        self._closing.set()
        try:
            self._queue.put(None, timeout=timeout_s)
        except queue.Full:
            logger.warning("the queue of impressions is full and does not move; what waits in it is dropped")
        self._thread.join(max(0.0, deadline - time.monotonic()))
        self._drop("closed", sum(len(shown) for shown in self._take_all()))
        self._queue.put(None)  # the queue is empty: a thread that still writes ends after it

    def _take_all(self) -> list[Shown]:
        left: list[Shown] = []
        while True:
            try:
                waiting = self._queue.get_nowait()
            except queue.Empty:
                return left
            if waiting is not None:
                left.append(waiting)

    def _write_until_closed(self) -> None:
        closing = False
        while not closing:
            group, closing = self._next_group()
            self._write([shown for shown in group if len(shown)])

    def _next_group(self) -> tuple[list[Shown], bool]:
        """What waits now, at most a group of it; and whether the queue was closed behind it."""
        group: list[Shown] = []
        waiting = self._queue.get()
        self._closing.wait(LINGER_S)
        while waiting is not None:
            group.append(waiting)
            if len(group) == MAX_GROUP_SLATES:
                return group, False
            try:
                waiting = self._queue.get_nowait()
            except queue.Empty:
                return group, False
        return group, True

    def _write(self, group: Sequence[Shown]) -> None:
        if not group:
            return
        count = sum(len(shown) for shown in group)
        try:
            self._writer.write_encoded([(shown.user_key, lines_of(shown), len(shown)) for shown in group])
        except LogUnavailableError:
            self._drop("log_unavailable", count)
        except Exception:  # the thread must outlive a fault of ours: later impressions may be good
            logger.exception("%d impressions are lost", count)
            self._drop("failed", count)
        else:
            self._metrics.impressions_logged.inc(count)

    def _drop(self, reason: str, number: int) -> None:
        if number:
            self._metrics.impressions_dropped.labels(reason).inc(number)
