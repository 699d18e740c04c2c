"""`headrace backfill`: the new state is built beside the old one, and takes its place together with its log positions."""

import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from flows.split import DUPLICATES, EVENTS
from headrace.ops.backfill import BackfillError, backfill
from headrace.ops.child import environment_of
from headrace.ops.verify import verify
from headrace.settings import Settings
from headrace.stores.definitions import load_definitions
from headrace.stores.exchange import BACKFILL_KEY, decided
from headrace.stores.lake import EventLake
from headrace.stores.lake_files import DamagedLakeError
from headrace.stores.log import open_log
from headrace.stores.redis_client import connect
from headrace.stores.shards import DeploymentError, OwnershipError, read_status
from headrace.stores.state_definitions import state_definitions
from tests.conftest import ROOT, wait_until
from tests.integration.online_cluster import valkey_cluster
from tests.integration.small_repo import (
    Event,
    append_events,
    apply_views,
    assert_state_equals_oracle,
    feature,
    make_events,
    make_settings,
    newest_of,
    open_reader,
    read_values,
    run_flow,
    run_lake,
    stream_view,
)

USERS = [f"u{number}" for number in range(8)]


def apply_window(settings: Settings, minutes: int) -> None:
    """Users' views, spendings and last items over a window; items' clicks."""
    user = [feature("views", "view", minutes=minutes), feature("spent", "purchase.price", "sum", minutes=minutes)]
    items = feature("items", "view|click.item_id", "last_n(3)", minutes=None)
    clicks = feature("clicks", "click", minutes=minutes)
    apply_views(settings, stream_view("user_activity", *user, items), stream_view("item_clicks", clicks, of="item"))


@pytest.fixture
def settings(tmp_path: Path, valkey: str) -> Settings:
    settings = make_settings(tmp_path, valkey)
    apply_window(settings, 10)
    return settings


def test_the_flow_goes_on_with_the_old_state_while_the_new_one_is_built(settings: Settings) -> None:
    events, later = make_events(100), make_events(30, seed=2, first=1_000)
    append_events(settings, events)
    run_flow(settings)
    run_lake(settings)
    apply_window(settings, 60)
    seen: list[str] = []

    def meanwhile(what: str, done: int, total: int) -> None:
        if not seen:
            append_events(settings, later)
            run_flow(settings)
            run_lake(settings)
            assert window_of(settings) == 10
            assert_state_equals_oracle(settings, events + later)
        seen.append(what)

    report = backfill(settings, meanwhile, part_events=40)
    assert seen == ["user_activity"] * 3 + ["item_clicks"] * 3 + [
        "catch up 1: user_activity",
        "catch up 1: item_clicks",
    ]
    assert (report.events, window_of(settings)) == (130, 60)
    assert report.rows == {"user_activity": 8, "item_clicks": 6}
    assert_state_equals_oracle(settings, events + later)
    run_flow(settings)
    assert_state_equals_oracle(settings, events + later)


def test_what_the_lake_does_not_have_yet_comes_from_the_log_and_nothing_twice(settings: Settings) -> None:
    """The lake is behind the store; what was sent again across the seam is known as a duplicate."""
    events, later = make_events(100), make_events(40, seed=2, first=1_000)
    append_events(settings, events)
    run_lake(settings)
    append_events(settings, [*later, *events[50:]])
    run_flow(settings)
    apply_window(settings, 60)
    backfill(settings)
    assert_state_equals_oracle(settings, events)
    append_events(settings, [*later[20:], *events[:50]])
    run_flow(settings)
    assert_state_equals_oracle(settings, events + later)
    run_lake(settings)
    assert verify(settings, as_of_us=newest_of(events + later) + 1).ok


def test_counters_go_on_through_a_backfill_and_count_each_entry_once(settings: Settings) -> None:
    events, later = make_events(60), make_events(20, seed=2, first=1_000)
    append_events(settings, events)
    run_lake(settings)
    append_events(settings, [*later, *events[:10]])
    run_flow(settings)
    assert counters(settings) == {EVENTS: 80, DUPLICATES: 10}
    backfill(settings)
    assert counters(settings) == {EVENTS: 80, DUPLICATES: 10}
    append_events(settings, make_events(5, seed=3, first=2_000))
    run_flow(settings)
    assert counters(settings) == {EVENTS: 85, DUPLICATES: 10}


def test_one_backfill_at_a_time(settings: Settings) -> None:
    append_events(settings, make_events(10))
    run_lake(settings)
    tried: list[str] = []

    def another(what: str, done: int, total: int) -> None:
        with pytest.raises(OwnershipError, match="one backfill at a time"):
            backfill(settings)
        tried.append(what)

    backfill(settings, another)
    assert tried
    assert connect(settings).get(BACKFILL_KEY) is None


