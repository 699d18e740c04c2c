"""Impressions go into the event log after the answer: a bounded queue and a thread, so no request waits for the log."""

import queue
import threading
from collections.abc import Sequence
from typing import Any, Final

from headrace import names
from headrace.clock import from_micros
from headrace.events import Context, EventIn, to_record
from headrace.stores.log import LogUnavailableError
from serving.candidates import Slate
from serving.committer import LogWriter, Record
from serving.metrics import RecommenderMetrics

MAX_WAITING_SLATES: Final = 2_000
MAX_GROUP_SLATES: Final = 100
NO_MODEL_VERSION: Final = "none"


def impressions_of(
    slate: Slate, request_id: str, who: dict[str, Any], context: Context | None, shown_us: int
) -> list[Record]:
    """A record for each item shown. `who`: `user_id`, `anonymous_id`, `session_id` as far as the request has them.

    The propensity is 1: the slate is a function of the features. The event id is made of the request's id and the
    place, so an impression written twice counts once.
    """
    return [
        to_record(
            EventIn(
                event_id=f"{request_id}:{position}",
                type=names.IMPRESSION,
                item_id=candidate.item_id,
                timestamp=from_micros(shown_us),
                request_id=request_id,
                position=position,
                score=candidate.score,
                source=candidate.source,
                model_version=slate.model_version or NO_MODEL_VERSION,
                as_of=from_micros(slate.as_of_us),
                propensity=1.0,
                context=context,
                **who,
            ),
            shown_us,
            shown_us,
        )
        for position, candidate in enumerate(slate.items)
    ]


class ImpressionLog:
    """Takes records at once, writes them in the background. What cannot be kept is dropped and counted."""

    def __init__(self, writer: LogWriter, metrics: RecommenderMetrics) -> None:
        self._writer = writer
        self._metrics = metrics
        self._queue: queue.Queue[list[Record] | None] = queue.Queue(MAX_WAITING_SLATES)
        self._thread = threading.Thread(target=self._write_until_closed, name="impressions", daemon=True)
        self._thread.start()

    def add(self, records: list[Record]) -> None:
        try:
            self._queue.put_nowait(records)
        except queue.Full:
            self._metrics.impressions_dropped.labels("queue_full").inc(len(records))

    def close(self, timeout_s: float = 2.0) -> None:
        """Write what waits, for at most `timeout_s`."""
        try:
            self._queue.put(None, timeout=timeout_s)
        except queue.Full:
            return
        self._thread.join(timeout_s)

    def _write_until_closed(self) -> None:
        while True:
            slates, closing = self._next_group()
            if slates:
                self._write([record for records in slates for record in records])
            if closing:
                return

    def _next_group(self) -> tuple[list[list[Record]], bool]:
        """What waits now, at most a group of it; and whether the queue was closed behind it."""
        group: list[list[Record]] = []
        waiting = self._queue.get()
        while waiting is not None:
            group.append(waiting)
            if len(group) == MAX_GROUP_SLATES:
                return group, False
            try:
                waiting = self._queue.get_nowait()
            except queue.Empty:
                return group, False
        return group, True

    def _write(self, records: Sequence[Record]) -> None:
        try:
            self._writer.write(records)
        except LogUnavailableError:
            self._metrics.impressions_dropped.labels("log_unavailable").inc(len(records))
        else:
            self._metrics.impressions_logged.inc(len(records))
