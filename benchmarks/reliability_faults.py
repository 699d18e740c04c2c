"""Faults, each tried on a running stack under everyday traffic, and what became of the traffic.

Long because it is a list: one function a fault, none of which another file needs.
"""

import json
import os
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import httpx
import psutil
import torch

from benchmarks.asking import Phase, ask
from benchmarks.recommend_servers import target_of
from benchmarks.recommend_side import replicas
from benchmarks.reliability_load import Asked, Load, Posted
from benchmarks.report import percentiles
from headrace.clock import Clock
from headrace.models.bundle import WEIGHTS, Bundle
from headrace.ops.processes import read_record
from headrace.ops.stack import Stack
from headrace.stores.models import BundleRef, ModelRegistry
from serving import candidates as c

FLOW: Final = "flow-features"
NOBODY_S_FAULT: Final = frozenset({c.UNKNOWN_USER, c.UNKNOWN_HISTORY})
"""Reasons that come with new users and new items."""
STORE_GONE: Final = (c.NO_USER_FEATURES, c.LATE_FEATURES)
PATIENCE_S: Final = 120.0
_LAST, _NAMING = 30, 3
"""A fault is over once none of so many last requests failed, and at most so many name it: a busy machine is late now and then."""
_LOOK_S: Final = 0.05


class FaultError(RuntimeError):
    """What a fault should have led to did not happen."""


@dataclass(frozen=True)
class Scale:
    """How long things are held. `calm_s`: everyday traffic before and after a fault."""

    calm_s: float = 5.0
    stalled_s: float = 2.0
    flow_stopped_s: float = 60.0
    swaps: int = 6
    full_s: float = 10.0
    overload_s: float = 15.0


@dataclass(frozen=True)
class Outcome:
    """Traffic from just before a fault until it was over (`asked`, `posted`), and the calm after it. Times of `time.perf_counter`."""

    fault: str
    named_as: tuple[str, ...]
    begun_s: float
    over_s: float
    asked: list[Asked]
    posted: list[Posted]
    after: list[Asked]
    notes: dict[str, Any] = field(default_factory=dict)

    @property
    def failed(self) -> list[Asked]:
        return [each for each in self.asked + self.after if each.failed]

    @property
    def wrong(self) -> list[str]:
        """What is, and what the answer says of itself."""
        return [f"{each.wrong} ({', '.join(each.degraded)})" for each in self.asked + self.after if each.wrong]

    @property
    def degraded(self) -> Counter[str]:
        """Reasons named during the fault."""
        return reasons(self.asked)

    @property
    def degraded_s(self) -> float:
        """From the fault to the last answer that names it; 0 where none does."""
        return max((each.done_s - self.begun_s for each in self.asked if names_any(each, self.named_as)), default=0.0)

    @property
    def failing_s(self) -> float:
        """From the first request that failed to the last."""
        return max((each.done_s for each in self.failed), default=0.0) - min(
            (each.sent_s for each in self.failed), default=0.0
        )

    def details(self) -> dict[str, Any]:
        answered = [each for each in self.asked + self.after if each.status == 200]
        return {
            "requests": len(self.asked) + len(self.after),
            "statuses": dict(Counter(str(each.status) for each in self.asked + self.after)),
            "failed": len(self.failed),
            "failing_s": round(self.failing_s, 2),
            "failed_saying": dict(Counter(f"{each.status} {each.said}" for each in self.failed)),
            "wrong": dict(Counter(self.wrong)),
            "late_by_client": sum(each.late for each in answered),
            "late_by_replica": sum(each.served_late for each in answered),
            "took": percentiles([each.took_s for each in answered]) if answered else None,
            "named_as": list(self.named_as),
            "named": sum(names_any(each, self.named_as) for each in self.asked),
            "degraded_s": round(self.degraded_s, 2),
            "degraded": dict(self.degraded),
            "degraded_after": dict(reasons(self.after)),
            "answers_after": len(self.after),
            "posts": len(self.posted),
            "post_statuses": dict(Counter(str(each.status) for each in self.posted)),
            "lasted_s": round(self.over_s - self.begun_s, 2),
            **self.notes,
        }


