"""Keeps a replica's columns as current as the store: reads the change feed, then the rows that it names, several times a second."""

import logging
import threading
import time
from typing import Final

from headrace import names
from headrace.clock import Clock
from headrace.identity import shard_of
from headrace.stores.change_feed import Changes
from serving.interfaces import STORE_ERRORS
from serving.metrics import RecommenderMetrics
from serving.replica import Replica
from serving.store import Readers, chunks

logger = logging.getLogger(__name__)

EVERY_S: Final = 0.05
SWEPT_AT_ONCE: Final = 2_048
_WAIT_AFTER_FAILURE_S: Final = 0.5


class Follower:
    def __init__(self, replica: Replica, clock: Clock, metrics: RecommenderMetrics) -> None:
        self._replica = replica
        self._clock = clock
        self._metrics = metrics
        self._current_at = time.monotonic()
        self._untaken: tuple[Readers, Changes] | None = None
        """What the feed told once and will not tell again, while reading the rows that it names fails."""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="follower", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(2.0)

    def follow_once(self) -> None:
        """Take in what has changed since the last time. Raises STORE_ERRORS: then the next time takes it in."""
        with self._replica.changing:
            readers = self._replica.live.readers
            if readers is None:
                return
            asked_at = time.monotonic()
            changes = readers.feed.poll()
            readers.bulk.note(changes.statuses.values())
            if self._untaken is not None and self._untaken[0] is readers:
                changes = _both(self._untaken[1], changes)
            self._untaken = readers, changes
            self._take(readers, changes)
            self._untaken = None
            self._replica.reached = _reached_by_all(changes)
            self._current_at = asked_at
        self._replica.sweep(self._clock(), SWEPT_AT_ONCE)

    def _take(self, readers: Readers, changes: Changes) -> None:
        """Items first: activity of an item that is not known yet would have no place."""
        keys = {view: set(found) for view, found in changes.keys.items()}
        if changes.reload:
            held = self._replica.live.state.catalogue.item_ids
            own = {item for item in held if shard_of(item, readers.shards) in changes.reload}
            for view, found in readers.item_keys(changes.reload).items():
                keys[view] = keys.get(view, set()) | found | own
        catalogued = keys.get(names.ITEM_CATALOGUE, set())
        items = catalogued | keys.get(names.ITEM_STATUS, set())
        known = self._replica.live.state.catalogue.row_of
        if self._replica.by_activity and catalogued:  # from now on it has a catalogue: what is not in it is no item
            self._replica.by_activity, self._replica.read_anew = False, True
        by_activity = self._replica.by_activity
        if by_activity:
            items |= {item for item in keys.get(names.ITEM_ACTIVITY, set()) if item not in known}
        new = {item for item in items if item not in known}
        for chunk in chunks(sorted(items)):
            self._replica.take_items(readers.item_changes(chunk, without_row=by_activity))
        known_now = self._replica.live.state.catalogue.row_of
        active = {item for item in keys.get(names.ITEM_ACTIVITY, set()) | new if item in known_now}
        if self._replica.live.state.activity is not None:
            for chunk in chunks(sorted(active)):
                self._replica.take_activity(readers.item_activity(chunk))

    def _run(self) -> None:
        wait_s = EVERY_S
        while not self._stop.wait(wait_s):
            wait_s = EVERY_S
            try:
                self.follow_once()
                self._replica.live.problems.pop("feed", None)
            except STORE_ERRORS as error:
                self._say(f"{type(error).__name__}: {error}")
                wait_s = _WAIT_AFTER_FAILURE_S
            except Exception:
                # The thread must outlive a fault of ours: columns that stand still are named by their age.
                logger.exception("the replica's columns could not follow the store")
                wait_s = _WAIT_AFTER_FAILURE_S
            self._metrics.change_feed_lag.set(time.monotonic() - self._current_at)

    def _say(self, trouble: str) -> None:
        if "feed" not in self._replica.live.problems:
            logger.warning("the columns of items stand still: %s", trouble)
        self._replica.live.problems["feed"] = trouble[:300]


def _both(before: Changes, now: Changes) -> Changes:
    views = before.keys.keys() | now.keys.keys()
    keys = {view: before.keys.get(view, set()) | now.keys.get(view, set()) for view in views}
    return Changes(now.statuses, keys, before.reload | now.reload)


def _reached_by_all(changes: Changes) -> dict[int, int]:
    """By log partition, the lowest position of any shard."""
    positions = [status.positions for status in changes.statuses.values()]
    return {p: min(each.get(p, 0) for each in positions) for p in set().union(*positions)}
