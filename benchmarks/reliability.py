"""Faults tried on a real stack under everyday traffic, every answer checked: `python -m benchmarks.reliability [--site FOLDER]`

The whole stack of `headrace up` over a simulated shop with a trained model; 50 slates/s for random visitors (n, exclude, filter at
random), 20 posts/s of events and 2 changes of items a second (benchmarks/reliability_load.py). The faults are in
benchmarks/reliability_faults.py. At the end of each stack everything acknowledged must be in the lake, once, and the online store must
equal the lake. The same history is served by one replica that sheds, by two with HEADRACE_OVERLOAD=fallback, with a small bound on the
log, and without a store.
"""

import argparse
import json
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from benchmarks import reliability_faults as faults
from benchmarks.recommend_site import ROOT, Shop, Sites, copy, visitors
from benchmarks.reliability_faults import FaultError, Outcome, Scale, World
from benchmarks.reliability_load import ALLOWANCE_MS, OWN_EVENTS, Load, Rates
from benchmarks.reliability_shop import KnownShop, read_shop
from benchmarks.report import publish, say
from headrace import names
from headrace.clock import Clock, system_clock
from headrace.ops.child import ChildFailedError
from headrace.ops.demo import wait_until_filled
from headrace.ops.interrupts import Interrupts
from headrace.ops.ports import free_port
from headrace.ops.stack import Stack
from headrace.settings import Settings
from headrace.stores.lake import EventLake
from serving import candidates as c
from serving.recommender import FALLBACK

SHOP: Final = Shop(2_000, 1_000, 40_000, "small")
READY_S: Final = 600.0
SMALL_LOG_BYTES: Final = 4 * 2**20
_ROOM_BYTES: Final = 8 * 2**30
"""Left on the disk until a file takes it."""
_VISITORS: Final = 500

ONE_REPLICA: Final = (
    faults.nothing,
    faults.valkey_killed,
    faults.valkey_stalled,
    faults.models_swapped,
    faults.bundles_refused,
    faults.model_fails,
    faults.disk_full,
    faults.flow_stopped,
    faults.replica_killed,
    faults.overloaded,
)
TWO_REPLICAS: Final = (
    faults.nothing,
    faults.replica_killed,
    faults.valkey_killed,
    faults.models_swapped,
    faults.overloaded,
)
Fault = Callable[[World], None]


@dataclass(frozen=True)
class Kept:
    """What the end of a stack found of what its traffic was told: `lost` and `doubled` events, values unlike the lake's."""

    stack: str
    acknowledged: int
    lost: int
    doubled: int
    compared: int
    mismatches: Mapping[str, int]
    unmet: list[str]
    """What a fault should have led to and did not."""
    outcomes: list[Outcome]
    shop: KnownShop
    """As the traffic knew it at the end."""

    def details(self) -> dict[str, Any]:
        told = {name: value for name, value in vars(self).items() if name not in ("stack", "outcomes", "shop")}
        return {**told, "faults": {each.fault: each.details() for each in self.outcomes}}


