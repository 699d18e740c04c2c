"""Keeps a replica's serving state current: the champion's bundle, the catalogue, popularity, the snapshot on disk.

Everything is built aside and put in service by one assignment, so a request sees the old state or the new one, never a
mix. What cannot be loaded is refused by name, and the old stays in service.
"""

import logging
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import redis
from deltalake.exceptions import DeltaError
from polars.exceptions import PolarsError

from headrace.clock import Clock
from headrace.models.bundle import Bundle, BundleError, check_fit
from headrace.settings import Settings
from headrace.stores.definitions import Definitions
from headrace.stores.models import BundleRef, read_champion
from serving import catalogue as cat
from serving.catalogue import Catalogue, SnapshotError
from serving.interfaces import STORE_ERRORS
from serving.metrics import RecommenderMetrics
from serving.model import BundleModel
from serving.state import ServingState
from serving.store import (
    CatalogueRows,
    Popularity,
    Readers,
    items_with_activity,
    missing_features,
    open_readers,
    read_catalogue_rows,
    read_popularity,
)

logger = logging.getLogger(__name__)

MODEL_POLL_S: Final = 0.5
CATALOGUE_REFRESH_S: Final = 2.0
# A refresh may take at most this share of the time, so that a large catalogue does not starve requests.
REFRESH_SHARE: Final = 0.1
REFUSED_RETRY_S: Final = 10.0
REQUEST_TIMEOUT_S: Final = 0.05
MAX_SEEN: Final = 100_000


@dataclass
class Live:
    """What requests read, each by one reference. `problems` names what is wrong now, by part."""

    state: ServingState = field(default_factory=ServingState)
    readers: Readers | None = None
    problems: dict[str, str] = field(default_factory=dict)
    refreshed: bool = False