@dataclass
class World:
    """A stack under everyday traffic, and what has been tried on it."""

    stack: Stack
    load: Load
    scale: Scale
    clock: Clock
    folder: Path
    say: Callable[[str], None]
    outcomes: list[Outcome] = field(default_factory=list)

    @contextmanager
    def tried(self, fault: str, named_as: Sequence[str] = (), holds_items: bool = False) -> Iterator[dict[str, Any]]:
        """Calm, the block, and calm again: its outcome is noted. With `holds_items`, changes of items need not settle meanwhile."""
        self.say(fault)
        notes: dict[str, Any] = {}
        time.sleep(self.scale.calm_s)
        if holds_items:
            self.load.shop.hold()
        begun_s = time.perf_counter()
        yield notes
        self._until_normal(named_as)
        over_s = time.perf_counter()
        if holds_items:
            self.load.shop.release(over_s)
        time.sleep(self.scale.calm_s)
        asked = self.load.since(begun_s)
        posted = [each for each in list(self.load.posted) if each.sent_s >= begun_s]
        during = [each for each in asked if each.sent_s < over_s]
        after = [each for each in asked if each.sent_s >= over_s]
        self.outcomes.append(Outcome(fault, tuple(named_as), begun_s, over_s, during, posted, after, notes))

    def pid(self, part: str) -> int:
        record = read_record(self.stack.settings.run_dir)
        assert record is not None, "the stack runs"
        return next(ref.pid for ref in record.processes if ref.name == part)

    def readiness(self) -> dict[str, Any]:
        with self.stack.api as api:
            found = api.readiness()[1]
        return found if isinstance(found, dict) else {}

    def metric(self, name: str) -> float:
        """Sum of a metric's samples. Raises httpx.HTTPError."""
        settings = self.stack.settings
        key = settings.read_keys.split(",")[0]
        address = f"http://{settings.http_host}:{settings.http_port}/metrics"
        lines = httpx.get(address, headers={"authorization": f"Bearer {key}"}, timeout=30.0).text.splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith((f"{name} ", f"{name}{{")))

    def until(self, condition: Callable[[], bool], what: str, timeout_s: float = PATIENCE_S) -> float:
        """Seconds that it took. Raises FaultError."""
        begun = time.monotonic()
        while not condition():
            if time.monotonic() - begun > timeout_s:
                raise FaultError(f"not so within {timeout_s:.0f} s: {what}")
            time.sleep(_LOOK_S)
        return time.monotonic() - begun

    def until_named(self, reasons: Sequence[str]) -> float:
        """Until an answer names one of them."""
        begun_s = time.perf_counter()
        return self.until(
            lambda: any(names_any(each, reasons) for each in self.load.since(begun_s)), f"named: {', '.join(reasons)}"
        )

    def _until_normal(self, named_as: Sequence[str]) -> None:
        begun_s = time.perf_counter()

        def normal() -> bool:
            last = self.load.since(begun_s)[-_LAST:]
            naming = sum(names_any(each, named_as) for each in last)
            return len(last) == _LAST and not any(each.failed for each in last) and naming <= _NAMING

        self.until(normal, "answers as before")


def names_any(asked: Asked, reasons: Sequence[str]) -> bool:
    return any(reason in reasons for reason in asked.degraded)


def reasons(asked: Sequence[Asked]) -> Counter[str]:
    """Those that no new user or item explains."""
    return Counter(reason for each in asked for reason in each.degraded if reason not in NOBODY_S_FAULT)


def nothing(world: World) -> None:
    """For comparison."""
    with world.tried("none, for comparison"):
        time.sleep(world.scale.calm_s)


