"""What a training run came to, and how it is told: on a screen, and as JSON."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from headrace.models.index import IndexFacts
from training.fit import Epoch
from training.learn import JUDGED_BY
from training.report import Report, title


@dataclass(frozen=True)
class TrainResult:
    """What a run made. `version` is the registry's, `bundle_dir` the folder; epochs are those of each model. `page` is the report,
    `run_id` MLflow's record.
    """

    version: str
    bundle_dir: Path
    report: Report
    index: IndexFacts
    tower_rows: int
    ranker_lists: int
    epochs: dict[str, list[Epoch]]
    seconds: float
    page: Path
    run_id: str

    def show(self) -> None:
        self.report.show()
        for name, epochs in self.epochs.items():
            print(f"{name}: {how_it_went(epochs, title(JUDGED_BY[name]))}")
        print(f"index: {self.index}")
        print(
            f"version {self.version} in {self.bundle_dir}: {self.tower_rows} rows for the towers, "
            f"{self.ranker_lists} lists for the ranker, {self.seconds:.1f} s"
        )

    def to_json(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(self)} | {
            "bundle_dir": str(self.bundle_dir),
            "page": str(self.page),
            "report": self.report.to_json(),
            "index": asdict(self.index),
            "epochs": {name: [_finite(asdict(epoch)) for epoch in each] for name, each in self.epochs.items()},
        }


def how_it_went(epochs: Sequence[Epoch], judged_by: str) -> str:
    """In one line."""
    if not epochs:
        return "nothing to learn from in the validation part, so it stays as it began"
    best = max(epochs, key=lambda epoch: -1.0 if np.isnan(epoch.judged) else epoch.judged)
    last, judged = epochs[-1], "there was no validation to judge by"
    if best.number == 0 and not np.isnan(best.judged):
        judged = f"none better than how it began, which is kept: {judged_by} {best.judged:.4f} on the validation"
    elif not np.isnan(best.judged):
        judged = f"epoch {best.number} is the best, {judged_by} {epochs[0].judged:.4f} -> {best.judged:.4f} on the validation"
    speed = f"{last.rows_per_second:,.0f} rows/s, {last.input_share:.1%} of it waiting for rows"
    return f"{last.number} epoch{'s' if last.number != 1 else ''}, {judged}; {speed}"


def _finite(state: dict[str, Any]) -> dict[str, Any]:
    """As JSON can say it."""
    return {
        name: None if isinstance(value, float) and not np.isfinite(value) else value for name, value in state.items()
    }
