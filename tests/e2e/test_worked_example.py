"""docs/features.md, "Add a feature", done as it says: the edit, the commands and the reads are those of the page."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from feast import Field
from feast.aggregation import Aggregation
from feast.types import String

from headrace import names
from headrace.aggregates.compile import compile_view
from headrace.aggregates.spec import FUNCTIONS, DefinitionError
from headrace.clock import from_micros, system_clock
from headrace.events import RECORD_SCHEMA, EventIn, encode_records, parse, stamp
from headrace.identity import shard_of
from headrace.ops.verify import verify
from headrace.settings import Settings
from headrace.stores.feature_store import quieten_feast
from headrace.stores.lake import EventLake
from headrace.stores.log import open_log
from headrace.stores.redis_client import connect
from serving.candidates import WAITING_FEATURES, Trace
from serving.hydrate import hydrate
from serving.state import ServingState
from serving.store import open_readers
from tests.conftest import ROOT, wait_until
from tests.integration.small_repo import stream_view

PAGE = (ROOT / "docs" / "features.md").read_text()
SECTION = PAGE[PAGE.index("## Add a feature") : PAGE.index("## Change a definition")]


def blocks(language: str) -> list[str]:
    """Code of the section, in the order of the page."""
    return re.findall(rf"^```{language}\n(.*?)^```$", SECTION, re.MULTILINE | re.DOTALL)


def patched(text: str, diff: str) -> str:
    """The text with a diff applied. Hunks begin at lines with @@; what they leave or take away occurs once."""
    for hunk in re.split(r"^@@.*\n", diff, flags=re.MULTILINE)[1:]:
        lines = hunk.splitlines(keepends=True)
        old, new = ("".join(line[1:] for line in lines if line[0] != other) for other in "+-")
        assert text.count(old) == 1, f"not once in features.py:\n{old}"
        text = text.replace(old, new)
    return text


@pytest.fixture
def settings(tmp_path: Path, valkey: str, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """A user's folder with the feature repository in it. Commands find the rest through the environment."""
    shutil.copytree(ROOT / "feature_repo", tmp_path / "feature_repo", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HEADRACE_DATA", str(tmp_path / "var"))
    monkeypatch.setenv("HEADRACE_FEATURE_REPO", str(tmp_path / "feature_repo"))
    monkeypatch.setenv("HEADRACE_REDIS_URL", valkey)
    return Settings()


class Flows:
    """Both flows, started again when they have ended by themselves, as `headrace up` does."""

    def __init__(self) -> None:
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def keep(self) -> None:
        for name in ("features", "lake"):
            if name not in self._running or self._running[name].poll() is not None:
                command = [sys.executable, "-m", f"flows.{name}"]
                environment = os.environ | {"PYTHONPATH": str(ROOT)}
                self._running[name] = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)

    def end(self) -> None:
        for flow in self._running.values():
            flow.terminate()
        for flow in self._running.values():
            flow.wait(timeout=30)


@pytest.fixture
def flows() -> Iterator[Flows]:
    flows = Flows()
    yield flows
    flows.end()


def headrace(*arguments: str) -> None:
    command = [sys.executable, "-m", "headrace.cli", *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def post(settings: Settings, body: dict[str, Any]) -> None:
    """What the collector does with one event."""
    event = parse(body)
    assert isinstance(event, EventIn), event
    record = stamp(event, system_clock(), 0)
    partition = shard_of(record[names.USER_KEY], settings.log_partitions)
    open_log(connect(settings), settings).append({partition: encode_records([record])}, {partition: 1})


def purchase(event_id: str, price: float, when: datetime) -> dict[str, Any]:
    (text,) = blocks("json")
    return json.loads(text.replace("{now}", when.isoformat())) | {"event_id": event_id, "price": price}  # type: ignore[no-any-return]


def spent_as_a_request_reads_it(settings: Settings) -> tuple[float | None, list[str]]:
    """The feature at the hydrate step of a recommendation, and what the answer would say is degraded."""
    readers, trace = open_readers(settings, request_timeout_s=5.0), Trace(deadline_ms=60_000)
    user, _ = hydrate("anna", ServingState(), readers.request, system_clock, 2**62, trace)
    readers.close()
    found = user.features.get("user_activity__spent_1h")
    return (None if found is None else float(found[0])), trace.degraded


def test_a_feature_added_as_the_page_says_is_in_the_stream_in_training_and_in_a_recommendation(
    settings: Settings, flows: Flows
) -> None:
    quieten_feast()
    headrace("apply")
    flows.keep()
    earlier = datetime.now(UTC) - timedelta(minutes=20)
    post(settings, purchase("history", 5.0, earlier))  # counted by no feature yet
    wait_until(lambda: EventLake(settings.lake_dir).scan(["event_id"]).collect().height == 1, timeout_s=60)

    features = settings.feature_repo / "features.py"
    features.write_text(patched(features.read_text(), blocks("diff")[0]))
    first, second = blocks("sh")[0].split("\n")[:2]
    headrace(*first.split()[1:])
    assert spent_as_a_request_reads_it(settings) == (None, [WAITING_FEATURES])
    headrace(*second.split()[1:])
    assert spent_as_a_request_reads_it(settings) == (10.0, [])  # two of 5.0, from the lake

    flows.keep()
    before_the_purchase = from_micros(system_clock())
    post(settings, purchase("live", 20.0, datetime.now(UTC)))

    read_online, read_training = blocks("python")
    names_of_the_page: dict[str, Any] = {}
    exec(read_online, names_of_the_page)

    def counted() -> bool:
        flows.keep()
        exec(read_online.splitlines()[-1], names_of_the_page)
        return bool(names_of_the_page["online"]["spent_1h"] == [50.0])

    wait_until(counted, timeout_s=60)
    assert spent_as_a_request_reads_it(settings) == (50.0, [])

    wait_until(lambda: EventLake(settings.lake_dir).scan(["event_id"]).collect().height == 2, timeout_s=60)
    names_of_the_page |= {
        "before_the_purchase": before_the_purchase,
        "after_the_purchase": from_micros(system_clock()),
    }
    exec(read_training, names_of_the_page)
    assert names_of_the_page["training"]["spent_1h"].tolist() == [10.0, 50.0]
    assert verify(settings).ok


def test_the_page_names_every_function_and_every_column_of_expressions() -> None:
    table = PAGE[PAGE.index("## Functions") : PAGE.index("## Expressions")]
    rows = re.findall(r"^\| (`.+?`(?:, `.+?`)*) \|", table, re.MULTILINE)
    functions = {re.sub(r"\(.*\)", "", name) for row in rows for name in re.findall(r"`(.+?)`", row)}
    assert functions == FUNCTIONS
    expressions = PAGE[PAGE.index("## Expressions") : PAGE.index("## Rules of time")]
    listed = expressions[expressions.index("are numbers:") : expressions.index("A column by itself")]
    numbers = {each.name for each in RECORD_SCHEMA if pa.types.is_floating(each.type) or pa.types.is_integer(each.type)}
    assert set(re.findall(r"`(.+?)`", listed)) == numbers - {"schema_version"}


def test_the_page_shows_a_refusal_as_it_is() -> None:
    hop, window = timedelta(minutes=7), timedelta(hours=1)
    spent = Aggregation(
        column="purchase.price*quantity", function="sum", time_window=window, slide_interval=hop, name="spent_1h"
    )
    view = stream_view("user_activity", spent)
    view.entity_columns = [Field(name="user_id", dtype=String)]  # as Feast's apply leaves it
    with pytest.raises(DefinitionError) as refusal:
        compile_view(view)
    assert f"Error: {refusal.value}\n" in PAGE
