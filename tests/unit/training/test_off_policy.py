"""From logged slates to what the policy would earn with another share of them drawn."""

import json
from collections.abc import Iterable
from dataclasses import replace
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from headrace.decoding import decode_payload
from headrace.events import EVENT_SCHEMA, encode_records
from headrace.ingest.simulator import click_chance
from headrace.models.bundle import Bundle
from headrace.settings import MICROS, Settings
from headrace.stores.lake import EventLake
from headrace.stores.models import POINTER, BundleRef, RegistryError, write_pointer
from serving.candidates import Candidates, Slate, Trace
from serving.explore import Exploration, explore
from serving.impressions import Shown, lines_of
from tests import policies
from tests.integration.tiny_bundle import save_bundle
from training.config import small
from training.dataset import DatasetError
from training.estimators import OffPolicyError
from training.logged_slates import cascade_weights, place_rates, read_slates
from training.off_policy import DOUBLY_ROBUST, IPS, SNIPS, command, of_lake

T = 1_767_225_600 * MICROS
HOUR_US = 3_600 * MICROS


def lake_of(folder: Path, payload: bytes) -> EventLake:
    table, bad = decode_payload(payload)
    assert not bad
    nothing = {name: pa.nulls(table.num_rows, EVENT_SCHEMA.field(name).type) for name in EVENT_SCHEMA.names}
    given = dict(zip(table.column_names, table.columns, strict=True))
    for column in ("log_partition", "log_position"):
        given[column] = pa.array([column == "log_position"] * table.num_rows).cast(EVENT_SCHEMA.field(column).type)
    lake = EventLake(folder)
    lake.append(pa.table({**nothing, **given}).select(EVENT_SCHEMA.names), {0: 1})
    return lake


def event(kind: str, request: str, item: str, at_us: int = T, **fields: Any) -> dict[str, Any]:
    same = {"user_id": "u", "user_key": "u", "timestamp": at_us, "received_at": at_us, "schema_version": 1}
    return {
        "event_id": f"{kind}:{request}:{item}",
        "type": kind,
        "request_id": request,
        "item_id": item,
        **same,
        **fields,
    }


def impression(
    request: str, position: int, item: str, propensity: float | None = 1.0, drawn: float | None = None,
    greedy: bool = True, **fields: Any,
) -> dict[str, Any]:  # fmt: skip
    explored = {} if drawn is None else {"properties": json.dumps({"greedy": greedy, "drawn": drawn})}
    of_policy = {"position": position, "model_version": "v1", "as_of": T} | explored
    if propensity is not None:
        of_policy["propensity"] = propensity
    return event("impression", request, item, **{**of_policy, **fields})


TWO_SLATES = [
    impression("r1", 0, "a", 0.9, 0.5),
    impression("r1", 1, "b", 0.8, 0.6),
    event("click", "r1", "a", T + 1),
    impression("r2", 0, "b", 0.05, 0.5, greedy=False),
    impression("r2", 1, "a", 1.0, 1.0, greedy=False),
    impression("r2", 2, "x", 1.0),
    event("view", "r2", "b", T + 2),
    event("purchase", "r2", "x", T + 3),
]
LONG_AFTER = event("view", "r9", "z", T + 500 * HOUR_US)


def slates_of(
    folder: Path, rows: Iterable[dict[str, Any]], days: float = 30.0, outcome: str = "click", hours: float = 24.0
) -> Any:
    """Of a log that goes on long after."""
    return read_slates(
        lake_of(folder, encode_records([*rows, LONG_AFTER])), "v1", days, outcome, small().changed(outcome_hours=hours)
    )