def valkey_killed(world: World) -> None:
    with world.tried("Valkey killed (SIGKILL)", STORE_GONE, holds_items=True) as notes:
        before = world.pid("valkey")
        os.kill(before, signal.SIGKILL)
        notes["started_again_s"] = world.until(lambda: _is_another(world, "valkey", before), "Valkey is started again")


def valkey_stalled(world: World) -> None:
    seconds = world.scale.stalled_s
    with (
        world.tried(f"Valkey stalled for {seconds:.0f} s (SIGSTOP)", STORE_GONE, holds_items=True),
        _stopped(world.pid("valkey")),
    ):
        time.sleep(seconds)


def flow_stopped(world: World) -> None:
    """The age of features rises and is told; beyond the bound they count as not there."""
    seconds, bound_s = world.scale.flow_stopped_s, world.stack.settings.feature_age_bound_s
    with world.tried(
        f"feature flow stopped for {seconds:.0f} s (SIGSTOP)", (c.STALE_FEATURES,), holds_items=True
    ) as notes:
        begun_s = time.perf_counter()
        with _stopped(world.pid(FLOW)):
            time.sleep(seconds)
            notes["age_by_metric_s"] = round(world.metric("headrace_features_last_age_seconds"), 1)
        during = [each for each in world.load.since(begun_s) if each.age_ms is not None]
        named = [each.sent_s - begun_s for each in during if c.STALE_FEATURES in each.degraded]
        notes["age_by_answers_s"] = round(max(each.age_ms or 0 for each in during) / 1_000, 1)
        notes["bound_s"] = bound_s
        notes["stale_from_s"] = round(min(named), 1) if named else None
        notes["named_below_bound"] = sum(
            c.STALE_FEATURES in each.degraded and (each.age_ms or 0) <= bound_s * 1_000 for each in during
        )
        notes["not_named_above_bound"] = sum(
            c.STALE_FEATURES not in each.degraded and (each.age_ms or 0) > bound_s * 1_000 for each in during
        )


def models_swapped(world: World) -> None:
    registry, good = _registry(world)
    faint = save_variant(world, good, "faint", _shift_scores)
    world.load.faint.add(Bundle.load(faint).version)
    other = registry.register(faint, {})
    with world.tried(f"{world.scale.swaps} swaps between two models") as notes:
        took = []
        for number in range(world.scale.swaps):
            ref = registry.promote(other if number % 2 == 0 else good.version)
            took.append(world.until(lambda ref=ref: _serves(world, ref), f"version {ref.version} serves"))  # type: ignore[misc]
        _promote_and_wait(world, registry, good)
        notes["swap_s"] = [round(each, 2) for each in took]


def bundles_refused(world: World) -> None:
    """Damaged files, another definition of a view, weights that are no numbers: the old one serves on, and why is told."""
    registry, good = _registry(world)
    bad = {
        "damaged weights": _damaged(world, good),
        "another fingerprint": save_variant(
            world, good, "fingerprint", fingerprints={name: 1 for name in _bundle(world, good).manifest.fingerprints}
        ),
        "weights that are NaN": save_variant(world, good, "nan", _all_nan),
    }
    version = _bundle(world, good).version
    with world.tried("three bad bundles promoted") as notes:
        begun_s, said = time.perf_counter(), {}
        for name, folder in bad.items():
            ref = registry.promote(registry.register(folder, {}))
            world.until(partial(_is_refused, world, ref.version), f"{name}: refused")
            said[name] = _champion_problem(world)
        notes["said"] = said
        notes["other_versions"] = sum(each.version not in (version, None) for each in world.load.since(begun_s))
        _promote_and_wait(world, registry, good)
        world.until(lambda: not _champion_problem(world), "no problem is told any more")


def _is_refused(world: World, version: str) -> bool:
    return f"version {version} is refused" in _champion_problem(world)


