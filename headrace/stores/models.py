"""Model registry: which bundles there are, what they measured, and which one is in service.

MLflow keeps versions, metrics and aliases (SQLite by default); the bundle stays a folder. What is in service stands in a small file, the
pointer, so that a serving replica can look for a new one every second without MLflow.

What was in service is a stack: a promotion puts its version on top, a rollback takes versions off until another one is on top. The pointer
file holds all of it and changes in one step, and a rollback needs nothing else: not MLflow, which may be what is broken.

Over 400 lines, since pointer, stack and MLflow are moved under one lock, by one object, and are read side by side.
"""

import fcntl
import json
import logging
import os
import sqlite3
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from headrace import names
from headrace.clock import Clock, system_clock
from headrace.settings import Settings

if TYPE_CHECKING:
    from mlflow import MlflowClient

logger = logging.getLogger(__name__)

POINTER: Final = "champion.json"
# A replica reads the pointer every second.
_MOST_BEFORE: Final = 100
_NOT_THERE: Final = "RESOURCE_DOES_NOT_EXIST"
_LOCK_WAIT_S: Final = 30.0
_BROKEN: Final = "put a copy of it back; `headrace rollback` works without it, and what is in service goes on"


class RegistryError(RuntimeError):
    """A version that is not there, a bundle folder that is gone, or an MLflow that takes nothing."""


class DamagedPointerError(RegistryError, ValueError):
    """A pointer file that does not say what is in service."""


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
    """The bundle in service, by its pointer file alone; None before the first promotion. Costs one small read. Raises OSError and
    DamagedPointerError.
    """
    return read_pointer(settings.bundles_dir / POINTER)


def read_pointer(file: Path) -> BundleRef | None:
    """What a file points to; None where it is not there. Raises OSError, and DamagedPointerError for one that is none."""
    stack = _read_stack(file)
    return stack[-1] if stack else None


def _read_stack(file: Path) -> list[BundleRef]:
    """What was in service before, the oldest first, and what is."""
    try:
        content = file.read_bytes()
    except FileNotFoundError:
        return []
    try:
        state = json.loads(content)
        return [*(_ref(each) for each in state.get("before", [])), _ref(state)]
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise DamagedPointerError(
            f"{file} is damaged ({type(error).__name__}: {error}): delete it, then `headrace promote VERSION` says anew what is in service"
        ) from error


def _ref(state: dict[str, Any]) -> BundleRef:
    if not isinstance(state["version"], str):
        raise TypeError(f"version is {state['version']!r} and no string")
    return BundleRef(state["version"], Path(state["path"]), state.get("promoted_at"))


def write_pointer(file: Path, ref: BundleRef, before: Sequence[BundleRef] = ()) -> None:
    """In one step, with what was in service before: a reader sees the old state or the new one. Raises OSError."""
    file.parent.mkdir(parents=True, exist_ok=True)
    draft = file.with_suffix(f".{os.getpid()}")
    state = {**asdict(ref), "path": str(ref.path)}
    with draft.open("w") as content:
        json.dump({**state, "before": [{"version": each.version, "path": str(each.path)} for each in before]}, content)
        content.flush()
        os.fsync(content.fileno())
    draft.replace(file)


