"""What a version has to show before `headrace promote` puts it in service: plain checks, each with a verdict of its own (docs/models.md).

Files and definitions come first: without them nothing else can be asked.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import redis
from rich.table import Table
from rich.text import Text

from headrace.aggregates.read import TooEarlyError
from headrace.aggregates.spec import DefinitionError
from headrace.clock import Clock, system_clock
from headrace.models.bundle import Bundle, BundleError
from headrace.ops.verify import VerifyError, VerifyReport, verify
from headrace.settings import Settings
from headrace.stores.lake import LakeBehindError
from headrace.stores.lake_files import DamagedLakeError
from headrace.stores.redis_client import StoreAddressError
from headrace.stores.shards import DeploymentError
from training.champion import NoChampion, Why, champion_of, check_features, read_in_service
from training.config import TrainConfig
from training.dataset import DatasetError
from training.fit import TrainError
from training.gate_measures import (
    Comparison,
    Differences,
    Stopwatch,
    compare,
    differences,
    judged_by,
    shelf_of,
    time_models,
)
from training.stages import Say, silent
from training.window import window_of

FILES, DEFINITIONS, QUALITY, FEATURES, SCORES, LATENCY = (
    "files", "definitions", "quality", "features", "scores", "latency",
)  # fmt: skip
SCORE_TOLERANCE: Final = 1e-4
"""How far served scores, and item and user vectors for each unit of their length, may be from those of the modules."""
LEAST_USERS: Final = 10
"""Of whom the versions are compared: of fewer nearly any difference lies within the interval."""
LEAST_REQUESTS: Final = 50
"""On which they are compared. By the intervals of `benchmarks/results/quality` a difference on 50 is known to 0.04 to 0.07: of fewer the
gate would let through a version that has lost most of an NDCG@10 of 0.07, which sparse shops have."""
SAMPLE: Final = 200
"""Entities of each view whose features are compared."""
_QUALITY_BOUND: Final = "upper end of the 95 % interval of its difference from the champion at least 0"
_FEATURES_BOUND: Final = "no mismatch between online store and lake, nothing waiting for a backfill"
_SCORES_BOUND: Final = f"served scores and vectors within {SCORE_TOLERANCE:g} of the modules'"
_LAKE_WAIT_S: Final = 30.0
# What is to be done where the champion cannot be asked and may be better all the same. Of one that no replica would take nothing is lost.
_ASK_IT: Final[Mapping[Why, str]] = {
    Why.DAMAGED: "put its files back, or `headrace rollback` to the version before it; --force promotes this one unseen",
    Why.NEWER_FORMAT: "run this by the version of the code that wrote it, as the replicas do; --force promotes this one unseen",
    Why.NO_ARCHITECTURE: "run this where Python finds that module, as the replicas do; --force promotes this one unseen",
}
# What makes a comparison of the store with the lake impossible; each says itself what to do.
_NOT_COMPARABLE: Final = (
    VerifyError, LakeBehindError, DamagedLakeError, DefinitionError, DeploymentError, TooEarlyError,
)  # fmt: skip


@dataclass(frozen=True)
class Verdict:
    """`bound` is what `measured` must keep to; `remedy` what to do where it does not, empty where it does."""

    check: str
    passed: bool
    measured: str
    bound: str
    remedy: str = ""


def gate(
    version: str,
    path: Path,
    settings: Settings,
    clock: Clock = system_clock,
    note: Callable[[Verdict], None] = lambda _: None,
    say: Say = silent,
) -> list[Verdict]:
    """All verdicts on the registered version whose bundle lies in `path`; each is told to `note` as soon as it is there, and what is looked
    at to `say`.
    """
    verdicts = []
    for verdict in _verdicts(version, path, settings, clock, say):
        note(verdict)
        verdicts.append(verdict)
    return verdicts


def failed(verdicts: list[Verdict]) -> list[str]:
    """Names of the checks that were not passed."""
    return [verdict.check for verdict in verdicts if not verdict.passed]


def _verdicts(version: str, path: Path, settings: Settings, clock: Clock, say: Say) -> Iterator[Verdict]:
    say("gate: files and definitions")
    try:
        bundle = Bundle.load(path)
    except BundleError as error:
        yield Verdict(FILES, False, str(error), "every file whole, by its SHA-256", "train again")
        return
    yield Verdict(FILES, True, f"{path.name} is whole", "every file whole, by its SHA-256")
    try:
        check_features(bundle.manifest, settings)
    except BundleError as error:
        yield Verdict(DEFINITIONS, False, str(error), "features as they are applied", "train again")
        return
    except DefinitionError as error:
        yield Verdict(DEFINITIONS, False, str(error), "features as they are applied", "run `headrace apply`")
        return
    yield Verdict(DEFINITIONS, True, f"{len(bundle.manifest.fingerprints)} views fit", "features as they are applied")
    say("gate: quality, beside the champion's")
    yield check_quality(bundle, version, settings)
    say("gate: features as they are served")
    yield check_served_features(settings, clock)
    say("gate: scores and latency")
    try:
        shelf = shelf_of(bundle)
        found = differences(bundle, shelf)
    except ValueError as error:
        yield Verdict(SCORES, False, f"cannot be served: {error}", _SCORES_BOUND, "train again")
        return
    yield judge_scores(found)
    yield judge_latency(time_models(bundle, shelf), settings.model_share * settings.deadline_ms)


def check_quality(bundle: Bundle, version: str, settings: Settings) -> Verdict:
    """Against the champion, on what has happened since the version's cut."""
    found = read_in_service(settings, version)
    if isinstance(found, NoChampion):
        passed, remedy = found.why not in _ASK_IT, _ASK_IT.get(found.why, "")
        return Verdict(QUALITY, passed, f"no champion to compare with: {found.said}", _QUALITY_BOUND, remedy)
    config = judged_by(TrainConfig.from_json(bundle.manifest.config), found.bundle.manifest.config)
    try:
        window = window_of(bundle, config.changed(device="cpu"), settings)
        champion = champion_of(found, window.content, window.models.neighbours, bundle.manifest.cut_us)
        return judge_quality(compare(window, champion))
    except DatasetError as error:
        said, remedy = str(error), "let more happen, or promote it unseen with --force"
    except TrainError as error:
        said, remedy = str(error), "train again, or where the champion's are meant promote this one unseen with --force"
    return Verdict(
        QUALITY, False, f"cannot be compared with version {found.ref.version}: {said}", _QUALITY_BOUND, remedy
    )