@dataclass(frozen=True)
class Trials:
    """Stacks over copies of a prepared data directory, in folders of their own below `folder`."""

    prepared: Path
    folder: Path
    interrupts: Interrupts
    scale: Scale
    clock: Clock
    rates: Rates
    deadline_ms: float
    """HEADRACE_DEADLINE_MS of every stack."""

    @contextmanager
    def world(self, name: str, **own: Any) -> Iterator[World]:
        """A stack with these settings, under traffic from the moment that it is ready."""
        data = self.folder / name.replace(" ", "-") / "var"
        copy(self.prepared, data)
        settings = self._settings(data, **own)
        with Stack(settings, say, self.interrupts) as stack:
            stack.start_valkey()
            stack.run("apply", "headrace.ops.apply")
            stack.start_flows()
            stack.start_serving(READY_S)
            with self._load(stack.settings, read_shop(stack.settings), self.rates) as load:
                yield World(stack, load, self.scale, self.clock, self.folder / name.replace(" ", "-"), say)

    def tried(self, name: str, what: Sequence[Fault], **own: Any) -> Kept:
        """Try these one after the other, then look whether everything acknowledged is there."""
        say(f"stack {name}: {own or 'defaults'}")
        with self.world(name, **own) as world:
            unmet = []
            for fault in what:
                try:
                    fault(world)
                except FaultError as error:
                    say(f"{fault.__name__}: {error}")
                    unmet.append(f"{fault.__name__}: {error}")
            world.load.stop()
            return kept(name, world, unmet)

    def without_store(self, name: str, data: Path, shop: KnownShop, named_as: Sequence[str]) -> Outcome:
        """Serving alone, in a data directory whose store does not answer: traffic for a while."""
        settings = self._settings(data, redis_url=f"redis://127.0.0.1:{free_port()}/0")
        with Stack(settings, say, self.interrupts) as stack:
            stack.start_serving(READY_S)
            return self._only_asked(stack, name, shop, named_as)

    def empty(self, name: str, named_as: Sequence[str]) -> Outcome:
        """A stack where nothing has ever happened: no item, no event, no model."""
        with Stack(self._settings(self.folder / "empty" / "var"), say, self.interrupts) as stack:
            stack.start_valkey()
            stack.run("apply", "headrace.ops.apply")
            stack.start_flows()
            stack.start_serving(READY_S)
            return self._only_asked(stack, name, KnownShop({}), named_as)

    def _only_asked(self, stack: Stack, name: str, shop: KnownShop, named_as: Sequence[str]) -> Outcome:
        say(name)
        with self._load(stack.settings, shop, Rates(self.rates.slates, 0, 0)) as load:
            world = World(stack, load, self.scale, self.clock, self.folder, say)
            with world.tried(name) as _:
                world.until_named(named_as)
            load.stop()
        (outcome,) = world.outcomes
        everywhere = [
            set(named_as) <= set(each.degraded) for each in outcome.asked + outcome.after if each.status == 200
        ]
        outcome.notes["named_by_all"] = all(everywhere)
        return outcome

    def _settings(self, data: Path, **own: Any) -> Settings:
        repo = ROOT / "feature_repo"
        return Settings(
            data=data,
            feature_repo=repo,
            http_port=free_port(),
            deadline_ms=self.deadline_ms,
            exploration=0.0,
            **own,
        )

    def _load(self, settings: Settings, shop: KnownShop, rates: Rates) -> Load:
        who: Sequence[Mapping[str, str]] = visitors(Settings(data=self.prepared), _VISITORS, seed=0)
        return Load(settings, shop, who, rates, self.clock)


def kept(name: str, world: World, unmet: list[str]) -> Kept:
    """Raises StoryError where the flows do not come to the log's end."""
    settings, load = world.stack.settings, world.load
    wait_until_filled(settings)
    in_lake = Counter(EventLake(settings.lake_dir).scan([names.EVENT_ID]).collect()[names.EVENT_ID])
    compared, mismatches = verify(world.stack)
    lost = sum(event not in in_lake for event in load.acknowledged)
    doubled = sum(count > 1 for event, count in in_lake.items() if event.startswith(OWN_EVENTS))
    return Kept(name, len(load.acknowledged), lost, doubled, compared, mismatches, unmet, world.outcomes, load.shop)


def verify(stack: Stack) -> tuple[int, dict[str, int]]:
    """Values of the online store compared with the lake, and how many differ, by feature."""
    try:
        found = json.loads(stack.run("verify", "headrace.cli", "verify", "--json"))
    except ChildFailedError as error:
        return 0, {str(error): 1}
    return found["compared"], found["mismatches"]


def without_a_store(trials: Trials, data: Path, shop: KnownShop) -> list[Outcome]:
    """`data` is the directory of a stack that has ended, `shop` what its traffic knew at the end."""
    with_snapshot = trials.without_store("no store at the start, a snapshot on disk", data, shop, [c.FROM_SNAPSHOT])
    shutil.rmtree(data / "serving")
    trained_on = read_shop(Settings(data=trials.prepared))
    of_bundle = trials.without_store("no store and no snapshot, a bundle", data, trained_on, [c.FROM_BUNDLE])
    nothing = trials.empty("nothing: no item, no event, no model", [c.NO_CATALOGUE])
    return [with_snapshot, of_bundle, nothing]