def model_fails(world: World) -> None:
    """A model that passes its warm-up and then gives scores that are no numbers for users with a history."""
    registry, good = _registry(world)
    folder = save_variant(world, good, "half-nan", _some_nan)
    with world.tried("a model whose scores are NaN for most users", (c.RANKER_FAILED,)) as notes:
        ref = registry.promote(registry.register(folder, {}))
        try:
            world.until(lambda: _serves(world, ref), "the model serves")
            notes["named_after_s"] = world.until_named([c.RANKER_FAILED])
            time.sleep(world.scale.calm_s)
        finally:
            _promote_and_wait(world, registry, good)


def replica_killed(world: World) -> None:
    settings = world.stack.settings
    count = settings.recommender_replicas
    with world.tried(f"one of {count} replicas killed (SIGKILL)") as notes:
        before = {each.pid for each in replicas(settings)}
        killed, begun_s = min(before), time.perf_counter()
        os.kill(killed, signal.SIGKILL)
        world.until(
            lambda: len({each.pid for each in replicas(settings)} - {killed}) >= count, "as many replicas again"
        )
        world._until_normal(())
        good = [each.done_s for each in world.load.since(begun_s) if each.status == 200]
        bad = [each for each in world.load.since(begun_s) if each.failed]
        last_bad = max((each.done_s for each in bad), default=begun_s)
        notes["served_again_s"] = round(min((each for each in good if each > last_bad), default=last_bad) - begun_s, 2)
        notes["failed_as"] = dict(Counter(str(each.status) for each in bad))


def disk_full(world: World) -> None:
    """A file takes the room that is not reserved. Answers go on; events are refused, impressions dropped and counted."""
    settings = world.stack.settings
    filler = settings.data / "filler"
    dropped, logged = "headrace_impressions_dropped_total", "headrace_impressions_logged_total"
    with world.tried("disk full", holds_items=True) as notes:
        before = world.metric(dropped)
        free = shutil.disk_usage(settings.data).free
        try:
            with filler.open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, max(1, free - settings.disk_reserve_bytes) + 2**30)
            notes["events_refused_after_s"] = world.until(lambda: _last_post(world) == 503, "events are refused")
            world.until(lambda: world.metric(dropped) > before, "impressions are dropped")
            time.sleep(world.scale.full_s)
        finally:
            filler.unlink(missing_ok=True)
        world.until(lambda: _last_post(world) == 200, "events are taken again")
        notes["impressions_dropped"] = world.metric(dropped) - before
        at = world.metric(logged)
        world.until(lambda: world.metric(logged) > at, "impressions are logged again")


def log_full(world: World) -> None:
    """HEADRACE_LOG_MAX_BYTES is reached by the traffic itself, and stays so."""
    dropped = "headrace_impressions_dropped_total"
    with world.tried("event log at its bound", holds_items=True) as notes:
        world.until(lambda: _last_post(world) == 503, "events are refused")
        world.until(lambda: world.metric(dropped) > 0, "impressions are dropped")
        time.sleep(world.scale.full_s)
        notes["impressions_dropped"] = world.metric(dropped)


def overloaded(world: World) -> None:
    """Twice of what 16 connections get answered, on a schedule, beside the everyday traffic."""
    settings = world.stack.settings
    target = target_of(settings, [dict(each) for each in world.load.visitors])
    seconds = world.scale.overload_s
    with world.tried(f"twice the capacity for {seconds:.0f} s ({settings.overload})", (c.OVERLOADED,)) as notes:
        phases = [Phase("warm-up", 2.0, 16), Phase("capacity", max(3.0, seconds / 3), 16)]
        _, busy = ask(target, phases, world.folder / "capacity")
        rate = int((busy.status == 200).sum()) / busy.phase.seconds
        low = max(5.0, rate / 8)
        over, after = ask(
            target, [Phase("over", seconds, rate=2 * rate), Phase("after", 10.0, rate=low)], world.folder / "over"
        )
        answered = over.status == 200
        took_s = (over.done_s - over.due_s)[answered]
        normal = (after.status == 200) & (after.done_s - after.due_s <= settings.deadline_ms / 1_000)
        unusual = after.due_s[~normal]
        notes |= {
            "capacity": round(rate, 1),
            "rate": round(2 * rate, 1),
            "open_requests": len(over.status),
            "open_statuses": over.statuses,
            "open_answered": int(answered.sum()),
            "open_in_time": int((took_s <= settings.deadline_ms / 1_000).sum()),
            "open_took": percentiles(took_s) if len(took_s) else None,
            "open_named_less": over.incomplete,
            "last_unusual_after_s": round(float(unusual.max()), 2) if len(unusual) else 0.0,
            "after_statuses": after.statuses,
        }


