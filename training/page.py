"""The evaluation as one HTML file."""
from collections.abc import Mapping
from pathlib import Path

from training.report import Report


def write_page(path: Path, report: Report, header: Mapping[str, str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
