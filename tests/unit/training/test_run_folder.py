"""What the folder of a run says of how it began."""

import json
from pathlib import Path

import pytest

from training.config import default, small
from training.run_folder import RunError, RunFolder


@pytest.mark.parametrize("warm_start", [None, Path("bundles/first")])
def test_a_run_knows_its_config_when_it_began_and_what_with(tmp_path: Path, warm_start: Path | None) -> None:
    RunFolder.begin(tmp_path, "20240101-default", default(), 7, warm_start)
    began = RunFolder.unfinished(tmp_path).began()
    assert (began.config, began.began_us) == (default(), 7)
    assert began.warm_start == (None if warm_start is None else warm_start.resolve())
    assert began.warm_start is None or began.warm_start.is_absolute(), "it may be resumed in another directory"


def test_a_run_that_does_not_say_what_it_began_with_began_with_nothing(tmp_path: Path) -> None:
    folder = RunFolder.begin(tmp_path, "older", small(), 7)
    file = folder.path / "config.json"
    file.write_text(json.dumps({"config": small().to_json(), "began_us": 7}))
    assert folder.began().warm_start is None


def test_the_newest_run_goes_on_and_without_any_the_remedy_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"no unfinished run in .*: start one with `headrace train`"):
        RunFolder.unfinished(tmp_path)
    for name in ("20240102-small", "20240101-small"):
        RunFolder.begin(tmp_path, name, small(), 7)
    assert RunFolder.unfinished(tmp_path).name == "20240102-small"
