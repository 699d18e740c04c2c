"""How good the models are: the next new item after the cut, ranked among all items, beside the baselines and the champion.

Every method answers the same requests with the same rules (docs/evaluation.md). `python -m training.evaluate` measures a
registered bundle again, on what has happened since its cut.
"""

import argparse
import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from feast import FeatureStore

from headrace.arrays import Floats, Ints, Mask
from headrace.clock import from_micros
from headrace.models.bundle import Bundle
from headrace.settings import Settings
from headrace.stores.feature_store import quieten_feast
from headrace.stores.models import ModelRegistry, read_champion
from training.baselines import popularity
from training.champion import Champion, InService, NoChampion, champion_of, check_features, read_in_service
from training.changes import parse_changes
from training.config import TrainConfig
from training.dataset import Split, unripe
from training.intervals import Estimate, estimates
from training.job import run
from training.measures import CHAMPION, DEPTH, MAIN, RANKED, TOWERS, exposure_of, facts_of, together, values_of
from training.outcomes import Outcome, measure_outcomes
from training.page import write_page
from training.promote import choose
from training.report import Detail, Group, Measured, Report
from training.requests import best_places, read_requests
from training.rivals import RIVALS, Knobs, choose_knobs, rivals
from training.scoring import Models, Slates, answer
from training.segments import segments
from training.stages import Say, aloud, silent
from training.staleness import Lag, parse_lags, value_of_freshness
from training.window import window_of

__all__ = ["CHAMPION", "RANKED", "RIVALS", "TOWERS", "Models", "Report", "evaluate", "main"]

CHANGEABLE = ("max_test", "max_ranked_requests", "resamples", "seed", "device")
"""Settings that an evaluation may choose; all others were settled by the training."""


def evaluate(
    models: Models,
    split: Split,
    store: FeatureStore,
    config: TrainConfig,
    *,
    champion: Champion | None = None,
    lags: Sequence[Lag] = (),
    notes: Sequence[str] = (),
    say: Say = silent,
) -> Report:
    """Towers + ranker beside the towers, the baselines and the champion; with `lags`, also on features that are older.

    `say` is told each stage as it begins. Raises DatasetError where no request is left to answer.
    """
    item_ids = models.shop.item_ids
    trained_I, met_I = (popularity(each, item_ids) for each in (split.train, split.before_cut))
    facts = facts_of(models.preprocessing, models.shop, trained_I)
    requests = read_requests(split.test, split.everything, item_ids, config.max_test, config.seed)
    ranked = min(config.max_ranked_requests or len(requests), len(requests))
    few = requests.head(ranked)

    say(f"evaluation: {len(requests):,} requests by the towers, {ranked:,} by the ranker")
    own = answer(models, requests, ranked, store, config)
    say("evaluation: baselines")
    knobs = choose_knobs(split, item_ids, config)
    slates = {RANKED: own.ranked_RK, TOWERS: own.retrieved_TK}
    if champion is not None:
        say(f"evaluation: {ranked:,} requests by the champion")
        slates[CHAMPION] = answer(champion.models, few, ranked, store, config).ranked_RK
    for name, scores in rivals(requests, split, item_ids, knobs).items():
        slates[name] = best_places(scores, requests.history, DEPTH)

    values = {name: values_of(slate, requests.head(len(slate)), facts) for name, slate in slates.items()}
    on_few = {name: {metric: value[:ranked] for metric, value in each.items()} for name, each in values.items()}
    on_all = {name: values[name] for name in (TOWERS, *RIVALS)}
    exposure = {name: exposure_of(slate[:ranked], facts) for name, slate in slates.items()}
    say("evaluation: intervals")
    methods = measured(on_few, few.user_T, config)
    for name, exposure_I in exposure.items():
        methods[name] |= {metric: Estimate(value) for metric, value in together(exposure_I).items()}
    say("evaluation: impressions and segments")
    outcomes = measure_outcomes(models, split, store, config)
    return Report(
        requests=len(few),
        users=users_in(few.user_T),
        methods=methods,
        gains=gains(on_few, few.user_T, config),
        retrieval=Group(
            "all", "requests", len(requests), users_in(requests.user_T), measured(on_all, requests.user_T, config)
        ),
        segments=tuple(
            Group(
                part.of,
                part.name,
                int(part.member_T.sum()),
                users_in(few.user_T[part.member_T]),
                measured(_members(on_few, part.member_T), few.user_T[part.member_T], config),
            )
            for part in segments(few, split.before_cut, met_I)
        ),
        outcomes=outcomes,
        staleness=value_of_freshness(
            models, few, lags, Slates(own.retrieved_TK[:ranked], own.ranked_RK, own.item_ID), facts, store, config, say
        ),
        knobs=knobs,
        notes=(*notes, *_remarks(champion, outcomes, knobs), *unripe(split)),
        detail=Detail(values, requests.user_T, exposure, own.item_ID, facts),
    )


