"""From an event's acknowledgement to the first answer that was computed with it, the stack under a load of posts and of requests.

A probe is one view of a user who has no other event; once it is acknowledged, that user's recommendations are asked for, one request
after the other, until an answer shows that the event was in. Probes begin on a schedule; where the stack falls behind, at most `MOST` are
under way at once, so that they do not become the load themselves.
"""

import asyncio
import json
import random
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import orjson

from benchmarks.answers import saw_event
from benchmarks.asking import Asked, Phase, Target, asked, asking
from benchmarks.posting import Poster
from benchmarks.probes import ProbeError
from benchmarks.recommend_servers import PATH, SLATE
from benchmarks.report import percentiles
from headrace import names
from headrace.clock import Clock, from_micros
from headrace.ops.child import environment_of
from headrace.settings import Settings

POSTS_PER_S: Final = 100.0
EVENTS_EACH: Final = 10
REQUESTS_PER_S: Final = 100.0
PROBES_PER_S: Final = 20.0
MOST: Final = 8
WARM_UP: Final = 100
GIVE_UP_S: Final = 10.0
RETRY_S: Final = 0.2


@dataclass(frozen=True)
class SeenProbe:
    """Seconds from the acknowledgement to the end of the first answer with the event; how many were asked for until then.
    `seen` is false where there was none within GIVE_UP_S, which `fresh_s` then is.
    """

    fresh_s: float
    answers: int
    failures: int
    """Requests that were not answered 200."""
    refusals: int
    """Posts of the event that were not, and were sent again."""
    seen: bool = True


@dataclass(frozen=True)
class Freshness:
    probes: list[SeenProbe]
    posts: dict[str, Any]
    requests: Asked

    def details(self) -> dict[str, Any]:
        return {
            **percentiles([probe.fresh_s for probe in self.probes]),
            "probes": len(self.probes),
            "unseen": sum(not probe.seen for probe in self.probes),
            "answers_a_probe": round(sum(probe.answers for probe in self.probes) / len(self.probes), 2),
            "failures": sum(probe.failures for probe in self.probes),
            "refusals": sum(probe.refusals for probe in self.probes),
            "posts": self.posts,
            "requests": {
                "rate": REQUESTS_PER_S,
                "statuses": self.requests.statuses,
                "incomplete": self.requests.incomplete,
                **percentiles(self.requests.took_s),
            },
        }


def measure_freshness(
    settings: Settings, target: Target, items: Sequence[str], probes: int, folder: Path, clock: Clock
) -> Freshness:
    """`items`: those that are viewed. Raises ProbeError where a probe is refused."""
    load = Phase("until asked to end", 3_600.0, rate=REQUESTS_PER_S)
    with _posts(settings) as posts, asking(target, [load], folder) as requests:
        seen = asyncio.run(_probe_all(settings, items, WARM_UP + probes, clock))
        posts.terminate()
        requests.terminate()
        output, _ = posts.communicate()
        requests.wait()
    if posts.returncode != 0:
        raise RuntimeError(f"the load of posts ended with exit code {posts.returncode}")
    return Freshness(seen[WARM_UP:], json.loads(output), asked(requests, folder)[0])


@contextmanager
def _posts(settings: Settings) -> Iterator["subprocess.Popen[str]"]:
    command = [sys.executable, "-m", "benchmarks.load", "--posts", str(POSTS_PER_S), "--events", str(EVENTS_EACH)]
    with subprocess.Popen(command, env=environment_of(settings), stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


async def _probe_all(settings: Settings, items: Sequence[str], count: int, clock: Clock) -> list[SeenProbe]:
    """On a schedule with some jitter, so that probes do not fall into step with the flow."""
    label, gaps, due = f"fresh-{clock():x}", random.Random(0), time.monotonic()
    places = asyncio.Semaphore(MOST)
    async with Poster(settings) as events, Poster(settings, PATH) as requests, asyncio.TaskGroup() as group:
        tasks = []
        for number in range(count):
            due += gaps.uniform(0.5, 1.5) / PROBES_PER_S
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            view = {"user_id": f"{label}-{number:05d}", "item_id": items[number % len(items)]}
            await places.acquire()
            tasks.append(group.create_task(_probe(events, requests, view, clock)))
            tasks[-1].add_done_callback(lambda _: places.release())
    return [task.result() for task in tasks]


async def _probe(events: Poster, requests: Poster, view: dict[str, str], clock: Clock) -> SeenProbe:
    event = {
        "event_id": view["user_id"],
        "type": names.VIEW,
        **view,
        "timestamp": from_micros(clock()).isoformat(),
    }
    refusals = await _until_ok(events, orjson.dumps(event))
    acknowledged_s = time.perf_counter()
    question = orjson.dumps({"user_id": view["user_id"], "n": SLATE})
    answers = failures = 0
    while time.perf_counter() - acknowledged_s < GIVE_UP_S:
        answer = await requests.post(question)
        answers += 1
        failures += answer.status != 200
        if answer.status == 200 and saw_event(orjson.loads(answer.body)):
            return SeenProbe(time.perf_counter() - acknowledged_s, answers, failures, refusals)
    return SeenProbe(GIVE_UP_S, answers, failures, refusals, seen=False)


async def _until_ok(events: Poster, body: bytes) -> int:
    """Post until acknowledged; how many posts were refused before."""
    refusals = 0
    while (answer := await events.post(body)).status != 200:
        if 400 <= answer.status < 500:
            raise ProbeError(f"a probe's event was answered {answer.status}: {answer.body[:200]!r}")
        refusals += 1
        await asyncio.sleep(RETRY_S)
    return refusals
