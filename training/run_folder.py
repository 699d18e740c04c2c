"""The folder of a run: what a killed run needs to go on, and nobody else. It goes when the run is done.

config.json                          the config, when the run began, and the bundle whose weights it begins with
mlflow_run                           the MLflow run that records it
split/                               episodes and impressions, as they were read
content.parquet, preprocessing.json  the catalogue at the cut, vocabularies and scales
rows/, lists/                        what the towers and the ranker learn from, as tensors
towers.pt, ranker.pt                 a checkpoint of each fit
"""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import polars as pl

from training.config import TrainConfig
from training.dataset import Split

_CONFIG: Final = "config.json"
_SPLIT: Final = "split"
_TIMES: Final = "times.json"
_TRACKED_AS: Final = "mlflow_run"


class RunError(ValueError):
    """No run to go on with; the message says what to do."""


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
        start = None if warm_start is None else str(warm_start.resolve())
        _write(folder.path / _CONFIG, {"config": config.to_json(), "began_us": began_us, "warm_start": start})
        return folder

    @classmethod
    def unfinished(cls, runs: Path) -> "RunFolder":
        """The newest run that did not end. Raises RunError."""
        found = sorted(file.parent.name for file in runs.glob(f"*/{_CONFIG}"))
        if not found:
            raise RunError(f"no unfinished run in {runs}: start one with `headrace train`")
        return cls(runs / found[-1])

    def began(self) -> Began:
        held = json.loads((self.path / _CONFIG).read_text())
        start = held.get("warm_start")
        return Began(TrainConfig.from_json(held["config"]), held["began_us"], None if start is None else Path(start))

    def tracked_as(self) -> str | None:
        """The MLflow run that records it; None where there is none yet."""
        file = self.path / _TRACKED_AS
        return file.read_text() if file.exists() else None

    def track_as(self, run_id: str) -> None:
        (self.path / _TRACKED_AS).write_text(run_id)

    def _keep_split(self, split: Split) -> None:
        folder = self.path / _SPLIT
        folder.mkdir(exist_ok=True)
        for name, value in vars(split).items():
            if isinstance(value, pl.DataFrame):
                value.write_parquet(folder / f"{name}.parquet")
        _write(folder / _TIMES, {name: value for name, value in vars(split).items() if isinstance(value, int)})

    def split(self, read: Callable[[], Split]) -> Split:
        """As it was read when the run began: what has come into the lake since is not for it."""
        folder = self.path / _SPLIT
        if not (folder / _TIMES).exists():
            self._keep_split(read())
        frames = {file.stem: pl.read_parquet(file) for file in folder.glob("*.parquet")}
        times: dict[str, int] = json.loads((folder / _TIMES).read_text())
        return Split(**{**frames, **times})  # type: ignore[arg-type]

    def end(self) -> None:
        """Take it away."""
        shutil.rmtree(self.path)


def _write(file: Path, content: dict[str, Any]) -> None:
    """In one step: what is there is whole."""
    draft = file.with_suffix(".draft")
    draft.write_text(json.dumps(content))
    with draft.open("rb") as written:
        os.fsync(written.fileno())
    draft.replace(file)