Values = Mapping[str, Mapping[str, Floats]]
"""By method and metric, a value of each request."""


def measured(values: Values, user_T: Ints, config: TrainConfig) -> dict[str, Measured]:
    """Means with intervals, all from the same resamples."""
    columns = {(name, metric): value_T for name, each in values.items() for metric, value_T in each.items()}
    found: dict[str, Measured] = {name: {} for name in values}
    for (name, metric), estimate in estimates(columns, user_T, seed=config.seed, resamples=config.resamples).items():
        found[name][metric] = estimate
    return found


def gains(values: Values, user_T: Ints, config: TrainConfig) -> dict[str, Estimate]:
    """NDCG@10 of towers + ranker less that of each other method."""
    differences = {name: values[RANKED][MAIN] - each[MAIN] for name, each in values.items() if name != RANKED}
    return estimates(differences, user_T, seed=config.seed, resamples=config.resamples)


def users_in(user_T: Ints) -> int:
    return len(np.unique(user_T))


def _members(values: Values, member_T: Mask) -> Values:
    return {name: {metric: value_T[member_T] for metric, value_T in each.items()} for name, each in values.items()}


def _remarks(champion: Champion | None, outcomes: Mapping[str, Outcome], knobs: Knobs) -> list[str]:
    """What a reader has to know."""
    remarks = []
    if champion is not None and champion.note:
        remarks.append(champion.note)
    if not outcomes:
        remarks.append(
            "no AUC, log loss and calibration: they need impressions after the cut, some with an outcome and some without"
        )
    if not knobs.validated:
        remarks.append(
            "the baselines' half-life and number of neighbours are defaults: there was no validation to choose by"
        )
    return remarks


@dataclass(frozen=True)
class Evaluation:
    """A report, and what it is of. `header` is for a reader; times are UTC."""

    version: str
    header: dict[str, str]
    report: Report

    def to_json(self) -> dict[str, Any]:
        return {"version": self.version, "header": self.header, **self.report.to_json()}


def main(
    version: str | None,
    settings: Settings,
    *,
    lags: Sequence[Lag] = (),
    changes: Mapping[str, Any] | None = None,
    command: str = "",
    say: Say = silent,
) -> Evaluation:
    """Measure a registered version, else the champion, else the newest. Raises RegistryError, BundleError, DatasetError.

    `changes` are settings of `CHANGEABLE`; another raises ValueError.
    """
    in_service = read_champion(settings)
    chosen = choose(version or (in_service.version if in_service else None), ModelRegistry(settings))
    bundle = Bundle.load(chosen.path)
    check_features(bundle.manifest, settings)
    cut_us = bundle.manifest.cut_us
    config = changed(TrainConfig.from_json(bundle.manifest.config), changes or {})
    say(f"reading what has happened since the cut of version {chosen.version}")
    window = window_of(bundle, config, settings)
    split, shop = window.split, window.models.shop
    found = read_in_service(settings, chosen.version, window.config.device)
    opponent = None
    if isinstance(found, InService):
        opponent = champion_of(found, window.content, window.models.neighbours, cut_us)
    report = evaluate(
        window.models,
        split,
        window.store,
        window.config,
        champion=opponent,
        lags=lags,
        notes=[f"no champion: {found.said}"] if isinstance(found, NoChampion) else [],
        say=say,
    )
    champion = "not compared" if opponent is None else f"version {opponent.version}"
    header = {
        "version": f"{chosen.version} ({bundle.version})",
        "champion": champion,
        **header_of(config, split, len(shop.item_ids), report),
        "command": command,
    }
    return Evaluation(chosen.version, {name: text for name, text in header.items() if text}, report)


