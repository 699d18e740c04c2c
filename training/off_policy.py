"""What another policy would have earned: `python -m training.off_policy [lake]`, or `open-bandit FOLDER` (docs/off_policy.md)."""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Column, Table

from headrace.arrays import Floats
from headrace.models.bundle import read_manifest
from headrace.models.config import CLICK
from headrace.settings import Settings
from headrace.stores.lake import EventLake
from headrace.stores.models import ModelRegistry, RegistryError, read_champion
from training import open_bandit
from training.config import TrainConfig
from training.dataset import LABELS
from training.estimators import (
    OffPolicyError,
    Worth,
    clipped,
    doubly_robust,
    ips,
    on_policy,
    snips,
    weights,
)
from training.intervals import LEVEL
from training.job import run
from training.logged_slates import cascade_weights, place_rates, read_slates

LAKE, OPEN_BANDIT = "lake", "open-bandit"
ARGUMENTS = {LAKE: ("version", "share", "days", "outcome"), OPEN_BANDIT: ("path", "behaviour", "target", "campaign")}
"""What each source alone is asked by."""
IPS, SNIPS, DOUBLY_ROBUST = "IPS", "SNIPS", "doubly robust"


@dataclass(frozen=True)
class Report:
    """All per impression. `logged` is what the policy that logged has earned, `truth` what the target has where it was seen itself."""

    logged_by: str
    target: str
    outcome: str
    impressions: int
    slates: int
    logged: Worth
    estimates: dict[str, Worth]
    truth: Worth | None = None
    left_out: dict[str, int] = field(default_factory=dict)

    @property
    def source(self) -> str:
        """Whose logs, as a title says it."""
        return "its own logs" if self.target.startswith(self.logged_by) else f"the logs of {self.logged_by}"

    def show(self) -> None:
        title = f"{self.target}, from {self.source}: {self.outcome} per impression, {LEVEL:.0%} intervals"
        heads = ("", "mean", "low", "high", "effective\nsize", "largest\nweight", "mean\nweight")
        table = Table(*(Column(head, no_wrap=True) for head in heads), title=title)
        for name, each in self._rows().items():
            bounds = (f"{number:.5f}" for number in (each.value, each.low, each.high))
            table.add_row(name, *bounds, f"{each.effective:,.0f}", f"{each.largest:.4g}", f"{each.mean_weight:.3f}")
        console = Console()
        console.print(table)
        of_slate = f" in {self.slates:,} slates, {self.impressions / self.slates:.2f} in each"
        console.print(f"{self.impressions:,} impressions{of_slate * (self.slates < self.impressions)}", highlight=False)
        for reason, number in self.left_out.items():
            if number:
                console.print(f"left out: {number:,} slates {reason}", highlight=False)

    def _rows(self) -> dict[str, Worth]:
        seen = {} if self.truth is None else {"target itself": self.truth}
        return {"as logged": self.logged, **self.estimates, **seen}


def of_lake(
    settings: Settings,
    version: str | None = None,
    share: float = 0.0,
    days: float = 30.0,
    outcome: str = CLICK,
    clip: float | None = None,
) -> Report:
    """A model version that draws another share of its slates, 0 for none: from the slates that it showed while it explored.

    `version`: as `headrace train` printed it; None for the one in service. Raises OffPolicyError, DatasetError, RegistryError, BundleError.
    """
    if not 0 <= share <= 1:
        raise OffPolicyError(f"share is {share:g}: it is a share of slates between 0 and 1")
    if outcome not in LABELS:
        raise OffPolicyError(f"no outcome is called {outcome!r}: choose one of {', '.join(LABELS)}")
    served = served_as(settings, version)
    lake = EventLake(settings.lake_dir)
    slates = read_slates(lake, served.bundle, days, outcome, served.config, called=str(served))
    weights_R, above_R = (_bounded(each, clip) for each in cascade_weights(slates, share))
    rates_R = place_rates(slates)
    rewards_R, units_R = slates.reward_R, slates.slate_R
    return Report(
        logged_by=str(served),
        target=f"{served} {f'with {share:.3g} of its slates drawn' if share else 'without exploration'}",
        outcome=outcome,
        impressions=len(rewards_R),
        slates=slates.slates,
        logged=on_policy(rewards_R, units_R),
        estimates={
            IPS: ips(rewards_R, weights_R, units_R),
            SNIPS: snips(rewards_R, weights_R, units_R),
            DOUBLY_ROBUST: doubly_robust(rewards_R, weights_R, rates_R, rates_R, units_R, above_R),
        },
        left_out=slates.left_out,
    )


