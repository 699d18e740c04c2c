"""docs/client.md: its examples run."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import headrace.client
from headrace.client import ClientConfig
from headrace.ops.ports import free_port
from tests.conftest import ROOT
from tests.integration.client_server import Interface, served

PAGE = (ROOT / "docs" / "client.md").read_text()
EXAMPLES = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize(
    ("number", "said"),
    [(0, "0 a 1.0 given"), (1, "Stats(waiting=0, acknowledged=1"), (2, "('ranker: deadline',)"), (3, "")],
)
def test_an_example_runs(number: int, said: str, tmp_path: Path):
    with served(Interface().app, free_port()) as address:
        code = EXAMPLES[number].replace("http://127.0.0.1:8000", address)
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True
        )
    assert (done.returncode, done.stderr) == (0, "")
    assert said in done.stdout
    assert len(EXAMPLES) == 4


def test_every_error_and_every_named_bound_is_the_clients():
    errors = set(re.findall(r"`(\w+Error)`", PAGE))
    exported = {name for name in headrace.client.__all__ if name.endswith("Error")}
    assert errors == exported - {"RetryableError"} | {"HeadraceError"}
    named = set(re.findall(r"`(\w+_(?:s|bytes|events))`", PAGE)) - {"see_own_events", "retry_after_s"}
    assert named <= set(ClientConfig.__dataclass_fields__)
