"""The record of a training run in MLflow: begun before anything is read, added to while it learns, ended however the run ends.

A run that is resumed goes on with its record, whose id its folder keeps. The bundle stays the folder that it is; the record says where
and has its `bundle.json`. Nothing here needs more than mlflow-skinny; to look at it, `mlflow ui` does.
"""

import hashlib
import logging
import shlex
import subprocess
from collections.abc import Mapping
from contextlib import AbstractContextManager
from importlib.metadata import version as installed_version
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

import numpy as np

from headrace import names
from headrace.clock import Clock, from_micros
from headrace.models.bundle import MANIFEST
from headrace.settings import Settings
from headrace.stores.models import ModelRegistry, first_line, taken_by_mlflow
from training.config import TrainConfig
from training.dataset import Split
from training.fit import Epoch
from training.learn import JUDGED_BY
from training.run_folder import RunFolder

if TYPE_CHECKING:
    from mlflow.entities import Metric

logger = logging.getLogger(__name__)

# By it MLflow's page opens on the runs; without it 3.17 takes an experiment for one of GenAI, and shows its empty traces.
_KIND: Final = ("mlflow.experimentKind", "custom_model_development")
ERROR: Final = "error"
RESUMED: Final = "resumed"
BUNDLE: Final = "bundle"
BUNDLE_HASH: Final = "bundle_sha256"
# MLflow bounds the length of a tag.
_MOST_TEXT: Final = 5_000
_ROOT: Final = Path(__file__).resolve().parent.parent


