"""The folder of a run: what a killed run needs to go on, and nobody else. It goes when the run is done.

config.json                          the config, when the run began, and the bundle whose weights it begins with
held                                 locked by the process that the run is of, while that lives
fingerprints.json                    the features' definitions that it learns by
mlflow_run                           the MLflow run that records it
split/                               episodes and impressions, as they were read
content.parquet, preprocessing.json  the catalogue at the cut, vocabularies and scales
rows/, ranker_lists/                 what the towers and the ranker learn from, as tensors
towers.pt, ranker.pt                 a checkpoint of each fit
"""

import fcntl
import json
import logging
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

import polars as pl

from training.config import TrainConfig
from training.dataset import Split
from training.run_files import RunError, reading, write

__all__ = ["Began", "RunError", "RunFolder"]

logger = logging.getLogger(__name__)

_CONFIG: Final = "config.json"
_HELD: Final = "held"
_FINGERPRINTS: Final = "fingerprints.json"
_SPLIT: Final = "split"
_TIMES: Final = "times.json"
_TRACKED_AS: Final = "mlflow_run"
_ENDED: Final = ".ended"


@dataclass(frozen=True)
class Began:
    """How a run began, in Unix microseconds. `warm_start` is the folder of the bundle that both models begin as."""

    config: TrainConfig
    began_us: int
    warm_start: Path | None


@dataclass(frozen=True)
class RunFolder:
    """`<data>/runs/<name>`, `name` being the version that its bundle gets."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.name

    @classmethod
    def begin(
        cls, runs: Path, name: str, config: TrainConfig, began_us: int, warm_start: Path | None = None
    ) -> "RunFolder":
        folder = cls(runs / name)
        folder.path.mkdir(parents=True)
        for left in runs.glob(f".*{_ENDED}"):  # by a process that was killed while it took a run away
            shutil.rmtree(left, ignore_errors=True)  # or another process is at it
        start = None if warm_start is None else str(warm_start.resolve())
        held = {"config": config.to_json(), "began_us": began_us, "warm_start": start}
        write(folder.path / _CONFIG, json.dumps(held))
        return folder

    @classmethod
    @contextmanager
    def unfinished(cls, runs: Path, name: str | None = None) -> Iterator["RunFolder"]:
        """The newest run that did not end, or the one of that name; held, and so of those that no living process has. Raises RunError."""
        found = [cls(runs / each) for each in sorted(file.parent.name for file in runs.glob(f"[!.]*/{_CONFIG}"))]
        if not found:
            asked_for = (
                f"no unfinished run in {runs}"
                if name is None
                else f"no unfinished run {name!r} in {runs}, and no other"
            )
            raise RunError(f"{asked_for}: start one with `headrace train`")
        asked = [run for run in found if name in (None, run.name)]
        if not asked:
            raise RunError(f"no unfinished run {name!r} in {runs}; there are {', '.join(run.name for run in found)}")
        for run in reversed(asked):
            lock = run._lock()
            if lock is not None:
                with lock:
                    yield run
                return
        raise RunError(
            f"what is unfinished in {runs} still runs: {', '.join(run.name for run in asked)}; "
            "wait for it, or start another run with `headrace train`"
        )

    @contextmanager
    def held(self) -> Iterator[None]:
        """As this process's own until the end, however that comes. Raises RunError where another one has it."""
        lock = self._lock()
        if lock is None:
            raise RunError(f"{self.path} is another process's: wait for it, or start anew with `headrace train`")
        with lock:
            yield

    def _lock(self) -> IO[str] | None:
        """None where another process has it, or where it has ended."""
        try:
            lock = (self.path / _HELD).open("a")
        except FileNotFoundError:
            return None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            return None
        if not self.path.exists():  # it ended between the two
            lock.close()
            return None
        return lock

    @contextmanager
    def gone_where_it_would_fail_again(self) -> Iterator[None]:
        """A ValueError before anything was learnt, of settings or data, takes it away: `--resume` would meet the same, and not get to
        a run that can go on.
        """
        try:
            yield
        except ValueError:
            if self.path.exists() and not any(self.path.glob("*.pt")):
                self.end()
            raise

    @contextmanager
    def gone_unless_done(self) -> Iterator[None]:
        """Whatever ends it early takes it away, and is told, not that the folder cannot go."""
        try:
            yield
        except BaseException:
            try:
                if self.path.exists():
                    self.end()
            except OSError as error:
                logger.warning("%s is left of a run that did not end (%s): delete it", self.path, error)
            raise

    def began(self) -> Began:
        """Raises RunError."""
        file = self.path / _CONFIG
        with reading(file, self.path):
            held = json.loads(file.read_text())
            start = held.get("warm_start")
            config = TrainConfig.from_json(held["config"])
            return Began(config, held["began_us"], None if start is None else Path(start))

    def tracked_as(self) -> str | None:
        """The MLflow run that records it; None where there is none yet."""
        file = self.path / _TRACKED_AS
        return file.read_text() or None if file.exists() else None

    def track_as(self, run_id: str) -> None:
        write(self.path / _TRACKED_AS, run_id)

    def fingerprints(self, now: Mapping[str, int]) -> dict[str, int]:
        """Of the views' definitions when the run began, which are those of `now` where it begins. Raises RunError where one has another
        definition by now: what was learnt before and after would be of different features.
        """
        file = self.path / _FINGERPRINTS
        if not file.exists():
            write(file, json.dumps(dict(now)))
        with reading(file, self.path):
            kept = {str(view): int(fingerprint) for view, fingerprint in json.loads(file.read_text()).items()}
        for view, fingerprint in kept.items():
            if now.get(view) != fingerprint:
                raise RunError(
                    f"run {self.name} began with another definition of view {view} (fingerprint {fingerprint}, now "
                    f"{now.get(view, 'there is none')}): apply the features it began with, or delete {self.path} and start anew "
                    "with `headrace train`"
                )
        return kept

    def _keep_split(self, split: Split) -> None:
        folder = self.path / _SPLIT
        folder.mkdir(exist_ok=True)
        for name, value in vars(split).items():
            if isinstance(value, pl.DataFrame):
                value.write_parquet(folder / f"{name}.parquet")
        times: dict[str, Any] = {name: value for name, value in vars(split).items() if isinstance(value, int)}
        write(folder / _TIMES, json.dumps(times))

    def split(self, read: Callable[[], Split]) -> Split:
        """As it was read when the run began: what has come into the lake since is not for it. Raises RunError."""
        folder = self.path / _SPLIT
        if not (folder / _TIMES).exists():
            self._keep_split(read())
        with reading(folder, self.path):
            frames = {file.stem: _frame(file) for file in folder.glob("*.parquet")}
            times: dict[str, int] = json.loads((folder / _TIMES).read_text())
            return Split(**{**frames, **times})  # type: ignore[arg-type]

    def end(self) -> None:
        """Take it away, in one step for those who look for a run."""
        ended = self.path.with_name(f".{self.name}{_ENDED}")
        self.path.rename(ended)
        shutil.rmtree(ended, ignore_errors=True)  # what stays, or what another run's beginning took first, is no harm


def _frame(file: Path) -> pl.DataFrame:
    try:
        return pl.read_parquet(file)
    except pl.exceptions.PolarsError as error:
        raise ValueError(f"{file.name}: {error}") from error