def page_of(settings: Settings, name: str) -> Path:
    """Where an HTML report goes; a training's has the name of its version."""
    return settings.reports_dir / f"{name}.html"


def header_of(config: TrainConfig, split: Split, items: int, report: Report) -> dict[str, str]:
    """What a reader of a report has to know of it, by name."""
    return {
        "config": f"{config.name}, size {config.size}, width {config.width}, history {config.length}, seed {config.seed}",
        "data window": f"{_moment(split.start_us)} to {_moment(split.end_us)}",
        "cut": f"{_moment(split.cut_us)}: the test is what came after, the models learnt from what came before",
        "episodes": f"{split.train.height:,} training, {split.validation.height:,} validation, {split.test.height:,} test",
        "catalogue": f"{items:,} items",
        "requests": f"{report.retrieval.requests:,} of {report.retrieval.users:,} users, the ranker on {report.requests:,}",
        "baselines": f"half-life {report.knobs.half_life_share:.3g} of the time before the cut, {report.knobs.neighbours} neighbours: "
        + ("chosen by the validation part" if report.knobs.validated else "defaults"),
    }


def changed(config: TrainConfig, changes: Mapping[str, Any]) -> TrainConfig:
    """Raises ValueError for a setting that the training has settled."""
    settled = sorted(set(changes) - set(CHANGEABLE))
    if settled:
        raise ValueError(
            f"{', '.join(settled)} was settled by the training; an evaluation may set {', '.join(CHANGEABLE)}"
        )
    return config.changed(**changes)


def _moment(us: int) -> str:
    return f"{from_micros(us):%Y-%m-%d %H:%M} UTC"


def command(arguments: Sequence[str] | None = None) -> int:
    given = sys.argv[1:] if arguments is None else list(arguments)
    parser = argparse.ArgumentParser(prog="python -m training.evaluate", description=__doc__)
    parser.add_argument("version", nargs="?", help="as `headrace train` printed it; else the champion, else the newest")
    parser.add_argument("--staleness", metavar="LAGS", help="also with features that are so old, like 0s,1m,1h,1d")
    parser.add_argument(
        "--report", metavar="PATH", type=Path, help="the HTML report; var/reports/VERSION-evaluation.html if left out"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help=f"change one of {', '.join(CHANGEABLE)}; repeatable",
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    options = parser.parse_args(given)
    quieten_feast()

    def measure() -> None:
        settings = Settings()
        lags = parse_lags(options.staleness) if options.staleness is not None else ()
        found = main(
            options.version,
            settings,
            lags=lags,
            changes=parse_changes(options.set, TrainConfig, CHANGEABLE),
            command=shlex.join(["headrace", "evaluate", *given]),
            say=silent if options.json else aloud,
        )
        # The training's own report stays: it alone has the curves of how the version learnt.
        page = options.report or page_of(settings, f"{found.version}-evaluation")
        write_page(page, found.report, found.header)
        if options.json:
            print(json.dumps({**found.to_json(), "page": str(page)}))
        else:
            found.report.show()
            print(f"report: {page}")

    return run(measure)


if __name__ == "__main__":
    sys.exit(command())
