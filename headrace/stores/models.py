"""Model registry: which bundles there are, what they measured, and which one is in service.

MLflow keeps versions, metrics, aliases and what was in service before (SQLite by default); the bundle stays a folder. The champion
also stands in a small file, so that a serving replica can look for a new one every second without MLflow.

What was in service is a stack: a promotion puts its version on top, a rollback takes versions off until another one is on top. The pointer
file has the last word on what is on top: replicas go by it.
"""

import fcntl
import json
import logging
import os
import sqlite3
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from headrace import names
from headrace.clock import Clock, system_clock
from headrace.settings import Settings

if TYPE_CHECKING:
    from mlflow import MlflowClient

POINTER: Final = "champion.json"
_POINTER_LOCK: Final = "champion.lock"
_SERVED: Final = "served"
# MLflow bounds the length of a tag.
_MOST_SERVED: Final = 100
_LOCK_WAIT_S: Final = 30.0


class RegistryError(RuntimeError):
    """A version that is not there, a bundle folder that is gone, or an MLflow that takes nothing."""


class ChampionMovedError(RegistryError):
    """Another version came into service than the one that a promotion was judged against."""


@dataclass(frozen=True)
class BundleRef:
    """A registered bundle. `promoted_at` is in Unix microseconds, None until it is promoted."""

    version: str
    path: Path
    promoted_at: int | None = None


@dataclass(frozen=True)
class RolledBack(BundleRef):
    """What is in service again; `left` is the version that was until then."""

    left: str = ""


@dataclass(frozen=True)
class RegisteredVersion:
    version: str
    path: Path
    created_us: int
    aliases: tuple[str, ...]
    metrics: Mapping[str, float]
    tags: Mapping[str, str]


def read_champion(settings: Settings) -> BundleRef | None:
    """The bundle in service, by its pointer file alone; None before the first promotion. Costs one small read."""
    return read_pointer(settings.bundles_dir / POINTER)


def read_pointer(file: Path) -> BundleRef | None:
    """What a file points to; None where it is not there. Raises OSError, ValueError, LookupError, TypeError for one that is none."""
    try:
        state = json.loads(file.read_text())
    except FileNotFoundError:
        return None
    return BundleRef(state["version"], Path(state["path"]), state["promoted_at"])


def write_pointer(file: Path, ref: BundleRef) -> None:
    """In one step: a reader sees the old one or the new one. Raises OSError."""
    file.parent.mkdir(parents=True, exist_ok=True)
    draft = file.with_suffix(f".{os.getpid()}")
    with draft.open("w") as content:
        json.dump({**asdict(ref), "path": str(ref.path)}, content)
        content.flush()
        os.fsync(content.fileno())
    draft.replace(file)