class ModelRegistry:
    """Versions of `names.REGISTERED_MODEL`. Connects on first use; importing MLflow takes a second or two."""

    def __init__(self, settings: Settings, clock: Clock = system_clock) -> None:
        self._settings = settings
        self._clock = clock
        self._pointer = settings.bundles_dir / POINTER
        self._connected: MlflowClient | None = None

    def register(
        self,
        bundle_dir: Path,
        metrics: Mapping[str, float],
        params: Mapping[str, Any] | None = None,
        run_id: str | None = None,
    ) -> str:
        """Record a bundle folder with what it measured; returns its version, "1" and up. It waits as the challenger: nothing is put in
        service. `run_id` is the MLflow run that made it, which goes on; without one there is a run of this record alone. Raises
        RegistryError.
        """
        from mlflow.entities import Metric, Param

        path = bundle_dir.resolve()
        if not path.is_dir():
            raise RegistryError(f"{path} is no folder: save the bundle before it is registered")
        (client, experiment), now_ms = self.tracking(), self._clock() // 1_000
        with taken_by_mlflow(f"bundle {path.name}", self._settings):
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
        with _locked(_mlflow_lock(self._settings)):
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
        """Put a version in service. RegistryError where it is unusable."""
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
        registered, stack = self.version(version), _read_stack(self._pointer)
        before = stack[:-1] if stack and stack[-1].version == version else stack
        return self._put_in_service(BundleRef(version, registered.path), before)

    def _alone(self) -> AbstractContextManager[None]:
        """Whoever reads what is in service and then moves it is the only one: else the later one forgets what the earlier one did."""
        return _locked(self._pointer.with_suffix(".lock"))

    def rollback(self, version: str | None = None, check: Callable[[BundleRef], None] = lambda _: None) -> RolledBack:
        """Put back what was in service before, or an earlier version; what was in service since then is forgotten. What `check` raises of
        it keeps it from service. Needs the pointer file alone: where MLflow cannot be reached it is told in the log. Raises RegistryError.
        """
        with self._alone():
            stack = _read_stack(self._pointer)
            target = self._target(version, stack)
            _check_folder(stack[target])
            check(stack[target])
            back = self._put_in_service(stack[target], stack[:target])
            return RolledBack(back.version, back.path, back.promoted_at, left=stack[-1].version)

    def _target(self, version: str | None, stack: Sequence[BundleRef]) -> int:
        """The place in the stack of what a rollback puts back: the one below the top, or the last one of that name."""
        before = [ref.version for ref in stack[:-1]]
        version = next((ref.version for ref in stack if version == ref.path.name), version)
        if version is None and before:
            return len(before) - 1
        if version in before:
            return len(before) - 1 - before[::-1].index(version)
        if version is not None:
            known = [registered.version for registered in self.versions()]
            if version not in known:
                raise RegistryError(f"no version {version!r}; registered are {', '.join(known) or 'none: train first'}")
        if version is None:
            raise RegistryError("there is nothing to go back to: no version was in service before this one")
        if stack and version == stack[-1].version:
            raise RegistryError(f"version {version} is in service already")
        those = f"those were {', '.join(before)}, the newest last" if before else "none was"
        raise RegistryError(
            f"version {version} was not in service before this one; {those}: `headrace promote {version}` puts another one in service"
        )

    def served(self) -> list[str]:
        """Versions that were in service, the champion last. One that was rolled back is not among them."""
        return [ref.version for ref in _read_stack(self._pointer)]

    def challenge(self, version: str) -> None:
        """Say that this version is the next that may be promoted."""
        with _for_people(f"that version {version} is the challenger"):
            self._client().set_registered_model_alias(names.REGISTERED_MODEL, names.CHALLENGER, version)

    def tag(self, version: str, key: str, value: str) -> None:
        """Note something of a version."""
        with _for_people(f"the tag {key} of version {version}"):
            self._client().set_model_version_tag(names.REGISTERED_MODEL, version, key, value)

    def version(self, version: str) -> RegisteredVersion:
        """By its number, or by the name of its bundle. Raises RegistryError where it is not there, or its folder is gone."""
        known = self.versions()
        found = next((each for each in known if version in (each.version, each.path.name)), None)
        if found is None:
            numbers = ", ".join(each.version for each in known)
            raise RegistryError(f"no version {version!r}; registered are {numbers or 'none: train first'}")
        _check_folder(found)
        return found

    def _put_in_service(self, ref: BundleRef, before: Sequence[BundleRef]) -> BundleRef:
        """The pointer first: it is what replicas go by."""
        champion = BundleRef(ref.version, ref.path, self._clock())
        kept = before[-_MOST_BEFORE:]
        write_pointer(self._pointer, champion, kept)
        self._note_in_mlflow(champion.version, kept[-1].version if kept else None)
        return champion

    def _note_in_mlflow(self, version: str, previous: str | None) -> None:
        model = names.REGISTERED_MODEL
        with _for_people(f"that version {version} is in service"):
            client = self._client()
            client.set_registered_model_alias(model, names.CHAMPION, version)
            if previous is not None:
                client.set_registered_model_alias(model, names.PREVIOUS, previous)
            else:
                client.delete_registered_model_alias(model, names.PREVIOUS)
            if str(client.get_registered_model(model).aliases.get(names.CHALLENGER)) == version:
                client.delete_registered_model_alias(model, names.CHALLENGER)

    def champion(self) -> BundleRef | None:
        """The bundle in service, None before the first promotion."""
        return read_champion(self._settings)

    def versions(self) -> list[RegisteredVersion]:
        """All versions, the oldest first. Raises RegistryError where MLflow cannot be read."""
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
                metrics=_metrics_of(client, version.run_id),
                tags=version.tags,
            )
            for version in client.search_model_versions(f"name='{names.REGISTERED_MODEL}'")
        ]
        return sorted(found, key=lambda version: int(version.version))

    def _client(self) -> "MlflowClient":
        if self._connected is None:
            self._connected = _connect(self._settings)
        return self._connected


