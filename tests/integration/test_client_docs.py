"""docs/client.md and README.md: their examples run."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import headrace.client
from headrace.client import ClientConfig
from tests.conftest import ROOT
from tests.integration.open_shop import Shop

PAGE = (ROOT / "docs" / "client.md").read_text()
CODE = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
EXAMPLES = CODE.findall(PAGE)


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (0, r"(\d shoe-\d [0-9.e-]+ \w+\n){8}"),  # of those for at most 80
        (1, r"Stats\(waiting=0, acknowledged=1, .+\n"),
        (2, r"\(.*\) \(.*\)\n"),
        (3, ""),
    ],
)
def test_an_example_runs(open_shop: Shop, number: int, said: str, tmp_path: Path):
    assert re.fullmatch(said, output_of(EXAMPLES[number], open_shop, tmp_path))
    assert len(EXAMPLES) == 4


def test_the_example_of_the_readme_runs(open_shop: Shop, tmp_path: Path):
    (code,) = CODE.findall((ROOT / "README.md").read_text())
    assert output_of(code, open_shop, tmp_path) == ""


def output_of(code: str, shop: Shop, folder: Path) -> str:
    keys = {"HEADRACE_EVENT_KEYS": "writer", "HEADRACE_READ_KEYS": "reader", "HEADRACE_ADMIN_KEYS": "admin"}
    command = [sys.executable, "-c", code.replace("http://127.0.0.1:8000", shop.address)]
    environment = {"PYTHONPATH": str(ROOT)} | keys
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_every_error_and_every_named_bound_is_the_clients():
    errors = set(re.findall(r"`(\w+Error)`", PAGE))
    exported = {name for name in headrace.client.__all__ if name.endswith("Error")}
    assert errors == exported - {"RetryableError"} | {"HeadraceError"}
    named = set(re.findall(r"`(\w+_(?:s|bytes|events))`", PAGE)) - {"see_own_events", "retry_after_s"}
    assert named <= set(ClientConfig.__dataclass_fields__)
