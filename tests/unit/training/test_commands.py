"""What is asked of a training or of a retraining, before it begins."""

import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT

_LATE = ("torch", "feast", "mlflow")
_ASKED = f"""
import sys
from importlib import import_module
code = import_module(f"training.{{sys.argv[1]}}_command").command(sys.argv[2:])
print(*(name for name in {_LATE} if name in sys.modules))
sys.exit(code)
"""


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("train --config tiny", "no training config 'tiny'"),
        ("train --set sise=2", "there is no setting 'sise': did you mean size? Known are averaging"),
        ("train --set size=two", "size is 'two': write size=VALUE with a whole number"),
        ("train --set layers=-3", "layers is -3; it must be at least 1"),
        (
            "train --resume --set seed=4",
            "a run is resumed by its own config, from its own start: leave --config, --set",
        ),
        ("train --resume --config small", "a run is resumed by its own config"),
        ("retrain --every 5", "--every is '5': write a span above 0 like 30m, 1h or 1d"),
        ("retrain --config tiny", "no training config 'tiny'"),
        ("retrain --set sise=2", "there is no setting 'sise': did you mean size?"),
        ("retrain --on-drift --drift pis=1", "there is no setting 'pis': did you mean psi?"),
        ("retrain --drift psi=1", "--drift changes what counts as drift, which --on-drift alone asks for"),
    ],
)
def test_a_slip_of_the_pen_is_one_line_before_anything_heavy_is_imported(words: str, said: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _ASKED, *words.split()],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout.strip()) == (1, "")
    [line] = done.stderr.splitlines()
    assert line.startswith(f"error: {said}")