def save_variant(
    world: World, ref: BundleRef, name: str, change: Callable[[Bundle], None] | None = None, **manifest: Any
) -> Path:
    """A bundle like another but for its weights or its manifest."""
    bundle = _bundle(world, ref)
    if change is not None:
        change(bundle)
    version = f"{bundle.version}-{name}"[:120]
    folder = world.stack.settings.bundles_dir / version
    replace(bundle, manifest=replace(bundle.manifest, version=version, **manifest)).save(folder)
    return folder


def _shift_scores(bundle: Bundle) -> None:
    """The same order, all scores next to nothing (`reliability_load.FAINT`)."""
    with torch.no_grad():
        bundle.ranker.out_crossed.bias -= 70


def _all_nan(bundle: Bundle) -> None:
    with torch.no_grad():
        for parameter in bundle.ranker.out_crossed.parameters():
            parameter.fill_(float("nan"))


def _some_nan(bundle: Bundle) -> None:
    """For users who have done something: not for the one of whom nothing is known, by whom it is warmed up."""
    with torch.no_grad():
        bundle.ranker.history_encoder.types.weight[1:] = float("nan")


def _damaged(world: World, ref: BundleRef) -> Path:
    source = _folder(world, ref)
    folder = source.with_name(f"{source.name}-damaged")
    shutil.copytree(source, folder)
    content = bytearray((folder / WEIGHTS).read_bytes())
    content[len(content) // 2] ^= 0xFF
    (folder / WEIGHTS).write_bytes(content)
    return folder


def _folder(world: World, ref: BundleRef) -> Path:
    """A copied data directory's pointer may still name the one that it was copied from."""
    return world.stack.settings.bundles_dir / ref.path.name


def _bundle(world: World, ref: BundleRef) -> Bundle:
    return Bundle.load(_folder(world, ref))


def _registry(world: World) -> tuple[ModelRegistry, BundleRef]:
    registry = ModelRegistry(world.stack.settings, world.clock)
    champion = registry.champion()
    assert champion is not None, "the site has a promoted model"
    return registry, champion


def _serves(world: World, ref: BundleRef) -> bool:
    """Every replica: the last answers are all of it."""
    version = json.loads((_folder(world, ref) / "bundle.json").read_text())["version"]
    last = [each.version for each in world.load.asked[-10:] if each.status == 200]
    return len(last) >= 5 and set(last) == {version}


def _promote_and_wait(world: World, registry: ModelRegistry, ref: BundleRef) -> None:
    again = registry.promote(ref.version)
    world.until(lambda: _serves(world, again), f"version {ref.version} serves again")


def _champion_problem(world: World) -> str:
    return str(world.readiness().get("problems", {}).get("champion", ""))


def _last_post(world: World) -> int:
    return world.load.posted[-1].status if world.load.posted else 0


def _is_another(world: World, part: str, before: int) -> bool:
    try:
        return world.pid(part) != before
    except StopIteration:
        return False


@contextmanager
def _stopped(pid: int) -> Iterator[None]:
    process = psutil.Process(pid)
    process.suspend()
    try:
        yield
    finally:
        process.resume()