def _metrics_of(client: "MlflowClient", run_id: str) -> Mapping[str, float]:
    """None of a version whose run is gone, as `mlflow gc` leaves it: the bundle has them too, and serves without."""
    from mlflow.exceptions import MlflowException

    try:
        return dict(client.get_run(run_id).data.metrics)
    except MlflowException as error:
        if error.error_code != _NOT_THERE:
            raise
        return {}


def _check_folder(of: BundleRef | RegisteredVersion) -> None:
    if not of.path.is_dir():
        raise RegistryError(
            f"version {of.version} lay in {of.path}, which is gone: promote another version or train again"
        )


def _called(ref: BundleRef | None) -> str:
    return "no version" if ref is None else f"version {ref.version}"


@contextmanager
def _for_people(what: str) -> Iterator[None]:
    """What is for people who look at MLflow, and for nobody else: where it cannot be noted that is told, and all goes on."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except (RegistryError, MlflowException) as error:
        logger.warning("MLflow does not know %s: %s", what, error)


@contextmanager
def taken_by_mlflow(what: str, settings: Settings) -> Iterator[None]:
    """What MLflow says where it does not take what a training tells it becomes a RegistryError with the remedy."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except (MlflowException, OSError) as error:
        raise RegistryError(
            f"MLflow does not take {what} ({first_line(error)}): see whether {settings.mlflow_uri} is held by another process, and "
            f"whether there is room in {settings.data}; what `headrace train` began goes on with --resume then"
        ) from error


def first_line(error: Exception) -> str:
    """Of what MLflow says of its database, whose other lines are the statement."""
    return str(error).partition("\n")[0]


@contextmanager
def _locked(file: Path) -> Iterator[None]:
    """Of all processes and threads, one at a time; the others wait. A process that dies lets go."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _mlflow_lock(settings: Settings) -> Path:
    return settings.data / "mlflow.lock"


def _check_writable(file: Path) -> None:
    """MLflow itself would try again for minutes before it said so. Raises sqlite3.Error."""
    with closing(sqlite3.connect(file, timeout=_LOCK_WAIT_S)) as database:
        database.execute("BEGIN IMMEDIATE")
        database.execute("PRAGMA user_version = 0")
        database.rollback()


def _check_readable(file: Path) -> None:
    """MLflow itself would try again and again before it said so. Raises RegistryError for what is no database."""
    if not file.exists():
        return
    try:
        with closing(sqlite3.connect(file, timeout=_LOCK_WAIT_S)) as database:
            database.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except sqlite3.Error as error:
        raise RegistryError(f"{file} cannot be read as MLflow's database ({error}): {_BROKEN}") from error


def _connect(settings: Settings) -> "MlflowClient":
    # All are read when MLflow is imported; nothing here may call home, or tell of tables.
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("DO_NOT_TRACK", "true")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    logging.getLogger("alembic").setLevel(logging.WARNING)
    settings.data.mkdir(parents=True, exist_ok=True)
    _check_readable(settings.data.resolve() / "mlflow.db")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MLflow's tables use what its SQLAlchemy has deprecated
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException
        from sqlalchemy.exc import SQLAlchemyError

        try:
            # Of two that find nothing both would make the tables.
            with _locked(_mlflow_lock(settings)), _loggers_kept():
                client = MlflowClient(tracking_uri=settings.mlflow_uri, registry_uri=settings.mlflow_uri)
                try:
                    client.get_registered_model(names.REGISTERED_MODEL)
                except MlflowException as error:
                    if error.error_code != _NOT_THERE:
                        raise
                    client.create_registered_model(names.REGISTERED_MODEL)
        except (MlflowException, SQLAlchemyError) as error:
            raise RegistryError(f"MLflow cannot use {settings.mlflow_uri} ({first_line(error)}): {_BROKEN}") from error
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