def test_slates_are_read_by_place_with_what_came_of_them(tmp_path: Path) -> None:
    found = slates_of(tmp_path, reversed(TWO_SLATES))
    assert found.slates == 2
    assert found.slate_R.tolist() == [0, 0, 1, 1, 1]
    assert found.position_R.tolist() == [0, 1, 0, 1, 2]
    assert found.reward_R.tolist() == [1, 0, 1, 0, 1]
    assert np.exp(found.log_logged_R) == pytest.approx([0.9, 0.72, 0.05, 0.05, 0.05])
    assert np.exp(found.log_drawn_R) == pytest.approx([0.5, 0.3, 0.5, 0.5, 0.5])
    assert found.greedy_R.tolist() == [True, True, False, False, False]
    assert slates_of(tmp_path / "purchases", TWO_SLATES, outcome="purchase").reward_R.tolist() == [0, 0, 0, 0, 1]


def test_a_place_is_weighed_by_all_that_stands_down_to_it(tmp_path: Path) -> None:
    found = slates_of(tmp_path, TWO_SLATES)
    weights, above = cascade_weights(found, share=0.0)
    assert weights == pytest.approx([1 / 0.9, 1 / 0.72, 0, 0, 0])
    assert above == pytest.approx([1, 1 / 0.9, 1, 0, 0])
    weights, above = cascade_weights(found, share=0.2)
    assert weights == pytest.approx([0.9 / 0.9, (0.8 + 0.06) / 0.72, 0.1 / 0.05, 0.1 / 0.05, 0.1 / 0.05])
    assert above == pytest.approx([1, 1, 1, 2, 2])
    assert cascade_weights(found, share=1.0)[0] == pytest.approx([0.5 / 0.9, 0.3 / 0.72, 10, 10, 10])


def test_a_place_is_expected_to_earn_what_it_does_in_other_slates(tmp_path: Path) -> None:
    found = slates_of(tmp_path, TWO_SLATES)
    overall = {0: 2 / 3, 1: 1 / 2}  # of the other slate alone
    by_hand = [(1 + 100 * overall[0]) / 101, 100 * overall[0] / 101, (1 + 100 * overall[1]) / 101]
    by_hand += [100 * overall[1] / 101, overall[1]]
    assert place_rates(found) == pytest.approx(by_hand)


def test_what_was_not_explored_or_is_not_whole_is_left_out_and_counted(tmp_path: Path) -> None:
    others = [
        impression("r3", 0, "a"),
        impression("r4", 1, "a", 0.9, 0.5),
        impression("r5", 0, "a", 0.9, 0.5, model_version="v2"),
        event("impression", "r6", "a", position=0, model_version="shop-policy", as_of=T),
    ]
    found = slates_of(tmp_path, [*TWO_SLATES, *others])
    assert found.slates == 2
    assert found.left_out == {"not explored": 1, "with a place missing": 1, "whose outcomes may still come": 0}


@pytest.mark.parametrize(("hours", "rewards", "unsettled"), [(0.5, [0, 0], 0), (2.0, [1, 0], 0), (2.1, [1], 1)])
def test_outcomes_count_within_their_hours_and_a_slate_that_is_not_so_old_is_left_out_and_counted(
    tmp_path: Path, hours: float, rewards: list[float], unsettled: int
) -> None:
    """The second slate was shown two hours before the log ends."""
    rows = [
        impression("r1", 0, "a", 0.9, 0.5),
        event("click", "r1", "a", T + HOUR_US),
        impression("r2", 0, "b", 0.1, 0.5, timestamp=T + 8 * HOUR_US, as_of=T + 8 * HOUR_US),
        event("view", "r9", "z", T + 10 * HOUR_US),
    ]
    found = read_slates(
        lake_of(tmp_path, encode_records(rows)), "v1", 1.0, "click", small().changed(outcome_hours=hours)
    )
    assert found.reward_R.tolist() == rewards
    assert found.left_out["whose outcomes may still come"] == unsettled


def test_the_window_ends_with_the_version_s_last_impression(tmp_path: Path) -> None:
    late = {"timestamp": T + 48 * HOUR_US, "as_of": T + 48 * HOUR_US}
    rows = [*TWO_SLATES, impression("r3", 0, "a", 0.9, 0.5, **late), impression("r4", 0, "b", 0.1, 0.5, **late)]
    assert slates_of(tmp_path / "one", rows, days=1.0).slates == 2
    assert slates_of(tmp_path / "two", rows, days=3.0).slates == 4