def judge_quality(found: Comparison) -> Verdict:
    """Worse only where the whole interval of the paired difference lies below zero: the gate does not ask for a gain.

    Of too few users or requests an interval is too wide to refuse anything, and of one user there is none: then nothing is known, and
    nothing is passed.
    """
    gain = found.gain
    is_enough = found.users >= LEAST_USERS and found.requests >= LEAST_REQUESTS
    high = gain.high if is_enough else None
    passed = high is not None and high >= 0
    sign = "" if gain.value < 0 else "+"
    alike = ", every request alike" if gain.value == gain.low == gain.high == 0 else ""
    said = (
        f"NDCG@10 {found.own:.4f}, champion version {found.champion} {found.theirs:.4f}: {sign}{gain}{alike} "
        f"on {found.requests:,} requests of {found.users:,} users"
    )
    remedy = "train on more or newer data, or see `headrace evaluate`; --force puts it in service all the same"
    if high is None:
        said = f"{said}: that takes {LEAST_REQUESTS} requests of {LEAST_USERS} users at least"
        remedy = (
            "let more users do more since its cut or train with a larger test_share, or promote it unseen with --force"
        )
    return Verdict(
        QUALITY,
        passed,
        f"{said}; {found.note}" if found.note else said,
        _QUALITY_BOUND,
        "" if passed else remedy,
    )


def check_served_features(settings: Settings, clock: Clock) -> Verdict:
    """What the online store gives against what the lake gives, where a store runs."""
    try:
        report = verify(settings, None, clock, wait_s=_LAKE_WAIT_S, sample=SAMPLE)
    except StoreAddressError:
        return Verdict(FEATURES, True, "not checked: no store runs", _FEATURES_BOUND)
    except redis.RedisError as error:
        said = f"the store cannot be read: {type(error).__name__}: {error}"
        remedy = "mend the store, which `headrace status` looks at, or promote unseen with --force"
        return Verdict(FEATURES, False, said, _FEATURES_BOUND, remedy)
    except _NOT_COMPARABLE as error:
        return Verdict(FEATURES, False, str(error), _FEATURES_BOUND, "`headrace status` and `headrace verify` say more")
    return judge_served_features(report)


def judge_served_features(report: VerifyReport) -> Verdict:
    bound = _FEATURES_BOUND
    entities, mismatches = sum(report.entities.values()), sum(report.mismatches.values())
    said = f"{report.compared:,} values of {entities:,} entities, {mismatches:,} mismatches"
    if mismatches:
        return Verdict(FEATURES, False, f"{said}, the first: {report.examples[0]}", bound, "run `headrace backfill`")
    if report.waiting_for_backfill:
        waiting = f"{len(report.waiting_for_backfill)} features are applied and not in the state"
        return Verdict(FEATURES, False, f"{said}; {waiting}", bound, "run `headrace backfill`")
    return Verdict(FEATURES, True, said, bound)


def judge_scores(found: Differences) -> Verdict:
    said = (
        f"largest difference of scores {found.scores:.1e}, user vectors {found.users:.1e}, item vectors {found.items:.1e} "
        f"over {found.requests} requests of {found.candidates} candidates"
    )
    # Of a NaN nothing is less.
    passed = all(each <= SCORE_TOLERANCE for each in (found.scores, found.users, found.items))
    remedy = (
        "" if passed else "serving does not compute what training learnt: a fault of the code, or weights out of range"
    )
    return Verdict(SCORES, passed, said, _SCORES_BOUND, remedy)


def judge_latency(found: Stopwatch, budget_ms: float) -> Verdict:
    said = f"p99 {found.p99_ms:.2f} ms, p50 {found.p50_ms:.2f} ms of the processor: one user, retrieval and {found.candidates} ranked"
    passed = found.p99_ms <= budget_ms
    remedy = "take a smaller config, a faster machine, or a larger HEADRACE_MODEL_SHARE"
    return Verdict(
        LATENCY,
        passed,
        said,
        f"p99 at most {budget_ms:g} ms (HEADRACE_MODEL_SHARE of HEADRACE_DEADLINE_MS)",
        "" if passed else remedy,
    )


def as_table(verdicts: list[Verdict], title: str) -> Table:
    """Of what failed also its bound and the remedy. Fits into 80 columns."""
    table = Table("check", "", "measured", title=title)
    for each in verdicts:
        mark = Text("passed", "green") if each.passed else Text("failed", "bold red")
        said = Text(each.measured)
        if not each.passed:
            said.append(f"\nmust be: {each.bound}", "dim").append(f"\nto do: {each.remedy}", "bold")
        table.add_row(each.check, mark, said)
    return table


def to_json(verdicts: list[Verdict]) -> list[dict[str, Any]]:
    return [asdict(verdict) for verdict in verdicts]
