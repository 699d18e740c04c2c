"""Probes of freshness: each is one event of a user of its own, posted on an open schedule and looked for each millisecond.

A thread posts; the caller's thread reads all users that are still waited for, in one read a millisecond, so that a slow probe delays no
other. A probe's value must become exactly 1: its one event, counted once.
"""

import asyncio
import itertools
import random
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import orjson

from benchmarks.posting import Poster
from headrace import names
from headrace.clock import Clock, from_micros
from headrace.identity import shard_of
from headrace.settings import Settings
from headrace.stores.log import EventLog

POLL_S = 0.001
RETRY_S = 1.0
# Before the first event, a flow may have to compile its kernels.
GIVE_UP_S = 120.0


class ProbeError(RuntimeError):
    """A probe was refused, or its value is not what its one event makes it."""


class Counts(Protocol):
    """A read of the store under test."""

    def read(self, users: Sequence[str]) -> Mapping[str, int]:
        """Views of each user."""
        ...


@dataclass
class Probe:
    """Moments of one probe in Unix microseconds, 0 as long as they are not known.

    `appended_us` is the log's own time of the entry (whole milliseconds); `visible_us` the end of the first read that had it.
    """

    user: str
    sent_us: int
    acknowledged_us: int = 0
    appended_us: int = 0
    visible_us: int = 0
    refusals: int = 0

    @property
    def freshness_s(self) -> float:
        """From the acknowledgement to the read, 0 where the read was first."""
        return max(0, self.visible_us - self.acknowledged_us) / 1e6


@dataclass
class _Round:
    """What the posting and the reading thread share; each only adds or only takes."""

    log: EventLog
    probes: list[Probe] = field(default_factory=list)
    failure: Exception | None = None
    posted_all: bool = False


def run_probes(
    settings: Settings, log: EventLog, counts: Counts, seconds: float, clock: Clock, label: str
) -> list[Probe]:
    """One probe every 50 to 100 ms for `seconds`, until all are seen. Raises ProbeError where none is for GIVE_UP_S."""
    shared = _Round(log)
    thread = threading.Thread(target=_post_all, args=(settings, shared, seconds, clock, label), daemon=True)
    thread.start()
    waiting: dict[str, Probe] = {}
    taken, last_seen = 0, time.monotonic()
    while not shared.posted_all or waiting or taken < len(shared.probes):
        tick = time.monotonic()
        for probe in shared.probes[taken:]:
            waiting[probe.user] = probe
            taken += 1
        if waiting:
            seen = _look(counts, waiting, clock)
            last_seen = tick if seen else last_seen
        else:
            last_seen = tick
        if shared.failure is not None:
            raise shared.failure
        if tick - last_seen > GIVE_UP_S:
            raise ProbeError(f"{len(waiting)} probes did not become visible within {GIVE_UP_S:.0f} s")
        time.sleep(max(0.0, tick + POLL_S - time.monotonic()))
    thread.join()
    _check_once(counts, shared.probes)
    return shared.probes


def _look(counts: Counts, waiting: dict[str, Probe], clock: Clock) -> bool:
    """One read of all that is waited for; takes what is visible out. Returns whether anything was."""
    views = counts.read(list(waiting))
    now_us = clock()
    visible = [user for user, count in views.items() if count]
    for user in visible:
        waiting.pop(user).visible_us = now_us
    return bool(visible)


def _check_once(counts: Counts, probes: Sequence[Probe]) -> None:
    views = counts.read([probe.user for probe in probes])
    wrong = {user: count for user, count in views.items() if count != 1}
    if wrong or len(views) != len(probes):
        raise ProbeError(f"one event each, but these are counted otherwise: {dict(list(wrong.items())[:5])}")


def _post_all(settings: Settings, shared: _Round, seconds: float, clock: Clock, label: str) -> None:
    try:
        asyncio.run(_post_on_schedule(settings, shared, seconds, clock, label))
    except Exception as error:  # noqa: BLE001 - the reading thread raises it
        shared.failure = error
    shared.posted_all = True


async def _post_on_schedule(settings: Settings, shared: _Round, seconds: float, clock: Clock, label: str) -> None:
    async with Poster(settings) as poster, asyncio.TaskGroup() as posts:
        begun = due = time.monotonic()
        gaps = random.Random(0)
        for number in itertools.count():
            due += gaps.uniform(0.05, 0.1)
            if due >= begun + seconds:
                return
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            posts.create_task(_post(poster, shared, clock, f"{label}-{number:05d}"))


async def _post(poster: Poster, shared: _Round, clock: Clock, user: str) -> None:
    """Sent again, as clients do, until it is acknowledged."""
    now_us = clock()
    event = {
        "event_id": f"{user}-{now_us}",
        "type": names.VIEW,
        "user_id": user,
        "item_id": "item-00000",
        "timestamp": from_micros(now_us).isoformat(),
    }
    probe = Probe(user, now_us)
    shared.probes.append(probe)
    while (answer := await poster.post(orjson.dumps(event))).status != 200:
        if answer.status not in (0, 503):
            raise ProbeError(f"the post of {user} was answered {answer.status}: {answer.body[:200]!r}")
        probe.refusals += 1
        await asyncio.sleep(RETRY_S)
    probe.acknowledged_us = clock()
    partition = shard_of(user, shared.log.partitions)
    probe.appended_us = shared.log.appended_at(partition, orjson.loads(answer.body)["positions"][str(partition)])