@pytest.mark.parametrize("stopped_at", ["the first part", "the last part"])
def test_a_backfill_that_was_stopped_past_its_lease_changes_nothing_of_its_successors_state(
    settings: Settings, stopped_at: str
) -> None:
    events, later = make_events(60), make_events(20, seed=2, first=1_000)
    append_events(settings, events)
    run_lake(settings)
    run_flow(settings)
    views = list(load_definitions(settings).streams)
    stopped: list[str] = []

    def stop_for_long(what: str, done: int, total: int) -> None:
        at_first = what == views[0] and done == 1
        if not stopped and (at_first if stopped_at == "the first part" else what == views[-1] and done == total):
            stopped.append(what)
            connect(settings).delete(BACKFILL_KEY)  # as its lease would, in ten seconds
            append_events(settings, later)
            run_lake(settings)
            backfill(settings)

    with pytest.raises(OwnershipError):
        backfill(settings, stop_for_long, part_events=10)
    assert stopped
    run_flow(settings)
    assert_state_equals_oracle(settings, [*events, *later])
    assert verify(settings).ok


def test_a_log_that_no_longer_reaches_the_lake_is_refused_and_nothing_changes(settings: Settings) -> None:
    append_events(settings, make_events(20))
    run_flow(settings)
    run_lake(settings)
    append_events(settings, make_events(20, seed=2, first=1_000))
    run_flow(settings)
    log = open_log(connect(settings), settings)
    log.trim(log.end())
    before = everything(settings)
    with pytest.raises(BackfillError, match=r"log partition \d begins after position \d+, the lake ends at"):
        backfill(settings)
    assert everything(settings) == before


def test_a_lake_file_cut_short_is_named_and_nothing_changes(settings: Settings) -> None:
    append_events(settings, make_events(20))
    run_flow(settings)
    run_lake(settings)
    file = next(iter(EventLake(settings.lake_dir).path.rglob("*.parquet")))
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    before = everything(settings)
    with pytest.raises(
        DamagedLakeError, match=f"{file.name} has {len(content) // 2} bytes, it was written with {len(content)}"
    ):
        backfill(settings)
    assert everything(settings) == before
    with pytest.raises(DamagedLakeError, match=file.name):
        verify(settings)
    file.unlink()
    with pytest.raises(DamagedLakeError, match=f"{file.name} is missing"):
        backfill(settings)


def test_a_store_of_another_number_of_shards_or_partitions_is_refused(settings: Settings) -> None:
    append_events(settings, make_events(20))
    run_flow(settings)
    run_lake(settings)
    before = everything(settings)
    for name in ("shards", "log_partitions"):
        other = settings.model_copy(update={name: 3})
        for engine in (backfill, verify, run_flow):
            with pytest.raises(DeploymentError, match=f"set HEADRACE_{name.upper()}=2"):
                engine(other)
    with pytest.raises(DeploymentError, match="set HEADRACE_SHARDS=2"):
        open_reader(settings.model_copy(update={"shards": 3})).fetch({"user_activity": USERS})
    assert everything(settings) == before


def test_verify_names_rows_that_cannot_be_read_and_values_that_differ(settings: Settings) -> None:
    events = make_events(60)
    append_events(settings, events)
    run_flow(settings)
    run_lake(settings)
    client, t_us = connect(settings), newest_of(events) + 1
    keys = {user: next(client.scan_iter(match=f"headrace:{{s*}}:user_activity:{user}")) for user in ("u0", "u1", "u2")}
    client.set(keys["u0"], client.get(keys["u0"])[:-3])
    client.set(keys["u1"], b"\x01" * 8 + client.get(keys["u1"])[8:])
    client.delete(keys["u2"])
    report = verify(settings, as_of_us=t_us)
    found = {(each.view, each.entity, each.feature): each for each in report.examples}
    assert report.mismatches["user_activity"] == 2
    assert "damaged" in found["user_activity", "u0", ""].store
    assert "fingerprint 0101010101010101" in found["user_activity", "u1", ""].store
    items = found["user_activity", "u2", "items"]
    assert (items.store, len(items.lake)) == ([], 3)
    assert str(items) == f"user_activity.items of u2: the store has [], the lake gives {items.lake}"
    assert report.entities["user_activity"] == 8


def test_verify_in_small_parts_compares_the_same(settings: Settings) -> None:
    events = make_events(60)
    append_events(settings, events)
    run_flow(settings)
    run_lake(settings)
    whole, parts = verify(settings, newest_of(events) + 1), verify(settings, newest_of(events) + 1, part_events=7)
    assert whole.ok
    assert parts == whole


