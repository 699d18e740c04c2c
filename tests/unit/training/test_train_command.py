"""What is asked of a training, before it begins."""

import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT

_LATE = ("torch", "feast", "mlflow")
_ASKED = f"""
import sys
from training.train_command import command
code = command(sys.argv[1:])
print(*(name for name in {_LATE} if name in sys.modules))
sys.exit(code)
"""


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--config", "tiny"], "no training config 'tiny'"),
        (["--set", "sise=2"], "there is no setting 'sise': did you mean size? Known are averaging"),
        (["--set", "size=two"], "size is 'two': write size=VALUE with a whole number"),
        (["--set", "layers=-3"], "layers is -3; it must be at least 1"),
        (
            ["--resume", "--set", "seed=4"],
            "a run is resumed by its own config, from its own start: leave --config, --set",
        ),
        (["--resume", "--config", "small"], "a run is resumed by its own config"),
    ],
)
def test_a_slip_of_the_pen_is_one_line_before_anything_heavy_is_imported(arguments: list[str], said: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _ASKED, *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout.strip()) == (1, "")
    [line] = done.stderr.splitlines()
    assert line.startswith(f"error: {said}")
