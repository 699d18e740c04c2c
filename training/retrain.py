"""New data to a new model in service, once or for as long as it is let: `python -m training.retrain [--every 1h] [--on-drift]`.

A round trains with the champion's weights as its start, asks the gate, promotes, and waits until a recommender says that it answers by the
new version. Rounds never overlap; one that fails is told and counted, and the next one comes when it is due. Ctrl-C or SIGTERM ends a
wait or a training at once, and a promotion when it is done.
"""

import logging
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from typing import Any, Final

import polars as pl

from headrace import names
from headrace.aggregates.spec import DefinitionError
from headrace.clock import Clock, system_clock
from headrace.models.bundle import BundleError, read_manifest
from headrace.ops.api import Api
from headrace.settings import MICROS, Settings
from headrace.stores.lake import EventLake
from headrace.stores.models import BundleRef, ModelRegistry, RegisteredVersion
from training import drift, promote, train
from training.champion import InService, NoChampion, Why, check_features, read_in_service
from training.config import TrainConfig, configured
from training.dataset import POSITIVE_TYPES
from training.drift_signals import DriftConfig
from training.fit import Epoch
from training.gate import Verdict

logger = logging.getLogger(__name__)

SERVED_WITHIN_S: Final = 60.0
_POLL_S: Final = 0.1

Say = Callable[[str], None]
Hold = Callable[[], AbstractContextManager[None]]
"""Interrupts wait until what it encloses is done."""


@dataclass(frozen=True)
class Round:
    """One round. `version` is what it trained, or what waited for the gate, None where there was a reason for neither; `seconds` are of its
    steps, in order.

    `data_age_s`: how old the newest event of the data window was when the round began. `served`: whether a recommender answers by the new
    version; None where none runs.
    """

    version: str | None = None
    promoted: bool = False
    verdicts: list[Verdict] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    data_age_s: float | None = None
    served: bool | None = None

    @property
    def total_s(self) -> float:
        """From the start of the round to the new version serving, or to its pointer where no recommender runs."""
        return sum(self.seconds.values())

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "total_s": self.total_s}


def once(
    config: TrainConfig | None,
    settings: Settings,
    clock: Clock = system_clock,
    *,
    changes: Mapping[str, Any] | None = None,
    say: Say = lambda _: None,
    on_drift: DriftConfig | None = None,
    always: bool = False,
    held: Hold = nullcontext,
    progress: bool = False,
) -> Round:
    """One round, by a config of one's own, or by the champion's with some changes.

    It trains where something is new, or `always`; with `on_drift` only where the champion's data is not like what has come since. Where the
    champion can be asked no more, or serves by definitions that are not applied any more, it trains whatever else is so.

    Raises what training and promotion raise, but for a refusal by the gate: that is a round that did not promote.
    """
    began_us, seconds = clock(), dict[str, float]()
    with _timed("read what is in service", seconds, say):
        champion = in_service(settings)
    if isinstance(champion, NoChampion):
        say(champion.said)
    elif on_drift is not None:
        with _timed("look for drift", seconds, say):
            found = drift.measure(settings, on_drift)
        if not found.drifted:
            say(f"no drift, no training: {found.note or f'{len(found.signals)} signals are as before'}")
            return Round(seconds=seconds)
        say(f"drifted: {', '.join(signal.name for signal in found.signals if signal.drifted)}")
    elif not always and nothing_new(champion.window_us[1], settings):
        say(f"nothing new since version {champion.ref.version}: no training; --always trains all the same")
        return Round(seconds=seconds)
    waiting = None if always else waits_for_the_gate(settings, clock)
    if waiting is not None:
        version, folder = waiting.version, waiting.path
        say(f"nothing new since version {version}, which waits: it is asked about again; --always trains all the same")
    else:
        start = begins_as(champion)
        said = "from nothing" if start is None else f"from version {start.version}"
        config = config or config_as(start, changes or {})
        with _timed(f"train by config {config.name}, {said}", seconds, say):
            weights = None if start is None else start.path
            # The next round begins with newer data, and does not resume this one.
            result = train.main(config, settings, clock, progress=progress, warm_start=weights, keep_unfinished=False)
        assert result is not None, "a round is one process"
        version, folder = result.version, result.bundle_dir
        if start is not None and learnt_nothing(result.epochs):
            say(f"no epoch was better than the start: version {version} is version {start.version} over again")
    age_s = (began_us - read_manifest(folder).window_us[1]) / MICROS
    verdicts: list[Verdict] = []
    try:
        with _timed(f"ask the gate, promote version {version}", seconds, say), held():
            promote.main(version, settings, clock, note=verdicts.append)
    except promote.NotPromotedError as error:
        say(f"version {version} is {error}; the champion stays")
        return Round(version, False, verdicts, seconds, age_s)
    with _timed("wait for a recommender to answer by it", seconds, say):
        served = wait_until_served(settings, folder.name, say)
    done = Round(version, True, verdicts, seconds, age_s, served)
    end = "the new model serving" if served else "the new version in the pointer"
    say(f"from new data to {end}: {done.total_s:.1f} s; the newest event was {age_s:,.0f} s old at the start")
    return done


