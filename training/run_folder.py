"""The folder of a run: what a killed run needs to go on, and nobody else. It goes when the run is done.

config.json    the config, and when the run began
mlflow_run     the MLflow run that records it
split/         episodes and impressions, as they were read
towers/ ...    rows as tensors, and a checkpoint of each fit
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
    """No run to go on with; the message says which there are."""


@dataclass(frozen=True)
class RunFolder:
    """`<data>/runs/<name>`, `name` being the version that its bundle gets."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.name

    @classmethod
    def begin(cls, runs: Path, name: str, config: TrainConfig, began_us: int) -> "RunFolder":
        folder = cls(runs / name)
        folder.path.mkdir(parents=True)
        _write(folder.path / _CONFIG, {"config": config.to_json(), "began_us": began_us})
        return folder

    @classmethod
    def unfinished(cls, runs: Path, name: str | None = None) -> "RunFolder":
        """The newest run that did not end, or the one of that name. Raises RunError."""
        found = sorted(file.parent.name for file in runs.glob(f"*/{_CONFIG}"))
        chosen = name or (found[-1] if found else None)
        if chosen not in found:
            wanted = f"no unfinished run {chosen!r}" if chosen else "no unfinished run"
            raise RunError(
                f"{wanted} in {runs}; there are {', '.join(found) or 'none: start one with `headrace train`'}"
            )
        return cls(runs / chosen)

    def began(self) -> tuple[TrainConfig, int]:
        """Its config, and when it began in Unix microseconds."""
        held = json.loads((self.path / _CONFIG).read_text())
        return TrainConfig.from_json(held["config"]), held["began_us"]

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