class ModelRegistry:
    """Versions of `names.REGISTERED_MODEL`. Connects on first use; importing MLflow takes a second or two."""

    def __init__(self, settings: Settings, clock: Clock = system_clock) -> None:
        self._settings = settings
        self._clock = clock
        self._connected: MlflowClient | None = None

    def register(
        self,
        bundle_dir: Path,
        metrics: Mapping[str, float],
        params: Mapping[str, Any] | None = None,
        run_id: str | None = None,
    ) -> str:
        """Record a bundle folder with what it measured; returns its version, "1" and up. It waits as the challenger: nothing is put in
        service. `run_id` is the MLflow run that made it, which goes on; without one there is a run of this record alone.
        """
        from mlflow.entities import Metric, Param

        path = bundle_dir.resolve()
        if not path.is_dir():
            raise RegistryError(f"{path} is no folder: save the bundle before it is registered")
        (client, experiment), now_ms = self.tracking(), self._clock() // 1_000
        run = run_id or client.create_run(experiment, start_time=now_ms, run_name=path.name).info.run_id
        client.log_batch(
            run,
            metrics=[Metric(key, float(value), now_ms, 0) for key, value in metrics.items()],
            params=[Param(key, str(value)) for key, value in (params or {}).items()],
        )
        if run_id is None:
            client.set_terminated(run, end_time=now_ms)
        version = client.create_model_version(names.REGISTERED_MODEL, source=str(path), run_id=run)
        self.challenge(str(version.version))
        return str(version.version)

    def tracking(self) -> tuple["MlflowClient", str]:
        """MLflow, and the experiment whose runs keep their artifacts in this data directory. Raises RegistryError where it cannot be
        written to.
        """
        artifacts = self._settings.data.resolve() / "mlflow"
        try:
            artifacts.mkdir(parents=True, exist_ok=True)
            _check_writable(self._settings.data.resolve() / "mlflow.db")
        except (OSError, sqlite3.Error) as error:
            raise RegistryError(
                f"MLflow cannot be written to ({error}): {self._settings.mlflow_uri} and {artifacts} keep what is trained; see whether "
                "there is room and whether they are yours to write"
            ) from error
        client, location = self._client(), artifacts.as_uri()
        # A data directory that was copied has the experiment of the one that it came from.
        for name in (names.PROJECT, f"{names.PROJECT} in {artifacts}"):
            experiment = client.get_experiment_by_name(name)
            if experiment is None:
                return client, str(client.create_experiment(name, artifact_location=location))
            if experiment.artifact_location == location:
                return client, str(experiment.experiment_id)
        raise RegistryError(
            f"MLflow's experiment {name!r} keeps its artifacts in {experiment.artifact_location}: rename it"
        )

    def promote(self, version: str) -> BundleRef:
        """Put a version in service: MLflow's aliases, then the pointer file. RegistryError where it is unusable."""
        with self._alone():
            return self._lay_on_top(version)

    def promote_over(self, version: str, seen: BundleRef | None) -> BundleRef:
        """`promote`, where `seen` is still in service: what it was judged against. Raises ChampionMovedError where it is not."""
        with self._alone():
            now = self.champion()
            if now != seen:
                raise ChampionMovedError(
                    f"{_called(now)} is in service now, by another command, and {_called(seen)} was when version {version} was "
                    f"judged: `headrace promote {version}` judges it again"
                )
            return self._lay_on_top(version)

    def _lay_on_top(self, version: str) -> BundleRef:
        served = self.served()
        return self._put_in_service(version, served if version in served[-1:] else [*served, version])

    def _alone(self) -> AbstractContextManager[None]:
        """Whoever reads what is in service and then moves it is the only one: else the later one forgets what the earlier one did."""
        return _locked(self._settings.bundles_dir / _POINTER_LOCK)

    def rollback_target(self, version: str | None = None) -> str:
        """What `rollback` would put in service: the version before the champion, or an earlier one by name. Raises RegistryError."""
        before = self.served()[:-1]
        if not before:
            raise RegistryError("there is nothing to go back to: no version was in service before this one")
        if version is not None and version not in before:
            raise RegistryError(
                f"version {version} was not in service before this one; those were {', '.join(before)}, the newest last: "
                f"`headrace promote {version}` puts another one in service"
            )
        return version or before[-1]

    def rollback(
        self, version: str | None = None, check: Callable[[RegisteredVersion], None] = lambda _: None
    ) -> RolledBack:
        """Put back what was in service before, or an earlier version; what was in service since then is forgotten. What `check` raises of
        it keeps it from service. Raises RegistryError.
        """
        with self._alone():
            target, served = self.rollback_target(version), self.served()
            check(self.version(target))
            last = len(served) - 2 - served[-2::-1].index(target)
            back = self._put_in_service(target, served[: last + 1])
            return RolledBack(back.version, back.path, back.promoted_at, left=served[-1])

    def served(self) -> list[str]:
        """Versions that were in service, the champion last. One that was rolled back is not among them."""
        champion = self.champion()
        tags = self._client().get_registered_model(names.REGISTERED_MODEL).tags
        served: list[str] = json.loads(tags.get(_SERVED, "[]"))
        if champion is None:
            return []
        # A process that died before it wrote the pointer has left one too many here, or one too few.
        if champion.version not in served:
            return [*served, champion.version]
        while served[-1] != champion.version:
            served.pop()
        return served

    def challenge(self, version: str) -> None:
        """Say that this version is the next that may be promoted."""
        self._client().set_registered_model_alias(names.REGISTERED_MODEL, names.CHALLENGER, version)

    def tag(self, version: str, key: str, value: str) -> None:
        """Note something of a version."""
        self._client().set_model_version_tag(names.REGISTERED_MODEL, version, key, value)

    def version(self, version: str) -> RegisteredVersion:
        """Raises RegistryError where it is not there, or its folder is gone."""
        known = {registered.version: registered for registered in self.versions()}
        if version not in known:
            raise RegistryError(f"no version {version!r}; registered are {', '.join(known) or 'none: train first'}")
        if not known[version].path.is_dir():
            raise RegistryError(
                f"version {version} lay in {known[version].path}, which is gone: promote another version or train again"
            )
        return known[version]

    def _put_in_service(self, version: str, served: list[str]) -> BundleRef:
        registered = self.version(version)
        client, model = self._client(), names.REGISTERED_MODEL
        client.set_registered_model_tag(model, _SERVED, json.dumps(served[-_MOST_SERVED:]))
        client.set_registered_model_alias(model, names.CHAMPION, version)
        if len(served) > 1:
            client.set_registered_model_alias(model, names.PREVIOUS, served[-2])
        else:
            client.delete_registered_model_alias(model, names.PREVIOUS)
        if names.CHALLENGER in registered.aliases:
            client.delete_registered_model_alias(model, names.CHALLENGER)
        champion = BundleRef(version, registered.path, self._clock())
        write_pointer(self._settings.bundles_dir / POINTER, champion)
        return champion

    def champion(self) -> BundleRef | None:
        """The bundle in service, None before the first promotion."""
        return read_champion(self._settings)

    def versions(self) -> list[RegisteredVersion]:
        """All versions, the oldest first."""
        client = self._client()
        aliases = client.get_registered_model(names.REGISTERED_MODEL).aliases
        found = [
            RegisteredVersion(
                version=str(version.version),
                path=Path(version.source),
                created_us=version.creation_timestamp * 1_000,
                aliases=tuple(
                    sorted(alias for alias, number in aliases.items() if str(number) == str(version.version))
                ),
                metrics=client.get_run(version.run_id).data.metrics,
                tags=version.tags,
            )
            for version in client.search_model_versions(f"name='{names.REGISTERED_MODEL}'")
        ]
        return sorted(found, key=lambda version: int(version.version))

    def _client(self) -> "MlflowClient":
        if self._connected is None:
            self._connected = _connect(self._settings)
        return self._connected


