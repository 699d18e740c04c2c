"""One side of the recommend benchmark, asked by 1 connection and by 16; what is asked of ours alone: half load, overload, stages."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Final

import numpy as np
import orjson
import psutil

from benchmarks.answers import explained, stages_of
from benchmarks.asking import Asked, Phase, Target, ask
from benchmarks.freshness_figures import usage_of
from benchmarks.freshness_side import parts_of_the_stack
from benchmarks.posting import Poster
from benchmarks.recommend_servers import PATH, SLATE
from benchmarks.report import percentiles
from headrace.arrays import Floats
from headrace.settings import Settings

ROUNDS: Final = 3
WARM_UP_S: Final = 5.0
WARM_UP_REQUESTS: Final = 200
CONNECTIONS: Final = 16
# Normal after an overload is what was normal before it, give or take the machine's own noise.
NORMAL: Final = 1.5
RECOVERY_S: Final = 15.0
CALM_S: Final = 10.0
# Parts that must live through an overload.
STEADY_PARTS: Final = ("valkey", "flow-features", "flow-lake", "collector", "recommender", "haproxy")


class AnswerError(RuntimeError):
    """An answer that is not what the benchmark measures: not full, or made without a model."""


@dataclass(frozen=True)
class Closed:
    """The rounds of a closed loop; the figures are those of the median one."""

    rounds: list[Asked]

    @property
    def middle(self) -> Asked:
        return sorted(self.rounds, key=lambda each: each.rate)[len(self.rounds) // 2]

    @property
    def latencies(self) -> Floats:
        return np.concatenate([each.took_s for each in self.rounds])

    @property
    def degraded(self) -> float:
        """The largest share of any round of answers with less."""
        return max(each.incomplete_share for each in self.rounds)

    def details(self) -> dict[str, Any]:
        return {
            **percentiles(self.middle.took_s),
            "rate": round(self.middle.rate, 1),
            "requests": sum(len(each.status) for each in self.rounds),
            "statuses": [each.statuses for each in self.rounds],
            "degraded": round(self.degraded, 4),
            "incomplete": [each.incomplete for each in self.rounds],
            "rounds": [{"rate": round(each.rate, 1), **percentiles(each.took_s)} for each in self.rounds],
            "asker_us": round(self.middle.cpu_us, 1),
        }


@dataclass(frozen=True)
class Side:
    one: Closed
    sixteen: Closed

    def details(self) -> dict[str, Any]:
        return {"connections_1": self.one.details(), f"connections_{CONNECTIONS}": self.sixteen.details()}


def closed(target: Target, connections: int, seconds: float, folder: Path) -> Closed:
    """ROUNDS rounds after a warm-up. Raises AnswerError where one had no answer 200 at all."""
    warm_up = Phase("warm-up", WARM_UP_S, connections, requests=WARM_UP_REQUESTS)
    rounds = [Phase(f"round {number}", seconds, connections) for number in range(ROUNDS)]
    found = Closed(ask(target, [warm_up, *rounds], folder)[1:])
    for each in found.rounds:
        if not len(each.took_s):
            raise AnswerError(f"no request was answered 200: {each.statuses}")
    return found


def side(target: Target, seconds: float, folder: Path) -> Side:
    return Side(closed(target, 1, seconds, folder / "one"), closed(target, CONNECTIONS, seconds, folder / "sixteen"))


def half(target: Target, rate: float, seconds: float, folder: Path) -> Asked:
    """An open loop at half of `rate`, after a warm-up of the same."""
    phases = [Phase("warm-up", WARM_UP_S, rate=rate / 2), Phase("half", seconds, rate=rate / 2)]
    return ask(target, phases, folder)[1]


@dataclass(frozen=True)
class Overload:
    """`before` and `after` are at a low rate; `rate` is what the stack can do, `deadline_s` what an answer may take."""

    before: Asked
    during: Asked
    after: Asked
    rate: float
    deadline_s: float
    survived: bool
    """Every process of STEADY_PARTS is the one that it was before."""

    @property
    def answered_in_time(self) -> float:
        """Answers 200 a second inside the deadline, as a share of `rate`."""
        return float((self.during.took_s <= self.deadline_s).sum() / self.during.phase.seconds / self.rate)

    @property
    def normal_s(self) -> float:
        return max(p99_by_second(self.before)) * NORMAL

    @property
    def recovered_s(self) -> int | None:
        """Whole seconds after the overload until one's p99 is normal again; None where none was."""
        return next((second for second, p99 in enumerate(p99_by_second(self.after)) if p99 <= self.normal_s), None)

    def details(self) -> dict[str, Any]:
        return {
            "rate": round(self.during.phase.rate, 1),
            "seconds": self.during.phase.seconds,
            "statuses": self.during.statuses,
            "in_time_of_rps_16": round(self.answered_in_time, 3),
            "deadline_ms": self.deadline_s * 1_000,
            "answered": percentiles(self.during.took_s) if len(self.during.took_s) else None,
            "incomplete": self.during.incomplete,
            "late": percentiles(self.during.late_s),
            "asker_us": self.during.cpu_us,
            "p99_ms_before_by_second": _milliseconds(p99_by_second(self.before)),
            "p99_ms_after_by_second": _milliseconds(p99_by_second(self.after)),
            "statuses_after": self.after.statuses,
            "seconds_until_normal": self.recovered_s,
            "same_processes": self.survived,
        }


