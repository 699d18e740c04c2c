"""Law 3, effectively once: SIGKILL of any process at any moment, and deliveries that repeat, change no feature of any entity.

The short forms run with every test; the proofs, with twenty kills and more each, under `make test-slow`.
"""

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from headrace.ingest.rees46 import Rees46
from headrace.ingest.simulator import ShopConfig, simulate
from headrace.ingest.source import Source
from tests.laws.crash import AGES_US, Trial, assert_nothing_lost_and_nothing_twice, assert_state_is_right, history
from tests.laws.site import Site

MakeSite = Callable[..., Site]
REPEATS, LATE = 0.2, 0.05
LEASE_S = 1.0
"""Short, as the successor of a killed flow waits for it. The two long replays have the default."""
SLOW = [pytest.mark.slow, pytest.mark.timeout(1800)]


def shop(events: int) -> Source:
    return simulate(
        ShopConfig(events=events, users=max(100, events // 50), items=max(50, events // 100), categories=10)
    )


def trial_of(site: Site, source: Source, rounds: int, seed: int, first: int | None = None) -> Trial:
    """A replay of a source's first events: in `rounds + 1` shares of some twenty appends each."""
    print(f"seed {seed}")
    events = history(source, site, LATE, seed).head(first or 10**9)
    slice_events = max(1, events.height // (rounds + 1) // 20)
    return Trial(site, site.feed(events, slice_events, REPEATS, seed), rounds, random.Random(seed))


def assert_exact(trial: Trial) -> None:
    """After few kills, at three ages; after many, at all."""
    trial.finish()
    assert len(trial.kills) >= trial.rounds
    assert_nothing_lost_and_nothing_twice(trial.site, trial.feed.events)
    assert_state_is_right(trial.site, trial.feed.events, AGES_US if len(trial.kills) >= 20 else AGES_US[::4])


def kill_both_flows(trial: Trial) -> None:
    """The feature flow in each round, the lake flow in every other one."""
    features, lake = trial.site.start("features"), trial.site.start("lake")
    for number in range(trial.rounds):
        trial.play(number, live=number % 2 == 0)
        trial.kill(features)
        if number % 2:
            trial.wait(lambda: any(trial.site.lake_positions().values()))
            trial.pause(0, 1.0)
            trial.kill(lake)
    assert_exact(trial)


def test_kills_of_the_flows_lose_nothing_and_count_nothing_twice(make_site: MakeSite) -> None:
    site = make_site(flow_lease_s=LEASE_S)
    site.apply(every_function=True)
    kill_both_flows(trial_of(site, shop(3_000), rounds=3, seed=1))


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", [11])
def test_kills_in_a_simulation_of_200_000_events_change_nothing(make_site: MakeSite, seed: int) -> None:
    site = make_site()
    site.apply(every_function=True, default_set=True)
    kill_both_flows(trial_of(site, shop(200_000), rounds=22, seed=seed))


@pytest.mark.data
@pytest.mark.parametrize(("rounds", "first"), [(2, 3_000), pytest.param(22, None, marks=SLOW)])
def test_kills_in_a_paced_replay_of_rees46_change_nothing(
    make_site: MakeSite, datasets: Path, rounds: int, first: int | None
) -> None:
    site = make_site()
    site.apply(every_function=False, default_set=True)
    kill_both_flows(trial_of(site, Rees46(datasets / "rees46"), rounds, seed=rounds, first=first))


@pytest.mark.parametrize(("rounds", "events"), [(2, 2_000), pytest.param(20, 20_000, marks=SLOW)])
def test_kills_of_the_store_in_between_change_nothing(make_site: MakeSite, rounds: int, events: int) -> None:
    """Its append-only file brings back what it had acknowledged; what was not confirmed is sent again."""
    site = make_site(flow_lease_s=LEASE_S)
    site.apply(every_function=True)
    trial = trial_of(site, shop(events), rounds, seed=rounds)
    features = site.start("features")
    site.start("lake")
    for number in range(rounds):
        trial.play(number, live=number % 2 == 0)
        trial.kill_server()
        if number % 2:
            trial.kill(features)
    assert_exact(trial)


@pytest.mark.parametrize(("rounds", "events"), [(2, 2_000), pytest.param(20, 20_000, marks=SLOW)])
def test_a_second_flow_started_by_mistake_changes_nothing_whichever_is_killed(
    make_site: MakeSite, rounds: int, events: int
) -> None:
    site = make_site(flow_lease_s=LEASE_S)
    site.apply(every_function=True)
    trial = trial_of(site, shop(events), rounds, seed=rounds)
    pair = [site.start("features"), site.start("features")]
    site.start("lake")
    for number in range(rounds):
        trial.play(number, live=number % 2 == 0)
        trial.kill(trial.random.choice([flow for flow in pair if flow.is_running()]))
    assert_exact(trial)


@pytest.mark.parametrize("rounds", [1, pytest.param(10, marks=SLOW)])
def test_a_flow_that_was_paused_past_its_lease_cannot_overwrite_its_successor(make_site: MakeSite, rounds: int) -> None:
    """SIGSTOP in mid-stream; its successor takes everything in; SIGCONT: what the zombie still holds is refused."""
    site = make_site(flow_lease_s=LEASE_S)
    site.apply(every_function=True)
    trial = trial_of(site, shop(1_000 * (rounds + 1)), rounds, seed=rounds)
    zombie = site.start("features")
    site.start("lake")
    for number in range(rounds):
        trial.play(number, live=True)
        zombie = trial.supersede(zombie)
    trial.finish()
    assert_nothing_lost_and_nothing_twice(site, trial.feed.events)
    assert_state_is_right(site, trial.feed.events, AGES_US[::4])
