"""Feeding a log as collectors do: small entries at a steady pace, appends sent again until they are confirmed, clients that retry."""

import random
import threading
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final

import polars as pl

from headrace import names
from headrace.events import encode_records
from headrace.identity import shard_of
from headrace.ingest.feed import records_of
from headrace.settings import MICROS
from headrace.stores.log import EventLog, LogUnavailableError
from tests.oracles import Event

_TICK_S: Final = 0.02
_PATIENCE_S: Final = 300.0


class Feed:
    """Appends `events` in the order given, `slice_events` at a time, never beyond what `allow` has let through.

    `repeats` is the share of slices after which something is delivered again: the whole entries, as where their confirmation was
    lost, or some earlier records with a later `received_at` among the next ones, as where a client had no answer.
    """

    def __init__(self, log: EventLog, events: pl.DataFrame, slice_events: int, repeats: float, seed: int) -> None:
        self.total = events.height
        self.sent = 0
        self.unconfirmed = 0
        self._log = log
        self.events = events
        self._slice_events = slice_events
        self._repeats = repeats
        self._random = random.Random(seed)
        self._recent: deque[Event] = deque(maxlen=2_000)
        self._retries: list[Event] = []
        self._allowed = 0
        self._stopped = False
        self._change = threading.Condition()
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="feed")
        self._work: Future[None] = self._worker.submit(self._run)

    def allow(self, events: int) -> None:
        """Let the first `events` through."""
        with self._change:
            self._allowed = events
            self._change.notify()

    def finish(self) -> None:
        """Let the rest through and wait for it."""
        self.allow(self.total)
        self._work.result(_PATIENCE_S)

    def stop(self) -> None:
        """Give up what has not been sent."""
        with self._change:
            self._stopped = True
            self._change.notify()
        self._worker.shutdown()

    def _run(self) -> None:
        while self.sent < self.total:
            with self._change:
                self._change.wait_for(lambda: self._stopped or self._allowed > self.sent)
                if self._stopped:
                    return
                step = min(self._slice_events, self._allowed - self.sent)
            payloads, counts = self._entries(list(records_of(self.events.slice(self.sent, step))))
            self._append(payloads, counts)
            self.sent += step
            if self._random.random() < self._repeats:
                if self._random.random() < 0.5:
                    self._append(payloads, counts)
                else:
                    chosen = self._random.choices(self._recent, k=5)
                    self._retries += [one | {names.RECEIVED_AT: one[names.RECEIVED_AT] + 2 * MICROS} for one in chosen]
            threading.Event().wait(_TICK_S)  # the pace of the replay

    def _entries(self, records: list[Event]) -> tuple[dict[int, bytes], dict[int, int]]:
        self._recent.extend(records)
        for retry in self._retries:
            records.insert(self._random.randrange(len(records)), retry)
        self._retries.clear()
        parts: dict[int, list[Event]] = {}
        for record in records:
            parts.setdefault(shard_of(record[names.USER_KEY], self._log.partitions), []).append(record)
        return {p: encode_records(part) for p, part in parts.items()}, {p: len(part) for p, part in parts.items()}

    def _append(self, payloads: dict[int, bytes], counts: dict[int, int]) -> None:
        """Until it is confirmed: what had been appended without an answer is then there twice."""
        while True:
            try:
                if self._stopped:
                    return
                self._log.append(payloads, counts)
            except LogUnavailableError:
                self.unconfirmed += 1
                threading.Event().wait(_TICK_S)
            else:
                return