def overload(settings: Settings, target: Target, rate: float, seconds: float, folder: Path) -> Overload:
    """An open loop at twice `rate`, between two at an eighth of it."""
    low = max(20.0, rate / 8)
    phases = [
        Phase("warm-up", WARM_UP_S, rate=low),
        Phase("before", CALM_S, rate=low),
        Phase("during", seconds, rate=2 * rate),
        Phase("after", RECOVERY_S, rate=low),
    ]
    processes = steady_processes(settings)
    _, before, during, after = ask(target, phases, folder)
    survived = steady_processes(settings) == processes
    return Overload(before, during, after, rate, settings.deadline_ms / 1_000, survived)


def p99_by_second(found: Asked) -> list[float]:
    """Of the requests due in each second; one that was not answered 200 counts as endless."""
    took_s = np.where(found.status == 200, found.done_s - found.due_s, np.inf)
    seconds = found.due_s.astype(np.int64)
    return [
        float(np.percentile(took_s[seconds == each], 99, method="lower")) for each in range(int(found.phase.seconds))
    ]


def steady_processes(settings: Settings) -> set[tuple[str, int]]:
    parts = parts_of_the_stack(settings)
    return {(part, process.pid) for process, part in parts.items() if part in STEADY_PARTS}


def replicas(settings: Settings) -> list[psutil.Process]:
    return [process for process, part in parts_of_the_stack(settings).items() if part == "recommender"]


def rss_mb(settings: Settings) -> float:
    """Resident memory of the recommender's replicas together."""
    return float(sum(process.memory_info().rss for process in replicas(settings)) / 2**20)


@dataclass(frozen=True)
class Explained:
    """Some requests with their stages, one after the other: seconds by stage, of the whole path, and as the client saw it."""

    stages: dict[str, list[float]]
    path_s: list[float]
    client_s: list[float]
    counts: dict[str, float]
    items: list[str]
    """Those of the answers, each once."""
    model_version: str

    def details(self) -> dict[str, Any]:
        return {
            "requests": len(self.path_s),
            "stages": {name: {"count": self.counts[name], **percentiles(times)} for name, times in self.stages.items()},
            "path": percentiles(self.path_s),
            "client": percentiles(self.client_s),
        }

    def shares_ms(self) -> dict[str, float]:
        """Medians that add up: each stage, the rest of the path, and what is around it (HTTP, Serve, the client)."""
        of_stages = {name: median(times) * 1_000 for name, times in self.stages.items()}
        rest = median(self.path_s) * 1_000 - sum(of_stages.values())
        around = (median(self.client_s) - median(self.path_s)) * 1_000
        return {**of_stages, "rest of the path": max(0.0, rest), "HTTP, Serve, client": max(0.0, around)}


def explain(settings: Settings, visitors: Sequence[dict[str, str]], count: int) -> Explained:
    """`count` requests after as many that do not count. Raises AnswerError for an answer that is not full."""
    return asyncio.run(_explain(settings, visitors, count))


async def _explain(settings: Settings, visitors: Sequence[dict[str, str]], count: int) -> Explained:
    stages: dict[str, list[float]] = {}
    counts: dict[str, list[int]] = {}
    path_s, client_s = [], []
    items: dict[str, None] = {}
    async with Poster(settings, PATH) as poster:
        for number in range(2 * count):
            body = orjson.dumps(explained({**visitors[number % len(visitors)], "n": SLATE}))
            sent = time.perf_counter()
            answer = await poster.post(body)
            took_s = time.perf_counter() - sent
            if answer.status != 200:
                raise AnswerError(f"{body!r} was answered {answer.status}: {answer.body[:300]!r}")
            told = orjson.loads(answer.body)
            check_full(told)
            if number < count:
                continue
            for name, stage in stages_of(told).items():
                stages.setdefault(name, []).append(stage["ms"] / 1_000)
                counts.setdefault(name, []).append(stage["count"])
            path_s.append(told["took_ms"] / 1_000)
            client_s.append(took_s)
            items |= dict.fromkeys(item["item_id"] for item in told["items"])
    means = {name: round(float(np.mean(values)), 1) for name, values in counts.items()}
    return Explained(stages, path_s, client_s, means, list(items), told["model_version"])


def check_full(answer: dict[str, Any]) -> None:
    """Raises AnswerError unless it holds a slate of different items by a model; what degraded it is counted elsewhere."""
    items = {item["item_id"] for item in answer["items"]}
    if len(items) != SLATE or answer["model_version"] is None:
        raise AnswerError(f"{len(items)} items by model {answer['model_version']}, degraded {answer['degraded']}")


def processor_ms(settings: Settings, target: Target, seconds: float, folder: Path) -> dict[str, float]:
    """Processor milliseconds a request by part of the stack, while CONNECTIONS connections ask: what a busy machine disturbs least."""
    with usage_of(dict(parts_of_the_stack(settings))) as usage:
        begun = time.monotonic()
        (found,) = ask(target, [Phase("busy", seconds, CONNECTIONS)], folder)
        lasted = time.monotonic() - begun
    return {each.part: round(each.cpu * lasted / len(found.status) * 1_000, 3) for each in usage}


def _milliseconds(seconds: Sequence[float]) -> list[float | None]:
    return [round(each * 1_000, 2) if np.isfinite(each) else None for each in seconds]