@dataclass(frozen=True)
class Served:
    """A registered version, the bundle by whose name impressions know it, and the config by which it counts what comes of them."""

    version: str
    bundle: str
    config: TrainConfig

    def __str__(self) -> str:
        return f"version {self.version} (bundle {self.bundle})"


def served_as(settings: Settings, version: str | None) -> Served:
    """A registered version; the one in service for None. Raises RegistryError, BundleError."""
    if version is not None:
        return _served(version, ModelRegistry(settings).version(version).path)
    champion = read_champion(settings)
    if champion is None:
        raise RegistryError("no version is in service: name one, or `headrace promote` first")
    return _served(champion.version, champion.path)


def _served(version: str, bundle: Path) -> Served:
    manifest = read_manifest(bundle)
    return Served(version, manifest.version, TrainConfig.from_json(manifest.config))


def of_open_bandit(
    path: Path, behaviour: str = "random", target: str = "bts", campaign: str = "women", clip: float | None = None
) -> Report:
    """One policy of the data set in a folder from another's logs, beside what it earned itself.

    The target's chances are how often its own logs show each item at each position; that they are counted from a sample is not in the
    intervals. Raises OffPolicyError.
    """
    both = [open_bandit.read(path, policy, campaign) for policy in (behaviour, target)]
    (shown, of_target), items, positions = open_bandit.numbered(*both)
    target_PI = open_bandit.chances(of_target, items, positions, target)
    weights_R = _bounded(weights(target_PI[shown.position_R, shown.item_R], shown.propensity_R), clip)
    predicted_R, expected_R = open_bandit.expectations(shown, target_PI)
    return Report(
        logged_by=behaviour,
        target=target,
        outcome=CLICK,
        impressions=len(weights_R),
        slates=len(weights_R),
        logged=on_policy(shown.click_R),
        estimates={
            IPS: ips(shown.click_R, weights_R),
            SNIPS: snips(shown.click_R, weights_R),
            DOUBLY_ROBUST: doubly_robust(shown.click_R, weights_R, predicted_R, expected_R),
        },
        truth=on_policy(of_target.click_R),
    )


def _bounded(weights_R: Floats, clip: float | None) -> Floats:
    return weights_R if clip is None else clipped(weights_R, clip)


def asked_of(options: argparse.Namespace) -> dict[str, Any]:
    """What was said of the source that is read. Raises OffPolicyError for what another is asked by."""
    given = {name: value for name, value in vars(options).items() if value is not None}
    for source, own in ARGUMENTS.items():
        foreign = [name if name == "path" else f"--{name}" for name in own if name in given]
        if source != options.source and foreign:
            raise OffPolicyError(
                f"{options.source} takes no {' and no '.join(foreign)}: leave that out, or ask {source} (`headrace off-policy {source}`)"
            )
    return {name: given[name] for name in ARGUMENTS[options.source] if name in given}


def command(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m training.off_policy", description=__doc__)
    parser.add_argument("source", nargs="?", default=LAKE, choices=[LAKE, OPEN_BANDIT])
    parser.add_argument("path", nargs="?", type=Path, help="the folder of open-bandit")
    parser.add_argument("--version", help="lake: as `headrace train` printed it; else the one in service")
    parser.add_argument("--share", type=float, help="lake: share of slates that the target draws; else none")
    parser.add_argument("--days", type=float, help="lake: up to the version's last impression; else 30")
    parser.add_argument("--outcome", help=f"lake: {', '.join(LABELS)}; else {CLICK}")
    parser.add_argument("--behaviour", help="open-bandit: whose logs are read; else random")
    parser.add_argument("--target", help="open-bandit: who is estimated; else bts")
    parser.add_argument("--campaign", help="open-bandit: women, men or all; else women")
    parser.add_argument("--clip", type=float, help="the largest weight; left out: as they are")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    options = parser.parse_args(arguments)

    def estimate() -> None:
        given = asked_of(options)
        if options.source == LAKE:
            report = of_lake(Settings(), **given, clip=options.clip)
        elif "path" not in given:
            raise OffPolicyError("open-bandit needs a path: the folder that holds random/ and bts/")
        else:
            report = of_open_bandit(**given, clip=options.clip)
        if options.json:
            print(json.dumps(asdict(report)))
        else:
            report.show()

    return run(estimate)


if __name__ == "__main__":
    sys.exit(command())