class Refresher:
    """Call `refresh_once` before the first request, then `start`."""

    def __init__(self, settings: Settings, clock: Clock, metrics: RecommenderMetrics) -> None:
        self.live = Live()
        self._settings = settings
        self._clock = clock
        self._metrics = metrics
        self._snapshot_path = settings.data / "serving" / "snapshot.json"
        self._bundle: Bundle | None = None
        self._bundle_ref: BundleRef | None = None
        self._refused: tuple[BundleRef, float] | None = None
        self._rows: CatalogueRows | None = None
        self._saved: Catalogue | None = None
        self._registry: tuple[int, int] | None = None
        self._read_by: Definitions | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="refresher", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(2.0)
        if self.live.readers is not None:
            self.live.readers.close()

    def refresh_once(self) -> None:
        """Everything once, starting from the last good snapshot."""
        try:
            last = cat.load(self._snapshot_path)
        except SnapshotError as error:
            self._note_problem("snapshot", error)
        else:
            self.live.state = replace(self.live.state, catalogue=last or Catalogue())
        self.refresh_readers()
        self.refresh_model()
        self.refresh_catalogue()
        self.live.refreshed = True

    def refresh_readers(self) -> None:
        """Readers by the definitions that are registered now. Where the state is of another definition than before, look again
        whether the model fits it."""
        registry = file_version(self._settings.registry_path)
        if self.live.readers is None or registry != self._registry:
            try:
                self.live.readers = open_readers(self._settings, REQUEST_TIMEOUT_S)
            except STORE_ERRORS as error:
                self._note_problem("store", error)
                return
            self._registry = registry
            self.live.problems.pop("store", None)
        definitions = self.live.readers.definitions
        if definitions != self._read_by:
            self._read_by, self._bundle_ref, self._refused = definitions, None, None
            self._check_names(definitions)

    def refresh_model(self) -> None:
        """Put a new champion in service, or refuse it and say why."""
        try:
            ref = read_champion(self._settings)
        except (OSError, ValueError, LookupError, TypeError) as error:
            self._note_problem("champion", error)
            return
        if ref is None or ref == self._bundle_ref or self._was_refused(ref):
            return
        try:
            bundle = Bundle.load(_inside(ref.path, self._settings))
            self._check_fit(bundle)
            rows = self._read_rows(bundle, self._clock())
            model = self._model_of(bundle, rows)
        except BundleError as error:
            self._refused = (ref, time.monotonic())
            self._metrics.refused_bundles.inc()
            self._note_problem("champion", f"version {ref.version} is refused: {error}")
            return
        self._bundle, self._bundle_ref, self._refused, self._rows = bundle, ref, None, rows
        known = self._with_bundled_items(self.live.state.catalogue)
        self.live.state = ServingState(model, known)
        self.live.problems.pop("champion", None)
        self._metrics.swaps.inc()
        self._metrics.model_in_service(model.version)
        logger.info("bundle %s in service", bundle.version)

    def refresh_catalogue(self) -> None:
        """Catalogue, availability and popularity as of now; a snapshot on disk when they changed."""
        now_us = self._clock()
        rows = self._read_rows(self._bundle, now_us)
        previous = self.live.state.catalogue
        snapshot = self._bundle.snapshot if self._bundle else None
        seen = self._seen_items() if rows is None else []
        item_ids = list(
            dict.fromkeys([*(rows.item_ids if rows else []), *(snapshot.item_id if snapshot else []), *seen])
        )
        popularity = self._read_popularity(item_ids, now_us)
        catalogue = cat.build(item_ids, rows, popularity, snapshot, previous, now_us)
        model = self.live.state.model
        if self._bundle is not None and rows is not None and rows is not self._rows:
            try:
                model = self._model_of(self._bundle, rows)
            except BundleError as error:
                self._note_problem("catalogue", error)
        self._rows = rows
        self.live.state = ServingState(model, catalogue)
        self._metrics.catalogue_items.set(len(catalogue.popular))
        self._save(catalogue)

    def _run(self) -> None:
        next_catalogue = 0.0
        while not self._stop.wait(MODEL_POLL_S):
            try:
                self.refresh_readers()
                self.refresh_model()
                if time.monotonic() >= next_catalogue:
                    begun = time.monotonic()
                    self.refresh_catalogue()
                    took = time.monotonic() - begun
                    next_catalogue = begun + max(CATALOGUE_REFRESH_S, took / REFRESH_SHARE)
            except Exception:
                # The thread must outlive a fault of ours: an old state is better than one that never changes again.
                logger.exception("a refresh failed; the old state stays in service")

    def _model_of(self, bundle: Bundle, rows: CatalogueRows | None) -> BundleModel:
        """Ready for its first request. Raises BundleError."""
        model = BundleModel(bundle, rows.columns if rows else None)
        model.warm_up(self._clock())
        return model

    def _read_rows(self, bundle: Bundle | None, now_us: int) -> CatalogueRows | None:
        """The catalogue with what this bundle reads of it; the last one where the lake cannot be read."""
        features = bundle.preprocessing.content_features if bundle else ()
        try:
            rows = read_catalogue_rows(self._settings, features, now_us, self._rows)
        except (OSError, DeltaError, PolarsError) as error:
            self._note_problem("catalogue", error)
            return self._rows
        self.live.problems.pop("catalogue", None)
        return rows

    def _seen_items(self) -> list[str]:
        if self.live.readers is None:
            return []
        try:
            return items_with_activity(self.live.readers.client, MAX_SEEN)
        except redis.RedisError as error:
            self._note_problem("store", error)
            return []

    def _read_popularity(self, item_ids: Sequence[str], now_us: int) -> Popularity | None:
        if self.live.readers is None:
            return None
        try:
            popularity = read_popularity(self.live.readers.bulk, item_ids, now_us)
            self.live.readers.client.ping()  # also where there is no item to read of
        except STORE_ERRORS as error:
            self._note_problem("store", error)
            return None
        self.live.problems.pop("store", None)
        return popularity

    def _check_fit(self, bundle: Bundle) -> None:
        """Raises BundleError when the bundle was trained on other definitions than the store holds."""
        streams = self.live.readers.definitions.streams if self.live.readers else {}
        check_fit(bundle.manifest.fingerprints, {name: spec.fingerprint for name, spec in streams.items()})

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

    def _with_bundled_items(self, catalogue: Catalogue) -> Catalogue:
        """So that a model put in service finds its items known at once, before the next refresh of the catalogue."""
        snapshot = self._bundle.snapshot if self._bundle else None
        if snapshot is None or catalogue.known.issuperset(snapshot.item_id):
            return catalogue
        item_ids = list(dict.fromkeys([*catalogue.popular, *snapshot.item_id]))
        return cat.build(item_ids, self._rows, None, snapshot, catalogue, self._clock())

    def _save(self, catalogue: Catalogue) -> None:
        same = self._saved is not None and _orders(self._saved) == _orders(catalogue)
        if catalogue.origin != cat.LIVE or not catalogue.popular or same:
            return
        try:
            cat.save(catalogue, self._snapshot_path)
        except OSError as error:
            self._note_problem("snapshot", error)
        else:
            self._saved = catalogue
            self.live.problems.pop("snapshot", None)

    def _note_problem(self, part: str, what: object) -> None:
        message = str(what).splitlines()[0][:300] if str(what) else type(what).__name__
        if self.live.problems.get(part) != message:
            logger.warning("%s: %s", part, message)
        self.live.problems[part] = message


def _orders(catalogue: Catalogue) -> tuple[Any, ...]:
    return (catalogue.popular, catalogue.trending, catalogue.newest, catalogue.unavailable)


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