def test_a_backfill_on_a_cluster(tmp_path: Path) -> None:
    with valkey_cluster(tmp_path / "cluster") as cluster:
        settings = make_settings(tmp_path, cluster.url).model_copy(update={"redis_cluster": True, "shards": 8})
        events, later = make_events(60), make_events(20, seed=2, first=1_000)
        apply_window(settings, 10)
        append_events(settings, events)
        run_flow(settings)
        run_lake(settings)
        apply_window(settings, 60)
        assert backfill(settings).rows == {"user_activity": 8, "item_clicks": 6}
        assert window_of(settings) == 60
        append_events(settings, later)
        run_flow(settings)
        assert_state_equals_oracle(settings, events + later)
        run_lake(settings)
        assert verify(settings, as_of_us=newest_of(events + later) + 1).ok
        apply_views(settings, stream_view("item_clicks", feature("clicks", "click", minutes=60), of="item"))
        assert set(state_definitions(connect(settings), settings).streams) == {"item_clicks"}


RUNNER = """
import sys
from headrace.ops.backfill import backfill
from headrace.settings import Settings
print("ready", flush=True)
backfill(Settings(), part_events=25)
"""


@pytest.fixture
def kept_flows(settings: Settings) -> Iterator[Callable[[], None]]:
    """Both flows as processes; a call starts those again that have ended by themselves, as a supervisor does."""
    flows: dict[str, subprocess.Popen[bytes]] = {}

    def keep() -> None:
        for name in ("features", "lake"):
            if name not in flows or flows[name].poll() is not None:
                flows[name] = subprocess.Popen(
                    [sys.executable, "-m", f"flows.{name}"], cwd=ROOT, env=environment_of(settings), stderr=subprocess.DEVNULL
                )  # fmt: skip

    yield keep
    for flow in flows.values():
        flow.terminate()
    for flow in flows.values():
        flow.wait(timeout=30)


@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_a_backfill_killed_at_random_moments_leaves_the_old_state_and_another_completes(
    settings: Settings, kept_flows: Callable[[], None], kills: int
) -> None:
    """Both flows run and events keep coming, some of them twice, all the while."""
    rng, sent, reader = random.Random(7), list[Event](), open_reader(settings)

    def send(count: int) -> None:
        events = make_events(
            count, seed=len(sent), first=len(sent), start_us=newest_of(sent) if sent else 1_760_000_000_000_000
        )
        again = rng.sample(sent, min(5, len(sent)))
        sent.extend(events)
        append_events(settings, [*events, *again], entry=7)

    kept_flows()
    send(200)
    wait_until(lambda: lake_holds(settings, len(sent)), timeout_s=60)
    apply_window(settings, 60)
    for _ in range(kills):
        runner = subprocess.Popen(
            [sys.executable, "-c", RUNNER], cwd=ROOT, env=environment_of(settings), stdout=subprocess.PIPE
        )
        assert runner.stdout is not None
        assert runner.stdout.readline() == b"ready\n"
        killed_at = time.monotonic() + rng.uniform(0.0, 1.2)
        while time.monotonic() < killed_at and runner.poll() is None:
            send(3)
            kept_flows()
            assert set(read_values(settings, "user_activity", USERS, newest_of(sent) + 1, reader)) == {
                "views",
                "spent",
                "items",
            }
        runner.kill()
        runner.wait()
        runner.stdout.close()
    wait_until(lambda: connect(settings).get(BACKFILL_KEY) is None, timeout_s=30)
    kept_flows()
    backfill(settings)
    assert window_of(settings) == 60
    assert decided(connect(settings)) is None
    send(20)

    def caught_up() -> bool:
        kept_flows()
        end = open_log(connect(settings), settings).end()
        return all(
            status.positions.get(p, 0) >= end[p]
            for status in read_status(connect(settings), range(2)).values()
            for p in end
        )

    wait_until(caught_up, timeout_s=60)
    assert_state_equals_oracle(settings, sent)
    assert counters(settings)[EVENTS] == len(sent)
    assert verify(settings).ok


def window_of(settings: Settings) -> int:
    """Minutes of the window that the state was made by."""
    spec = state_definitions(connect(settings), settings).streams["user_activity"]
    return (spec.aggregate("views").window_us or 0) // 60_000_000


def lake_holds(settings: Settings, events: int) -> bool:
    return EventLake(settings.lake_dir).scan(["event_id"]).collect().height >= events


def counters(settings: Settings) -> dict[str, int]:
    """Sums over the shards, zeros left out."""
    total: dict[str, int] = {}
    for status in read_status(connect(settings), range(settings.shards)).values():
        for name, value in status.counters.items():
            total[name] = total.get(name, 0) + value
    return {name: value for name, value in total.items() if value and name in (EVENTS, DUPLICATES)}


def everything(settings: Settings) -> dict[bytes, object]:
    """What the store holds, by key, leases and the crew apart."""
    client = connect(settings)
    keys = [key for key in client.scan_iter(match="headrace:*") if b"@lease" not in key and b":log:" not in key]
    return {key: client.dump(key) for key in keys if b"@commit" not in key and b"crew" not in key}
