"""Faults under everyday traffic, in short: every answer is right, nothing acknowledged is lost, and what is missing is named.

`python -m benchmarks.reliability` is the long form, with figures (docs/reliability.md). A machine that runs tests does something else as
well, so the deadline is a second here, and how late answers are is not looked at.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from benchmarks import reliability_faults as faults
from benchmarks.recommend_site import Shop, Sites
from benchmarks.reliability import Trials, without_a_store
from benchmarks.reliability_faults import Outcome, Scale
from benchmarks.reliability_load import Rates
from benchmarks.reliability_shop import read_shop
from headrace.clock import system_clock
from headrace.ops.interrupts import Interrupts
from headrace.settings import Settings
from serving import candidates as c

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

QUICK = ("tower_epochs=1", "ranker_epochs=1")
SHOP = Shop(300, 200, 8_000, "small", QUICK)
SHORT = Scale(calm_s=2.0, stalled_s=2.0, flow_stopped_s=6.0, swaps=2, full_s=1.0, overload_s=3.0)
RATES = Rates(slates=20.0, posts=10.0, changes=1.0)


@pytest.fixture(scope="module")
def trials(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trials]:
    """Stacks over a small shop with a model, which is trained once."""
    folder, interrupts = tmp_path_factory.mktemp("faults"), Interrupts()
    with interrupts.installed():
        prepared = Sites(folder / "site", interrupts, print, system_clock).prepared(SHOP)
        yield Trials(prepared, folder, interrupts, SHORT, system_clock, RATES, deadline_ms=1_000.0)


Try = Callable[..., dict[str, Outcome]]


@pytest.fixture
def tried(trials: Trials, request: pytest.FixtureRequest) -> Try:
    """Tries faults on a stack with these settings: no wrong answer, nothing lost. Gives outcomes by the fault's function."""
    name, tries = re.sub(r"\W+", "-", request.node.name)[-40:], count(1)

    def run(*what: Callable[[Any], None], **own: Any) -> dict[str, Outcome]:
        kept = trials.tried(f"{name}-{next(tries)}", what, **own)
        assert (kept.unmet, kept.lost, kept.doubled, kept.mismatches) == ([], 0, 0, {})
        assert kept.acknowledged > 0
        assert kept.compared > 0
        assert [each.wrong for each in kept.outcomes] == [[]] * len(what)
        return {fault.__name__: outcome for fault, outcome in zip(what, kept.outcomes, strict=True)}

    return run


def failures(outcomes: Sequence[Outcome]) -> list[int]:
    return [len(outcome.failed) for outcome in outcomes]


def test_while_valkey_is_killed_or_stalled_every_request_gets_its_slate_and_it_is_named(tried: Try) -> None:
    found = tried(faults.valkey_killed, faults.valkey_stalled)
    assert failures([*found.values()]) == [0, 0]
    for outcome in found.values():
        assert outcome.degraded[c.NO_USER_FEATURES] > 0


def test_features_older_than_their_bound_count_as_not_there_until_the_flow_goes_on(tried: Try) -> None:
    (outcome,) = tried(faults.flow_stopped, feature_age_bound_s=3.0).values()
    assert outcome.failed == []
    assert outcome.degraded[c.STALE_FEATURES] > 0
    assert (outcome.notes["named_below_bound"], outcome.notes["not_named_above_bound"]) == (0, 0)
    assert outcome.notes["age_by_answers_s"] > 3
    assert outcome.notes["age_by_metric_s"] > 3


def test_models_are_swapped_between_requests_and_bad_ones_refused_or_left_out(tried: Try) -> None:
    found = tried(faults.models_swapped, faults.bundles_refused, faults.model_fails)
    assert failures([*found.values()]) == [0, 0, 0]
    assert found["bundles_refused"].notes["other_versions"] == 0
    said = found["bundles_refused"].notes["said"]
    assert "weights.pt" in said["damaged weights"]
    assert "another definition of view" in said["another fingerprint"]
    assert "not finite" in said["weights that are NaN"]
    assert found["model_fails"].degraded[c.RANKER_FAILED] > 0


def test_a_replica_that_is_killed_comes_back_and_with_two_of_them_few_requests_notice(tried: Try) -> None:
    (alone,) = tried(faults.replica_killed).values()
    (of_two,) = tried(faults.replica_killed, recommender_replicas=2).values()
    assert set(alone.notes["failed_as"]) | set(of_two.notes["failed_as"]) <= {"0", "500", "502", "503", "504"}
    assert len(of_two.failed) <= max(len(alone.failed), 5)


def test_with_the_log_full_answers_go_on_and_impressions_are_dropped_and_counted(tried: Try) -> None:
    (outcome,) = tried(faults.log_full, log_max_bytes=2**18).values()
    assert outcome.failed == []
    assert outcome.notes["impressions_dropped"] > 0


@pytest.mark.parametrize("overload", ["shed", "fallback"])
def test_beyond_capacity_requests_are_answered_in_time_or_shed(tried: Try, overload: str) -> None:
    (outcome,) = tried(faults.overloaded, overload=overload).values()
    assert outcome.failed == []
    assert set(outcome.notes["open_statuses"]) <= {"200", "429"}


def test_without_a_store_the_snapshot_answers_and_without_one_the_bundle(trials: Trials) -> None:
    with trials.world("before") as world:
        with world.tried("none"):
            pass
        world.load.stop()
        data: Path = world.stack.settings.data
    shop = world.load.shop
    assert len(shop) >= len(read_shop(Settings(data=trials.prepared)))
    for outcome in without_a_store(trials, data, shop):
        assert (outcome.failed, outcome.wrong) == ([], [])
        assert outcome.notes["named_by_all"]
