"""Keeps what a replica has in service current beside the feed: definitions, the champion's bundle, the orders, the snapshot on disk.

Everything is built aside and put in service by one change between two requests, so none sees a mix. What cannot be loaded is refused by
name, and the old stays in service.
"""

import logging
import threading
import time
from pathlib import Path
from typing import Final

import numpy as np
import redis

from headrace.arrays import Ints
from headrace.clock import Clock
from headrace.models.bundle import Bundle, BundleError, check_fit
from headrace.settings import Settings
from headrace.stores.definitions import Definitions
from headrace.stores.models import BundleRef, read_champion, read_pointer, write_pointer
from serving import catalogue as cat
from serving import snapshot
from serving.catalogue import Catalogue, Orders
from serving.interfaces import STORE_ERRORS
from serving.metrics import RecommenderMetrics
from serving.orders import by_id, make_orders
from serving.replica import Live, Replica, fill
from serving.snapshot import SnapshotError
from serving.store import Readers, missing_features, open_readers

logger = logging.getLogger(__name__)

LOOK_EVERY_S: Final = 0.5
ORDERS_EVERY_S: Final = 1.0
SNAPSHOT_EVERY_S: Final = 30.0
SNAPSHOT_PAUSE_S: Final = 0.001
# New orders may take at most this share of the time, so that a large catalogue does not starve requests.
ORDERS_SHARE: Final = 0.03
REFUSED_RETRY_S: Final = 10.0
REQUEST_TIMEOUT_S: Final = 0.05


