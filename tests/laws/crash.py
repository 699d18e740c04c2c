"""The crash harness: SIGKILL at random moments of a paced replay, and the comparison of everything with the offline recomputation."""

import os
import random
import re
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

import polars as pl

from headrace import names
from headrace.clock import system_clock
from headrace.events import RECORD_SCHEMA
from headrace.ingest.load import ingest
from headrace.ingest.source import Source
from headrace.ops.child import Child
from headrace.ops.verify import verify
from headrace.settings import MICROS
from headrace.stores.lake import EventLake
from tests.conftest import wait_until
from tests.laws.agreement import Truth
from tests.laws.feed import Feed
from tests.laws.site import Progress, Site, distinct, log_records
from tests.laws.streams import frame

AGES_S: Final = (4, 60, 599, 660, 3_600, 7_300, 86_400, 8 * 86_400)
AGES_US: Final = (1, *(age * MICROS for age in AGES_S))
"""How long after the newest event everything is compared: at once, and as windows run empty one after another."""
PATIENCE_S: Final = 180.0
REFUSED: Final = re.compile(r"epoch \d+ is past")


@dataclass(frozen=True)
class Kill:
    """How far things were just before a SIGKILL, and when the process was gone."""

    victim: str
    before: Progress
    after: Progress

    def check(self, end: Progress) -> None:
        """It fell after the victim's first commit and before its last."""
        assert self.before.started(self.victim), f"before the first commit: {self}"
        assert self.after.short_of(end, self.victim), f"after the last commit, {end}: {self}"


@dataclass
class Trial:
    """A paced replay with kills, one a round. The feed waits for each round at its share of the events, so no kill comes too late."""

    site: Site
    feed: Feed
    rounds: int
    random: random.Random
    kills: list[Kill] = field(default_factory=list)
    _share: int = 0
    _started_us: int = field(default_factory=system_clock)
    _startup_s: float = 2.0

    def play(self, number: int, live: bool) -> None:
        """Lets the events of round `number`, from 0, through; returns when it is time for its kill.

        *Live*: events arrive in small entries while the flow stands at the end of the log, and it is time when a random one of them is
        in the state. Else at a random moment while a flow that was started just before comes up and catches up.
        """
        if live:
            self.wait(lambda: self.site.caught_up(self._started_us))
            self._startup_s = (system_clock() - self._started_us) / MICROS
        start, self._share = (self.feed.total * (number + more) // (self.rounds + 1) for more in (0, 1))
        goal = self.random.randint(start + 1, self._share)
        self.feed.allow(self._share)
        if live:
            self.wait(lambda: self.site.counted("events") >= goal, every_s=0.002)
            self.pause(0, 0.03)
        else:
            self.pause(0.6 * self._startup_s, 1.2 * self._startup_s)

    def pause(self, shortest_s: float, longest_s: float) -> None:
        """A kill may fall at any moment between two commits, and in the middle of one."""
        time.sleep(self.random.uniform(shortest_s, longest_s))

    def wait(self, condition: Callable[[], bool], every_s: float = 0.05) -> None:
        """Until it holds; what has ended by itself is started again meanwhile, as the supervisor does."""

        def holds() -> bool:
            self.site.revive()
            return condition()

        wait_until(holds, timeout_s=PATIENCE_S, every_s=every_s)

    def kill(self, child: Child) -> None:
        """SIGKILL, and start again."""
        before = self.site.progress()
        child.kill()
        self.kills.append(Kill(child.name, before, self.site.progress()))
        child.start()
        self._started_us = system_clock()

    def supersede(self, flow: Child) -> Child:
        """Pause a flow until another one has all shards and everything in them; let it go on: it must be refused. Returns the other."""
        os.kill(flow.pid, signal.SIGSTOP)
        successor = self.site.start("features")
        taken = [f"shard {shard} is ours" for shard in range(self.site.settings.shards)]
        self.wait(lambda: all(line in successor.log.read_text() for line in taken))
        self.wait(lambda: self.feed.sent == self._share and self.site.at_the_end())
        before = self.site.progress()
        os.kill(flow.pid, signal.SIGCONT)
        wait_until(lambda: REFUSED.search(flow.log.read_text()) is not None, timeout_s=PATIENCE_S)
        flow.kill()
        self.site.flows.remove(flow)
        assert self.site.progress() == before
        return successor

    def kill_server(self) -> None:
        """SIGKILL of the store. What it had acknowledged is there when it comes back."""
        before = self.site.progress()
        self.site.server.kill()
        self.site.server.start()
        after = self.site.progress()
        self.kills.append(Kill("features", before, after))
        assert before.within(after), f"lost by the server: {before}, then {after}"

    def finish(self) -> None:
        """Let everything through, wait for the flows, and check that each kill fell between first and last commit."""
        self.feed.finish()
        self.wait(self.site.at_the_end)
        end = self.site.progress()
        for number, kill in enumerate(self.kills, start=1):
            print(f"{number}. {kill.victim} killed with {kill.after.events} of {end.events} events in the state")
            kill.check(end)


def history(source: Source, site: Site, late: float, seed: int) -> pl.DataFrame:
    """The events of a source in order of arrival, a share of them late by a minute, an hour, or more than the lateness horizon."""
    origin = site.settings.model_copy(update={"data": site.directory / "origin"})
    ingest(source, origin, bulk=True)
    events = EventLake(origin.lake_dir).scan(RECORD_SCHEMA.names).sort(names.EVENT_ID).collect()
    rng = random.Random(seed)
    delays = [rng.choice((60, 3_600, 90_000)) * MICROS if rng.random() < late else 0 for _ in range(events.height)]
    arrived = pl.col(names.RECEIVED_AT) + pl.Series(delays, dtype=pl.Duration("us"))
    return events.with_columns(arrived).sort(names.RECEIVED_AT, names.TIMESTAMP, names.EVENT_ID)


def assert_nothing_lost_and_nothing_twice(site: Site, events: pl.DataFrame) -> None:
    """The log against what was sent; the lake and the flow's own counts against the log. Exactly."""
    delivered = log_records(site.log)
    first = distinct(delivered)
    lateness_us = round(site.settings.lateness_horizon_s * MICROS)
    assert sorted(record[names.EVENT_ID] for record in first) == events[names.EVENT_ID].sort().to_list()
    assert site.counted("events") == len(first)
    assert site.counted("duplicates") == len(delivered) - len(first)
    assert site.counted("late") == sum(r[names.RECEIVED_AT] - r[names.TIMESTAMP] > lateness_us for r in first)
    assert site.lake_records().equals(frame(first).sort(names.EVENT_ID))


def assert_state_is_right(site: Site, events: pl.DataFrame, ages_us: Sequence[int]) -> None:
    """Every feature of every entity against the offline recomputation, at each age; some entities against the oracle too."""
    newest_us = int(events.select(pl.col(names.TIMESTAMP).dt.timestamp("us").max()).item())
    for age_us in ages_us:
        report = verify(site.settings, as_of_us=newest_us + age_us)
        assert report.ok, report.examples
        assert all(count > 0 for count in report.entities.values())
        if age_us == 1:
            assert sum(report.non_zero.values()) > 2 * sum(report.entities.values())
    records = distinct(log_records(site.log))
    for view, spec in site.definitions.streams.items():
        truth = Truth(spec, records)
        keys = [*truth.keys[:: len(truth.keys) // 20 + 1], "never"]
        rows = site.reader().fetch({view: keys}).streams[view]
        for age_us in ages_us:
            t_us = newest_us + age_us
            truth.check("online read", [(key, t_us) for key in keys], rows.values(t_us))