def _called(ref: BundleRef | None) -> str:
    return "no version" if ref is None else f"version {ref.version}"


@contextmanager
def _locked(file: Path) -> Iterator[None]:
    """Of all processes and threads, one at a time; the others wait. A process that dies lets go."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _check_writable(file: Path) -> None:
    """MLflow itself would try again for minutes before it said so. Raises sqlite3.Error."""
    with closing(sqlite3.connect(file, timeout=_LOCK_WAIT_S)) as database:
        database.execute("BEGIN IMMEDIATE")
        database.execute("PRAGMA user_version = 0")
        database.rollback()


def _connect(settings: Settings) -> "MlflowClient":
    # All are read when MLflow is imported; nothing here may call home, or tell of tables.
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("DO_NOT_TRACK", "true")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    logging.getLogger("alembic").setLevel(logging.WARNING)
    settings.data.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MLflow's tables use what its SQLAlchemy has deprecated
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException

        with _loggers_kept():
            client = MlflowClient(tracking_uri=settings.mlflow_uri, registry_uri=settings.mlflow_uri)
            try:
                client.get_registered_model(names.REGISTERED_MODEL)
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
                client.create_registered_model(names.REGISTERED_MODEL)
    return client


@contextmanager
def _loggers_kept() -> Iterator[None]:
    """MLflow makes its tables with alembic, whose logging configuration silences every logger that there is."""
    known = [logger for logger in logging.root.manager.loggerDict.values() if isinstance(logger, logging.Logger)]
    disabled = [(logger, logger.disabled) for logger in known]
    try:
        yield
    finally:
        for logger, was_disabled in disabled:
            logger.disabled = was_disabled
