"""A definition that no engine can compute is refused with the view, the aggregation and the remedy: at apply, and by every engine."""

import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pandas as pd
import pytest
from feast import Field, StreamFeatureView
from feast.aggregation import Aggregation
from feast.types import Int64

from headrace.aggregates.spec import FUNCTIONS, DefinitionError
from headrace.ops.apply import ApplyError, apply
from headrace.ops.backfill import backfill
from headrace.ops.child import environment_of
from headrace.settings import Settings
from headrace.stores.definitions import Definitions, load_definitions
from headrace.stores.feature_store import open_feature_store
from headrace.stores.redis_client import connect
from headrace.stores.row_scan import scan_entities
from serving.store import FeaturesUnknownError, open_readers
from tests.conftest import ROOT
from tests.integration.small_repo import (
    append_events,
    apply_views,
    feature,
    make_events,
    make_settings,
    run_flow,
    stream_view,
)

HOUR = timedelta(hours=1)
ODD_HOP = "the hop 180 s does not divide the window 600 s; choose one that does"


def good() -> StreamFeatureView:
    return stream_view("user_activity", feature("views_10m", "view"))


def odd_hop() -> StreamFeatureView:
    return stream_view("odd", feature("views", "view", minutes=10, hop=3))


BAD: dict[str, tuple[Callable[[], StreamFeatureView], str]] = {
    "an unknown function": (
        lambda: stream_view(
            "bad",
            Aggregation(column="view", function="median", time_window=HOUR, name="m"),
            schema=[Field(name="m", dtype=Int64)],
        ),
        "view 'bad', aggregation 'm': unknown function 'median'; use one of count",
    ),
    "a hop that does not divide": (odd_hop, f"view 'odd', aggregation 'views': {ODD_HOP}"),
    "a column that events lack": (
        lambda: stream_view("bad", feature("s", "purchase.colour", "sum")),
        "view 'bad', aggregation 's': events have no such column for sum: 'colour'; use one of",
    ),
    "an unknown event type": (
        lambda: stream_view("bad", feature("s", "veiw")),
        "view 'bad', aggregation 's': 'veiw' in column 'veiw' is no event type; use impression",
    ),
    "a schema that names other outputs": (
        lambda: stream_view("bad", feature("s", "view"), schema=[Field(name="views", dtype=Int64)]),
        "view 'bad': the schema must name exactly the aggregations' outputs; it differs in s, views",
    ),
    "a schema of another type": (
        lambda: stream_view("bad", feature("s", "purchase.price", "sum"), schema=[Field(name="s", dtype=Int64)]),
        "view 'bad', aggregation 's': the schema says Int64, sum gives Float64",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_definition_is_refused_at_apply_and_nothing_is_registered(case: str, tmp_path: Path) -> None:
    make, message = BAD[case]
    settings = make_settings(tmp_path)
    apply_views(settings, good())
    before = contents(settings)
    with pytest.raises(DefinitionError) as refusal:
        apply_views(settings, good(), make())
    assert str(refusal.value).startswith((message, f"stream {message}"))
    assert contents(settings) == before
    assert list(load_definitions(settings).streams) == ["user_activity"]


def test_rows_of_a_removed_view_stay_when_the_same_apply_is_refused(tmp_path: Path, valkey: str) -> None:
    settings = make_settings(tmp_path, valkey)
    apply_views(settings, good())
    append_events(settings, make_events(20))
    run_flow(settings)
    rows = stored_rows(settings)
    assert rows
    with pytest.raises(DefinitionError):
        apply_views(settings, odd_hop())
    assert stored_rows(settings) == rows


def test_both_command_lines_say_what_is_wrong_in_one_line(tmp_path: Path) -> None:
    settings = Settings(data=tmp_path / "var", feature_repo=tmp_path / "feature_repo")
    text = (ROOT / "feature_repo" / "features.py").read_text()
    settings.feature_repo.mkdir()
    for file in (ROOT / "feature_repo").glob("feature_store.yaml"):
        (settings.feature_repo / file.name).write_text(file.read_text())
    (settings.feature_repo / "features.py").write_text(text.replace('"session_seconds", name', '"session_weeks", name'))
    message = (
        "view 'user_activity', aggregation 'session_seconds': unknown function 'session_weeks'; use one of "
        f"{', '.join(sorted(FUNCTIONS))}"
    )

    theirs = settings.model_copy(update={"data": tmp_path / "theirs"})
    with ThreadPoolExecutor() as pool:  # at once: either takes seconds to import Feast
        ours = pool.submit(apply, settings)
        feast = subprocess.run(
            [Path(sys.executable).parent / "feast", "apply"], cwd=settings.feature_repo, env=environment_of(theirs),
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        with pytest.raises(ApplyError) as refusal:
            ours.result()
    assert feast.returncode == 1
    assert feast.stderr.splitlines()[-1] == f"Error: {message}"
    assert "Traceback" not in feast.stderr
    assert "alpha development" not in feast.stderr
    assert str(refusal.value) == f"{settings.feature_repo} was not applied: {message}"
    assert load_definitions(settings) == load_definitions(theirs) == Definitions({}, {})


@pytest.fixture
def with_a_bad_view(tmp_path: Path, valkey: str) -> Settings:
    """Settings of a repository whose SQL registry holds a view that cannot be computed: it commits before anybody can refuse."""
    settings = make_settings(tmp_path, valkey)
    yaml = settings.feature_repo / "feature_store.yaml"
    text = yaml.read_text()
    start, end = text.index("registry:"), text.index("online_store:")
    yaml.write_text(
        f"{text[:start]}registry:\n  registry_type: sql\n  path: sqlite:///{tmp_path}/registry.db\n{text[end:]}"
    )
    with pytest.raises(DefinitionError):
        apply_views(settings, odd_hop())
    assert [view.name for view in open_feature_store(settings).list_stream_feature_views()] == ["odd"]
    return settings


def test_every_engine_refuses_to_start_on_a_bad_definition(with_a_bad_view: Settings) -> None:
    settings, message = with_a_bad_view, BAD["a hop that does not divide"][1]
    flow = subprocess.Popen(
        [sys.executable, "-m", "flows.features"],
        cwd=ROOT,
        env=environment_of(settings),
        stderr=subprocess.PIPE,
        text=True,
    )
    with pytest.raises(DefinitionError, match="choose one that does"):
        backfill(settings)
    with pytest.raises(FeaturesUnknownError, match="choose one that does"):
        open_readers(settings, 1.0)
    store = open_feature_store(settings)
    label = pd.DataFrame({"user_id": ["u1"], "event_timestamp": [pd.Timestamp("2025-01-01", tz="UTC")]})
    with pytest.raises(DefinitionError, match="choose one that does"):
        store.get_historical_features(entity_df=label, features=["odd:views"]).to_arrow()
    with pytest.raises(DefinitionError, match="choose one that does"):
        store.get_online_features(["odd:views"], [{"user_id": "u1"}])
    _, said = flow.communicate()
    assert flow.returncode == 1
    assert said.splitlines()[-1] == f"the feature flow ends: {message}"


def test_a_registry_file_left_behind_by_an_earlier_choice_is_not_read(with_a_bad_view: Settings) -> None:
    settings = with_a_bad_view
    yaml = settings.feature_repo / "feature_store.yaml"
    sql, ours = yaml.read_text(), (ROOT / "feature_repo" / "feature_store.yaml").read_text()
    yaml.write_text(ours)
    apply_views(settings, good())
    assert list(load_definitions(settings).streams) == ["user_activity"]
    yaml.write_text(sql)
    with pytest.raises(DefinitionError, match="view 'odd'"):
        load_definitions(settings)


def contents(settings: Settings) -> dict[str, bytes]:
    """Files of the registry."""
    return {path.name: path.read_bytes() for path in settings.data.glob("*.*") if path.is_file()}


def stored_rows(settings: Settings) -> list[str]:
    return [key for _, keys in scan_entities(connect(settings), "user_activity") for key in keys]
