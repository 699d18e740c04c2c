"""What the documents promise is there."""

import re
from pathlib import Path

import pytest
import yaml
from prometheus_client import Metric

from headrace.models.config import CLICK
from headrace.settings import Settings
from serving.metrics import CollectorMetrics, RecommenderMetrics
from tests.conftest import ROOT
from training.config import CONFIGS

MODELS = (ROOT / "docs" / "models.md").read_text()
ROW = re.compile(r"^\| `HEADRACE_(\w+)` \| (.+?) \| (.+) \|$", re.MULTILINE)


def documented() -> dict[str, tuple[str, str]]:
    page = (ROOT / "docs" / "settings.md").read_text()
    return {name.lower(): (default, text) for name, default, text in ROW.findall(page)}


def test_every_setting_is_documented_and_no_other() -> None:
    assert list(documented()) == list(Settings.model_fields)


@pytest.mark.parametrize("name", Settings.model_fields)
def test_a_setting_is_documented_as_it_is(name: str) -> None:
    field = Settings.model_fields[name]
    default, text = documented()[name]
    assert text == field.description
    expected = {None: "none", "": "empty"}.get(field.default, str(field.default))
    assert default.strip("`").replace("_", "") == expected.replace("_", "")


def families() -> dict[str, Metric]:
    metrics = (CollectorMetrics(), RecommenderMetrics())
    found = [family for each in metrics for family in each.registry.collect()]
    return {f"{family.name}_total" if family.type == "counter" else family.name: family for family in found}


def test_every_metric_is_documented_and_no_other() -> None:
    page = (ROOT / "docs" / "metrics.md").read_text()
    assert dict(re.findall(r"^\| `(headrace_\w+)` \| (\w+) \|", page, re.MULTILINE)) == {
        name: family.type for name, family in families().items()
    }


def test_the_alerts_parse_and_name_metrics_that_exist() -> None:
    [block] = re.findall(r"^```yaml\n(.+?)^```", (ROOT / "docs" / "metrics.md").read_text(), re.MULTILINE | re.DOTALL)
    [group] = yaml.safe_load(block)["groups"]
    parts = {"histogram": ("_bucket", "_sum", "_count")}
    series = {f"{name}{part}" for name, family in families().items() for part in parts.get(family.type, ("",))}
    watched: set[str] = set()
    for rule in group["rules"]:
        assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}
        assert re.fullmatch(r"[A-Z]\w+", rule["alert"])
        assert re.fullmatch(r"\d+[smh]", rule.get("for", "1m"))
        assert rule["labels"]["severity"] in ("page", "ticket")
        assert rule["annotations"]["summary"]
        assert [rule["expr"].count(bracket) for bracket in "([{"] == [rule["expr"].count(bracket) for bracket in ")]}"]
        named = set(re.findall(r"\bheadrace_\w+", rule["expr"]))
        assert named
        assert named <= series
        watched |= named
    assert {
        "headrace_features_age_seconds_bucket",
        "headrace_degraded_total",
        "headrace_requests_shed_total",
        "headrace_impressions_dropped_total",
        "headrace_change_feed_lag_seconds",
    } <= watched


SIZE = re.compile(
    r"^\| `(\w+)` \| (\d+), (\d+) items, (\d+) \| (\d+) of width (\d+) \| (.+?) \| (.+?) \| (.+?), (.+?) \|$",
    re.MULTILINE,
)


def test_the_sizes_are_those_of_the_configs() -> None:
    """docs/models.md against training/config.py."""
    found = {name: [int(number.replace(",", "")) for number in numbers] for name, *numbers in SIZE.findall(MODELS)}
    expected = {}
    for name, config in CONFIGS.items():
        made = config()
        crosses = made.model((CLICK,)).crosses
        expected[name] = [made.layers, made.length, made.width, crosses, made.cross_width, made.max_positives,
                          made.max_lists, made.batch, made.list_batch]  # fmt: skip
    assert found == expected


def test_every_test_that_a_rule_for_bad_input_names_is_there() -> None:
    section = MODELS.partition("## Bad input\n")[2].partition("\n## ")[0]
    named = re.findall(r"`(tests/[\w/.]+)::(\w+)`", section)
    assert len(named) > 20
    missing = [f"{file}::{test}" for file, test in named if f"def {test}(" not in (ROOT / file).read_text()]
    assert missing == []


def test_pages_that_models_and_decisions_link_to_are_there() -> None:
    for page in (ROOT / "docs" / "models.md", *(ROOT / "docs" / "adr").glob("*.md")):
        for link in re.findall(r"\]\(([\w/.-]+\.md)", page.read_text()):
            assert (page.parent / link).exists(), f"{page.name} links to {link}"


def test_the_make_targets_of_the_readme_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"\bmake ([a-z-]+)\b", (ROOT / "README.md").read_text()))
    assert named <= targets, f"README.md names {named - targets}"


def test_ci_runs_what_the_readme_says() -> None:
    assert (ROOT / ".ci" / "run").read_text().splitlines()[-1] == "exec make test"


def test_every_module_stands_in_the_table_of_rooms() -> None:
    rows = re.findall(r"^\| (`[a-z]+/.+?) \|", (ROOT / "docs" / "architecture.md").read_text(), re.MULTILINE)
    named: set[Path] = set()
    for row in rows:
        folder = ROOT
        for pattern in re.findall(r"`([^`]+)`", row):
            if "/" in pattern:
                folder = (ROOT / pattern).parent
            found = set(folder.glob(pattern.rpartition("/")[2]))
            assert found, f"docs/architecture.md names {pattern}, which is not in {folder.name}/"
            named |= found
    rooms = (ROOT / room for room in ("headrace", "flows", "serving", "training", "benchmarks"))
    modules = {path for room in rooms for path in room.rglob("*.py") if path.name != "__init__.py"}
    assert sorted(str(path.relative_to(ROOT)) for path in modules - named) == []