def test_logs_that_say_nothing_are_refused_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="run `headrace ingest` first"):
        read_slates(EventLake(tmp_path), "v1", 1.0, "click", small())
    lake = lake_of(tmp_path, encode_records([impression("r3", 0, "a")]))
    with pytest.raises(
        OffPolicyError,
        match=r"holds no impression of version 2 \(bundle v7\): serve slates first, with HEADRACE_EXPLORATION",
    ):
        read_slates(lake, "v7", 1.0, "click", small(), called="version 2 (bundle v7)")
    with pytest.raises(OffPolicyError, match=r"none of 1 slates of version v1 .* HEADRACE_EXPLORATION above 0"):
        read_slates(lake, "v1", 1.0, "click", small())
    with pytest.raises(
        OffPolicyError, match=r"none of 2 slates .* can be read: .*may still come\. .* 24 hours .* wait for"
    ):
        read_slates(lake_of(tmp_path / "young", encode_records(TWO_SLATES)), "v1", 1.0, "click", small())
    with pytest.raises(OffPolicyError, match="1 of 1 impressions have no propensity"):
        slates_of(tmp_path / "none", [impression("r1", 0, "a", None, 0.5)])


# From serving's own lines to a report.

SCORES = [0.5, 0.3, 0.25, 0.1]
KINDS = [(True, False), (False, False), (True, True), (True, False)]
"""Of the candidates: of the category wanted, of the own segment. The ranker is wrong about the second and the third."""
SHARE, TEMPERATURE, SHOWN, SLATES = 0.5, 1.0, 3, 4_000


def true_value(share: float) -> float:
    """Clicks per impression, over every order that can be shown."""
    return sum(
        policies.prefix(SCORES, order, share, TEMPERATURE) * click_chance(*KINDS[item], place)
        for order in permutations(range(4), SHOWN)
        for place, item in enumerate(order)
    ) / SHOWN  # fmt: skip


def served(version: str) -> bytes:
    """Impressions as serving writes them, and the clicks of visitors who follow the simulator's own chances."""
    rng = np.random.default_rng(5)
    ranked = Candidates(np.arange(4), np.ones(4, np.int64), np.array(SCORES))
    lines = []
    for number in range(SLATES):
        request = f"request-{number}"
        shown, chances = explore(ranked, Exploration(SHARE, TEMPERATURE), request)
        items = shown.take(slice(SHOWN))
        ids = [f"i{row}" for row in items.rows.tolist()]
        slate = Slate(ids, items, T + number, 0, version, Trace(100), (), chances)
        lines.append(lines_of(Shown(slate, request, {"user_id": f"u{number}"}, None, T + number)))
        for place, row in enumerate(items.rows.tolist()):
            if rng.random() < click_chance(*KINDS[row], place):
                lines.append(encode_records([event("click", request, f"i{row}", T + number + 5)]))
    return b"\n".join(lines)


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """A lake of explored slates of the version in service."""
    settings = Settings(data=tmp_path_factory.mktemp("explored"))
    bundle = save_bundle(settings, "v1")
    write_pointer(settings.bundles_dir / POINTER, BundleRef("1", bundle, T))
    lake_of(settings.lake_dir, served("v1") + b"\n" + encode_records([LONG_AFTER]))
    return settings


@pytest.mark.parametrize("share", [0.0, 0.1, 1.0])
def test_a_report_holds_the_true_value_of_the_version_in_service_with_another_share_drawn(
    stack: Settings, share: float
) -> None:
    report = of_lake(stack, share=share)
    assert (report.slates, report.impressions) == (SLATES, SHOWN * SLATES)
    assert report.logged.low < true_value(SHARE) < report.logged.high
    for name in (IPS, SNIPS, DOUBLY_ROBUST):
        estimate = report.estimates[name]
        assert estimate.low < true_value(share) < estimate.high
        assert estimate.high - estimate.low < 0.05
        assert estimate.mean_weight == pytest.approx(1.0, abs=0.03)


