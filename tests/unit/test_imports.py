"""Who may import whom (docs/architecture.md), and what importing costs."""

import subprocess
import sys

import pytest
from importlinter.cli import EXIT_STATUS_SUCCESS, lint_imports

from tests.conftest import ROOT


def test_the_import_contracts_are_kept() -> None:
    assert lint_imports(str(ROOT / ".importlinter")) == EXIT_STATUS_SUCCESS


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