@dataclass(frozen=True)
class Serving:
    """What is in service and can be asked, and the time that it learnt from, in Unix microseconds."""

    ref: BundleRef
    window_us: tuple[int, int]


def in_service(settings: Settings) -> Serving | NoChampion:
    """`read_in_service` without the models, which nobody needs while others are trained."""
    found = read_in_service(settings)
    return Serving(found.ref, found.bundle.manifest.window_us) if isinstance(found, InService) else found


def waits_for_the_gate(settings: Settings, clock: Clock) -> RegisteredVersion | None:
    """The newest version, where it is the challenger and a training would make it over again. What the gate refused it for may be mended
    by now: a backfill is done, a damaged champion is rolled back. One that was in service and was rolled back is no challenger.
    """
    known = ModelRegistry(settings, clock).versions()
    if not known or names.CHALLENGER not in known[-1].aliases:
        return None
    newest = known[-1]
    try:
        manifest = read_manifest(newest.path)
        check_features(manifest, settings)
    except (BundleError, DefinitionError):
        return None  # it cannot be promoted, and what is trained now can
    return newest if nothing_new(manifest.window_us[1], settings) else None


def begins_as(champion: Serving | NoChampion) -> BundleRef | None:
    """Whose weights a round begins with: the champion's where they can be read, and so by whatever definitions it learnt."""
    can_be_read = isinstance(champion, Serving) or champion.why is Why.OTHER_DEFINITIONS
    return champion.ref if can_be_read else None


def config_as(start: BundleRef | None, changes: Mapping[str, Any]) -> TrainConfig:
    """As the start was trained, with some settings changed: weights of another size are no start. `default` without one. Raises
    ValueError.
    """
    if start is None:
        return configured("default", changes)
    if "size" in changes:
        raise ValueError(
            f"size is {changes['size']}, and the config of version {start.version} has its sizes settled: name one with --config"
        )
    return TrainConfig.from_json(read_manifest(start.path).config).changed(**changes)


def nothing_new(since_us: int, settings: Settings) -> bool:
    """Whether a training would read no interaction at or after this time, the end of another one's window."""
    new = (
        EventLake(settings.lake_dir)
        .scan([names.TYPE, names.ITEM_ID, names.TIMESTAMP])
        .filter(
            pl.col(names.TYPE).is_in(list(POSITIVE_TYPES))
            & pl.col(names.ITEM_ID).is_not_null()
            & (pl.col(names.TIMESTAMP).dt.epoch("us") >= since_us)
        )
    )
    return new.head(1).collect().is_empty()


def learnt_nothing(epochs: Mapping[str, Sequence[Epoch]]) -> bool:
    """Whether every fit ended as it began: no epoch was judged better than the start."""
    return all(
        not each or all(epoch.judged <= each[0].judged for epoch in each[1:])  # of a NaN nothing is less
        for each in epochs.values()
    )


def wait_until_served(settings: Settings, bundle: str, say: Say, within_s: float = SERVED_WITHIN_S) -> bool | None:
    """Whether `GET /readyz` names the bundle before the time is up; None where nobody answers it."""
    deadline = time.monotonic() + within_s
    with Api(settings, timeout_s=2.0) as api:
        status, answer = api.readiness()
        if not status:
            say("no recommender runs: the next one that starts takes the new version")
            return None
        while not (isinstance(answer, dict) and answer.get("model_version") == bundle):
            if time.monotonic() > deadline:
                problems = answer.get("problems") if isinstance(answer, dict) else answer
                say(
                    f"after {within_s:.0f} s no recommender at {api.base_url} answers by bundle {bundle}; its problems: {problems}"
                )
                return False
            time.sleep(_POLL_S)
            status, answer = api.readiness()
    return True


def keep_on(
    round_: Callable[[], Round],
    every_s: float,
    say: Say,
    wait: Callable[[float], None] = time.sleep,
    rounds: int | None = None,
) -> None:
    """Rounds that begin `every_s` apart, or as soon as the one before has ended; `rounds` of them, or until it is interrupted."""
    count = failures = 0
    while rounds is None or count < rounds:
        count += 1
        began = time.monotonic()
        say(f"round {count}")
        try:
            round_()
        except Exception as error:
            # Whatever it was: the champion serves on, and the next round may have better luck.
            failures += 1
            logger.exception("round %d failed", count)
            say(f"round {count} failed, {failures} of {count} so far: {type(error).__name__}: {error}")
        rest_s = every_s - (time.monotonic() - began)
        if rest_s > 0 and count != rounds:
            wait(rest_s)


@contextmanager
def _timed(step: str, seconds: dict[str, float], say: Say) -> Iterator[None]:
    """Notes and says the time of a step, whatever came of it."""
    started = time.monotonic()
    try:
        yield
    finally:
        seconds[step] = time.monotonic() - started
        say(f"{seconds[step]:6.1f} s {step}")


if __name__ == "__main__":
    from training.retrain_command import command

    sys.exit(command())