def test_the_policy_as_it_was_is_worth_what_was_logged(stack: Settings) -> None:
    report = of_lake(stack, share=SHARE)
    assert (report.logged_by, report.source) == ("version 1 (bundle v1)", "its own logs")
    assert report.target == "version 1 (bundle v1) with 0.5 of its slates drawn"
    assert report.estimates[IPS].value == pytest.approx(report.logged.value)
    assert report.estimates[IPS].largest == pytest.approx(1.0)


def test_outcomes_count_within_the_hours_of_the_version_that_showed_the_items(tmp_path: Path) -> None:
    settings = Settings(data=tmp_path)
    bundle = Bundle.load(save_bundle(settings, "v0"))
    of_two_hours = replace(bundle.manifest, version="v1", config=small().changed(outcome_hours=2.0).to_json())
    replace(bundle, manifest=of_two_hours).save(settings.bundles_dir / "v1")
    write_pointer(settings.bundles_dir / POINTER, BundleRef("1", settings.bundles_dir / "v1", T))
    rows = [impression(f"r{number}", 0, "a", 0.9, 0.5) for number in range(2)]
    rows += [event("click", f"r{number}", "a", T + (1 + 2 * number) * HOUR_US) for number in range(2)]
    rows.append(impression("r2", 0, "b", 0.9, 0.5, timestamp=T + 2 * HOUR_US, as_of=T + 2 * HOUR_US))
    lake_of(settings.lake_dir, encode_records(rows))
    report = of_lake(settings)
    assert (report.slates, report.logged.value) == (2, 0.5)
    assert report.left_out["whose outcomes may still come"] == 1


def test_a_clipped_report_has_no_larger_weight(stack: Settings) -> None:
    assert of_lake(stack, clip=1.2).estimates[SNIPS].largest == pytest.approx(1.2)


def test_what_nobody_can_ask_for_is_refused_by_name(stack: Settings, tmp_path: Path) -> None:
    with pytest.raises(OffPolicyError, match="share is 2: it is a share of slates between 0 and 1"):
        of_lake(stack, share=2.0)
    with pytest.raises(OffPolicyError, match="no outcome is called 'bliss': choose one of click, cart, purchase"):
        of_lake(stack, outcome="bliss")
    with pytest.raises(RegistryError, match="no version is in service"):
        of_lake(Settings(data=tmp_path))


def test_the_command_prints_one_object_or_one_line_of_error(
    stack: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HEADRACE_DATA", str(stack.data))
    assert command(["--json"]) == 0
    assert json.loads(capsys.readouterr().out)["slates"] == SLATES
    assert command([]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "4,000 slates, 3.00 in each" in printed
    assert (
        "version 1 (bundle v1) without exploration, from its own logs: click per impression, 95% intervals" in printed
    )
    assert command(["open-bandit"]) == 1
    assert capsys.readouterr().err.startswith("error: open-bandit needs a path")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["lake", "logs"], "lake takes no path: leave that out, or ask open-bandit"),
        (["--behaviour=bts", "--target=random"], "lake takes no --behaviour and no --target: leave"),
        (["lake", "--campaign", "all"], "lake takes no --campaign: leave"),
        (["open-bandit", "logs", "--version=3", "--days=1"], "open-bandit takes no --version and no --days: leave"),
        (
            ["open-bandit", "logs", "--share=0", "--outcome=cart"],
            "open-bandit takes no --share and no --outcome: leave",
        ),
    ],
)
def test_what_the_other_source_is_asked_by_is_refused_by_name(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(arguments) == 1
    assert capsys.readouterr().err.startswith(f"error: {said}")
