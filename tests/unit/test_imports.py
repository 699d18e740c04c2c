"""Who may import whom (docs/architecture.md), and what importing costs."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT


def test_the_import_contracts_are_kept() -> None:
    """In a process of its own: it turns off the loggers of the one it runs in."""
    command = [Path(sys.executable).parent / "lint-imports", "--config", ROOT / ".importlinter"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("module", ["flows.features", "flows.lake", "serving.collector"])
def test_collection_and_flows_run_without_torch_and_without_feast(module: str) -> None:
    """Also not by way of a dependency: a failing model never stops collection."""
    code = f"import sys, {module}; print([name for name in ('torch', 'feast') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_help_does_not_wait_for_the_heavy_parts() -> None:
    code = (
        "import sys, headrace.cli; print([name for name in ('torch', 'feast', 'ray', 'polars') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_the_client_loads_none_of_what_the_stack_is_made_of() -> None:
    heavy = ("torch", "ray", "feast", "polars", "bytewax", "numba")
    code = f"import sys, headrace.client; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