class Track:
    """The MLflow run of a training run, as a context: FINISHED at its end, FAILED with the error as a tag where one is raised, KILLED where
    it is interrupted. Of several processes the first one alone has it; in the others it takes what it is told and does nothing.

    `begin`, `data`, `made` and `reported` raise RegistryError where MLflow does not take what they tell. Epochs and the end can wait.
    """

    run_id: str = ""
    """MLflow's; empty before `begin`, and in the other processes."""

    def __init__(self, settings: Settings, clock: Clock, is_first: bool = True) -> None:
        self._settings, self._clock, self._is_first = settings, clock, is_first
        self._waiting: list[Metric] = []
        self._told: set[tuple[str, int]] = set()

    def __enter__(self) -> Self:
        """Raises RegistryError where MLflow cannot be written to: better now than at the end."""
        if self._is_first:
            self._client, self._experiment = ModelRegistry(self._settings, self._clock).tracking()
            with taken_by_mlflow("what kind of experiment this is", self._settings):
                self._client.set_experiment_tag(self._experiment, *_KIND)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if not self.run_id:
            return
        try:
            self._end(error)
        except _mlflow_errors() as problem:
            # What it ended with stands: an error goes on its way, and a version that is registered needs no more of MLflow.
            logger.warning("MLflow does not know that run %s has ended: %s", self.run_id, first_line(problem))

    def _end(self, error: BaseException | None) -> None:
        status = "FINISHED"
        if error is not None:
            status = "FAILED" if isinstance(error, Exception) else "KILLED"
            self._client.set_tag(self.run_id, ERROR, f"{type(error).__name__}: {error}"[:_MOST_TEXT])
        self._client.set_terminated(self.run_id, status, end_time=self._now_ms())

    def begin(self, folder: RunFolder, config: TrainConfig, facts: Mapping[str, Any]) -> None:
        """The record of this folder's run: the one that it has, or a new one. `facts` are where and with what it runs."""
        if not self._is_first:
            return
        kept = folder.tracked_as()
        with self._telling("that a run begins"):
            if kept is None or not self._go_on(kept):
                tags = {"mlflow.source.name": "headrace train", "mlflow.source.type": "LOCAL"}
                run = self._client.create_run(self._experiment, self._now_ms(), tags, run_name=folder.name)
                self.run_id = run.info.run_id
        folder.track_as(self.run_id)
        commit = commit_of(_ROOT)
        more = {"git_commit": commit} if commit else {}
        with self._telling("what a run begins with"):
            if commit:
                self._client.set_tag(self.run_id, "mlflow.source.git.commit", commit)
            self._say({**config.to_json(), **facts, "code_version": installed_version(names.PROJECT), **more})

    def _telling(self, what: str) -> AbstractContextManager[None]:
        return taken_by_mlflow(what, self._settings)

    def _go_on(self, run_id: str) -> bool:
        """Whether MLflow still has that run, which then runs again."""
        from mlflow.exceptions import MlflowException

        try:
            run = self._client.get_run(run_id)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return False
        if run.info.lifecycle_stage != "active":
            return False
        self.run_id = run_id
        self._client.update_run(run_id, status="RUNNING")
        self._client.set_tag(run_id, RESUMED, int(run.data.tags.get(RESUMED, 0)) + 1)
        if ERROR in run.data.tags:
            self._client.delete_tag(run_id, ERROR)
        self._told = {
            (key, metric.step) for key in run.data.metrics for metric in self._client.get_metric_history(run_id, key)
        }
        return True

    def _say(self, facts: Mapping[str, Any]) -> None:
        """As params, which MLflow never changes: where a resumed run differs, a tag says so."""
        from mlflow.entities import Param

        known = self._client.get_run(self.run_id).data.params
        new = {key: str(value) for key, value in facts.items()}
        params = [Param(key, value) for key, value in new.items() if key not in known]
        self._client.log_batch(self.run_id, params=params)
        for key, value in new.items():
            if known.get(key, value) != value:
                self._client.set_tag(self.run_id, f"{RESUMED}.{key}", value)

    def data(self, split: Split, fingerprints: Mapping[str, Any]) -> None:
        """What it learns from: window, cut and features."""
        if not self._is_first:
            return
        moments = {
            "window_start": split.start_us,
            "validation_start": split.validation_us,
            "cut": split.cut_us,
            "window_end": split.end_us,
        }
        with self._telling("what a run learns from"):
            self._say(
                {
                    **{key: from_micros(us).isoformat() for key, us in moments.items()},
                    "services": ", ".join((names.RETRIEVAL_SERVICE, names.RANKER_SERVICE)),
                    **{f"fingerprint_{view}": value for view, value in fingerprints.items()},
                }
            )

    def noted(self, name: str, epoch: Epoch) -> None:
        """An epoch of one of the models, the step being its number. What MLflow does not take now it is told with the next one."""
        if not self._is_first:
            return
        from mlflow.entities import Metric

        now_ms = self._now_ms()
        for key, value in metrics_of(name, epoch).items():
            if (key, epoch.number) not in self._told:
                self._told.add((key, epoch.number))
                self._waiting.append(Metric(key, value, now_ms, epoch.number))
        try:
            self._flush()
        except _mlflow_errors() as problem:
            logger.warning("MLflow does not take epoch %d of the %s now: %s", epoch.number, name, first_line(problem))

    def _flush(self) -> None:
        if self._waiting:
            self._client.log_batch(self.run_id, metrics=self._waiting)
            self._waiting = []

    def made(self, bundle_dir: Path, report: Mapping[str, Any], figures: Mapping[str, str]) -> None:
        """What came of it: where the bundle lies, the report as JSON, figures as SVG by name."""
        if not self._is_first:
            return
        manifest = (bundle_dir / MANIFEST).read_bytes()
        with self._telling("what came of a run"):
            self._flush()
            self._client.set_tag(self.run_id, BUNDLE, str(bundle_dir.resolve()))
            self._client.set_tag(self.run_id, BUNDLE_HASH, hashlib.sha256(manifest).hexdigest())
            self._client.log_text(self.run_id, manifest.decode(), MANIFEST)
            self._client.log_dict(self.run_id, dict(report), "report.json")
            for name, text in figures.items():
                self._client.log_text(self.run_id, text, f"plots/{name}.svg")

    def reported(self, page: Path) -> None:
        """The report as a page."""
        if not self._is_first:
            return
        text = page.read_text(encoding="utf-8")
        with self._telling("the report of a run"):
            self._client.log_text(self.run_id, text, "report.html")

    def _now_ms(self) -> int:
        return self._clock() // 1_000


def metrics_of(name: str, epoch: Epoch) -> dict[str, float]:
    """By MLflow's key. What an epoch has nothing of is left out, and of epoch 0 all but how it was judged."""
    found = {f"{name}/{JUDGED_BY[name]}": epoch.judged}
    if epoch.number:
        found |= {
            f"{name}/loss": epoch.loss,
            f"{name}/rows_per_second": epoch.rows_per_second,
            f"{name}/input_share": epoch.input_share,
        }
    return {key: value for key, value in found.items() if np.isfinite(value)}


def commit_of(root: Path) -> str | None:
    """The commit of a checkout, with `+changes` where it has any; None where that folder is none, or git is not there."""
    if not (root / ".git").exists():
        return None
    command = ["git", "describe", "--always", "--exclude=*", "--abbrev=40", "--dirty=+changes"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=True, cwd=root, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip() or None


def how_to_look(settings: Settings) -> str:
    """What shows all runs in a browser. The part of MLflow that we need has no server."""
    command = shlex.join(["mlflow", "ui", "--backend-store-uri", settings.mlflow_uri])
    return f"{command} (of `pip install mlflow=={installed_version('mlflow-skinny')}`)"


def _mlflow_errors() -> tuple[type[Exception], ...]:
    from mlflow.exceptions import MlflowException

    return MlflowException, OSError