def report(kept: Sequence[Kept], without: Sequence[Outcome], shape: dict[str, Any]) -> None:
    tried = [(each.stack, outcome) for each in kept for outcome in each.outcomes]
    tried += [("alone", outcome) for outcome in without]
    every = [outcome for _, outcome in tried]
    result = {
        "requests": sum(len(each.asked) + len(each.after) for each in every),
        "failed": sum(len(each.failed) for each in every),
        "wrong": sum(len(each.wrong) for each in every),
        "acknowledged": sum(each.acknowledged for each in kept),
        "lost": sum(each.lost for each in kept),
        "doubled": sum(each.doubled for each in kept),
        "unmet": [each for one in kept for each in one.unmet],
        "mismatches": sum(sum(each.mismatches.values()) for each in kept),
        **shape,
        "stacks": {each.stack: each.details() for each in kept},
        "alone": {each.fault: each.details() for each in without},
    }
    columns = ["stack", "fault", "requests", "200", "429", "failed", "for s", "wrong", "late", "degraded for s"]
    publish("reliability", columns, [_row(stack, outcome) for stack, outcome in tried], result)


def _row(stack: str, outcome: Outcome) -> list[object]:
    found = outcome.details()
    statuses = found["statuses"]
    return [
        stack, outcome.fault, found["requests"], statuses.get("200", 0), statuses.get("429", 0), found["failed"], found["failing_s"],
        sum(found["wrong"].values()), found["late_by_client"], found["degraded_s"],
    ]  # fmt: skip


def circumstances(trials: Trials) -> dict[str, Any]:
    return {
        "rates": asdict(trials.rates),
        "scale": asdict(trials.scale),
        "deadline_ms": trials.deadline_ms,
        "allowance_ms": ALLOWANCE_MS,
        "load_average": os.getloadavg(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--site", type=Path, help="where the prepared data directory is kept; default: nowhere")
    parser.add_argument("--keep", type=Path, help="where the stacks' data and logs are left; default: nowhere")
    parser.add_argument("--slates", type=float, default=Rates.slates, help="requests for a slate a second")
    parser.add_argument("--deadline-ms", type=float, default=100.0, help="more on a machine that others use as well")
    parser.add_argument("--only", nargs="*", help="names of faults: try these alone")
    parser.add_argument("--stacks", nargs="*", choices=("one replica", "two replicas", "small log"), help="these alone")
    given = parser.parse_args()
    interrupts = Interrupts()
    with ExitStack() as stack:
        temporary = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hr-rel-")))
        folder = (given.keep or temporary).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        stack.enter_context(interrupts.installed())
        sites = Sites((given.site or folder / "site").resolve(), interrupts, say, system_clock)
        trials = Trials(
            sites.prepared(SHOP),
            folder,
            interrupts,
            Scale(),
            system_clock,
            Rates(slates=given.slates),
            given.deadline_ms,
        )
        shape = circumstances(trials)
        reserve = max(0, shutil.disk_usage(folder).free - _ROOM_BYTES)
        small = {"log_max_bytes": SMALL_LOG_BYTES}
        two = {"recommender_replicas": 2, "overload": FALLBACK}
        stacks: dict[str, tuple[Sequence[Fault], dict[str, Any]]] = {
            "one replica": (ONE_REPLICA, {"disk_reserve_bytes": reserve}),
            "two replicas": (TWO_REPLICAS, two),
            "small log": ([faults.log_full], small),
        }
        chosen = {name: stacks[name] for name in given.stacks or stacks}
        only = {fault.__name__ for fault in (*ONE_REPLICA, *TWO_REPLICAS, faults.log_full)} & set(given.only or ())
        found = [
            trials.tried(name, [each for each in what if not only or each.__name__ in only], **own)
            for name, (what, own) in chosen.items()
        ]
        alone = found[0].stack == "one replica" and not only
        data = folder / found[0].stack.replace(" ", "-") / "var"
        without = without_a_store(trials, data, found[0].shop) if alone else []
    report(found, without, shape)


if __name__ == "__main__":
    main()