class Refresher:
    """Call `refresh_once` before the first request, then `start`."""

    def __init__(self, settings: Settings, replica: Replica, clock: Clock, metrics: RecommenderMetrics) -> None:
        self._settings = settings
        self._replica = replica
        self._clock = clock
        self._metrics = metrics
        # However long they take: orders must not go out of date by that.
        self._most_s = settings.feature_age_bound_s / 2
        self._snapshot_path = settings.data / "serving" / "snapshot.arrow"
        self._last_good = settings.data / "serving" / "last_good.json"
        self._saved_at = -SNAPSHOT_EVERY_S
        self._bundle: Bundle | None = None
        self._bundle_ref: BundleRef | None = None
        self._refused: tuple[BundleRef, float] | None = None
        self._registry: tuple[int, int] | None = None
        self._read_by: Definitions | None = None
        self._ordered: Catalogue | None = None
        self._by_id: Ints = np.zeros(0, np.int64)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="refresher", daemon=True)

    @property
    def live(self) -> Live:
        return self._replica.live

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(2.0)
        self._save()
        if self.live.readers is not None:
            self.live.readers.close()

    def refresh_once(self) -> None:
        """Everything once, starting from the last good snapshot."""
        try:
            last = snapshot.load(self._snapshot_path)
        except SnapshotError as error:
            self._note_problem("snapshot", error)
        else:
            self._replica.replace_state(last or Catalogue(), None, None)
        self.refresh_store()
        self.refresh_model()
        self.refresh_orders()
        self.tidy()
        self.live.refreshed = True

    def refresh_store(self) -> None:
        """Readers by the definitions that are registered now, and all items anew where those have changed."""
        registry = file_version(self._settings.registry_path)
        readers = self.live.readers
        same = readers is not None and registry == self._registry and readers.definitions == self._read_by
        if same and not self._replica.read_anew:
            self.live.problems.pop("store", None)
            return
        try:
            with self._replica.changing:
                readers = open_readers(self._settings, REQUEST_TIMEOUT_S)
                try:
                    self._read_all(readers)
                except BaseException:
                    readers.close()
                    raise
        except STORE_ERRORS as error:
            self._note_problem("store", error)
            return
        self._registry, self._read_by = registry, readers.definitions
        self.live.problems.pop("store", None)
        self._check_names(readers.definitions)
        self._check_model()

    def _read_all(self, readers: Readers) -> None:
        activity, catalogue = readers.new_activity(), Catalogue(cat.LIVE)
        now_us = self._clock()
        is_named = fill(catalogue, activity, readers, self._bundle, now_us)
        if activity is None:
            self._note_problem(
                "items", "the stored state has no item activity: run `headrace apply` and `headrace backfill`"
            )
        else:
            self.live.problems.pop("items", None)
        as_of_us = 0 if activity is None else max(now_us, activity.newest_us + 1)
        catalogue.orders = make_orders(catalogue, activity, self._order_of_ids(catalogue, len(catalogue)), as_of_us)
        try:
            self._replica.replace_state(catalogue, activity, self._bundle)
        except BundleError as error:
            # Items as they are now, without a model: the champion is tried again, and refused by name.
            logger.warning("the model in service does not fit the items any more: %s", error)
            self._replica.replace_state(catalogue, activity, None)
            self._bundle, self._bundle_ref = None, None
        self._replica.by_activity, self._replica.read_anew = not is_named, False
        self._replica.replace_readers(readers)

    def refresh_model(self) -> None:
        """Put a new champion in service, or refuse it and say why."""
        try:
            ref = read_champion(self._settings)
        except (OSError, ValueError, LookupError, TypeError) as error:
            self._note_problem("champion", error)
            if self._bundle is None:
                self._serve_last_good(None)
            return
        if ref == self._bundle_ref:
            self.live.problems.pop("champion", None)
        if ref is None or ref == self._bundle_ref or self._was_refused(ref):
            return
        try:
            self._put_in_service(ref)
        except BundleError as error:
            self._refused = (ref, time.monotonic())
            self._metrics.refused_bundles.inc()
            self._note_problem("champion", f"version {ref.version} is refused: {error}")
            if self._bundle is None:
                self._serve_last_good(ref)
        else:
            self._refused = None
            self.live.problems.pop("champion", None)

    def _put_in_service(self, ref: BundleRef) -> None:
        """Raises BundleError, and then what was in service stays."""
        try:
            bundle = Bundle.load(_inside(ref.path, self._settings))
        except BundleError:
            raise
        except Exception as error:
            # Whatever damaged files make their readers raise: it must be named, and nothing else stop.
            raise BundleError(f"bundle {ref.path.name} cannot be read: {type(error).__name__}: {error}") from error
        self._check_fit(bundle)
        self._replica.swap_model(bundle, self._clock())
        if self.live.state.catalogue.origin == cat.NONE:
            self._replica.take_orders(_orders_of(bundle, self.live.state.catalogue), origin=cat.BUNDLE)
        self._bundle, self._bundle_ref = bundle, ref
        self._metrics.model_in_service(bundle.version)
        self._metrics.swaps.inc()
        logger.info("bundle %s in service", bundle.version)
        self.live.problems.pop("model", None)
        if self.live.readers is None:  # whether it fits the store is not known
            return
        try:
            write_pointer(self._last_good, ref)
        except OSError as error:
            self._note_problem("last good", error)
        else:
            self.live.problems.pop("last good", None)

    def _serve_last_good(self, refused: BundleRef | None) -> None:
        """A replica that starts while the champion is refused has no old one to keep: it takes what was in service last, and fitted."""
        try:
            last = read_pointer(self._last_good)
            if last is not None and last != refused:
                self._put_in_service(last)
        except (BundleError, OSError, ValueError, LookupError, TypeError) as error:
            logger.warning("what was in service last cannot be either: %s", error)

    def refresh_orders(self) -> None:
        """Orders as of now."""
        state, count = self.live.state, self._replica.count()
        self._metrics.catalogue_items.set(count)
        self._metrics.index_items.set(self._replica.model.index_size if self._replica.model else 0)
        if state.activity is None:
            return
        now_us = max(self._clock(), state.activity.newest_us + 1)
        orders = make_orders(state.catalogue, state.activity, self._order_of_ids(state.catalogue, count), now_us)
        self._replica.take_orders(orders)

    def tidy(self) -> None:
        """A worn index built anew; every so often a snapshot on disk."""
        self._replica.renew_index()
        if time.monotonic() - self._saved_at >= SNAPSHOT_EVERY_S:
            self._save()

    def _order_of_ids(self, catalogue: Catalogue, count: int) -> Ints:
        if self._ordered is not catalogue or len(self._by_id) != count:
            self._ordered, self._by_id = catalogue, by_id(catalogue, count)
        return self._by_id

    def _run(self) -> None:
        next_orders = 0.0
        while not self._stop.wait(LOOK_EVERY_S):
            try:
                self.refresh_store()
                self.refresh_model()
                if time.monotonic() >= next_orders:
                    worked_s = time.thread_time()
                    self.refresh_orders()
                    worked_s = time.thread_time() - worked_s
                    next_orders = time.monotonic() + min(max(ORDERS_EVERY_S, worked_s / ORDERS_SHARE), self._most_s)
                    self.tidy()
            except (redis.RedisError, OSError) as error:
                self._note_problem("store", error)
            except Exception:
                # The thread must outlive a fault of ours: an old state is better than one that never changes again.
                logger.exception("a refresh failed; the old state stays in service")

    def _check_fit(self, bundle: Bundle) -> None:
        """Raises BundleError when the bundle was trained on other definitions than the store holds. What it holds is not known before
        there are readers; `_check_model` asks again once there are.
        """
        if self.live.readers is not None:
            streams = self.live.readers.definitions.streams
            check_fit(bundle.manifest.fingerprints, {name: spec.fingerprint for name, spec in streams.items()})

    def _check_model(self) -> None:
        """Where the state is of another definition than before, a model that was refused may fit, and one in service not."""
        self._refused = None
        if self._bundle is None:
            self.live.problems.pop("model", None)
            return
        try:
            self._check_fit(self._bundle)
        except BundleError as error:
            self._note_problem("model", f"the model in service: {error}")
            # Another one, where this came into service while the store was away.
            self._serve_last_good(self._bundle_ref)
        else:
            self.live.problems.pop("model", None)

    def _check_names(self, definitions: Definitions) -> None:
        missing = missing_features(definitions)
        if missing:
            self._note_problem(
                "features", f"{', '.join(missing)}: not defined any more; popularity and filters go without"
            )
        else:
            self.live.problems.pop("features", None)

    def _was_refused(self, ref: BundleRef) -> bool:
        return (
            self._refused is not None
            and self._refused[0] == ref
            and time.monotonic() - self._refused[1] < REFUSED_RETRY_S
        )

    def _save(self) -> None:
        catalogue = self.live.state.catalogue
        if catalogue.origin != cat.LIVE or not len(catalogue.orders.popular):
            return
        self._saved_at = time.monotonic()
        try:
            snapshot.save(catalogue, self._snapshot_path, lambda: self._stop.wait(SNAPSHOT_PAUSE_S))
        except OSError as error:
            self._note_problem("snapshot", error)
        else:
            self.live.problems.pop("snapshot", None)

    def _note_problem(self, part: str, what: object) -> None:
        message = str(what).splitlines()[0][:300] if str(what) else type(what).__name__
        if self.live.problems.get(part) != message:
            logger.warning("%s: %s", part, message)
        self.live.problems[part] = message


def _orders_of(bundle: Bundle, catalogue: Catalogue) -> Orders:
    """Where neither store nor snapshot has been read: the bundle's own view of the shop, which has the most popular first."""
    rows = catalogue.rows(bundle.snapshot.item_id)
    return Orders(rows, rows[:0], rows[:0], np.zeros(len(rows)), bundle.snapshot.as_of_us)


def file_version(path: Path) -> tuple[int, int] | None:
    """Changes when the file does; None without one."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_mtime_ns, found.st_size


def _inside(path: Path, settings: Settings) -> Path:
    """A bundle's folder, also when the data directory was moved since it was registered."""
    return path if path.is_dir() else settings.bundles_dir / path.name
