"""A report of three items and two requests, with something in each of its parts."""

import numpy as np

from training.intervals import Estimate
from training.measures import RANKED, TOWERS, Facts
from training.metrics import Bin
from training.outcomes import Outcome
from training.report import Detail, Group, Report
from training.rivals import POPULAR, Knobs
from training.staleness import StalePoint

NAMES = ("ndcg_at_10", "recall_at_10", "recall_at_20", "recall_at_100", "mrr", "novelty_at_10")


def methods() -> dict[str, dict[str, Estimate]]:
    values = {RANKED: 0.5, TOWERS: 0.25, POPULAR: 0.125}
    return {
        method: {name: Estimate(value, value / 2, value * 1.5) for name in NAMES} | {"gini_at_10": Estimate(0.5)}
        for method, value in values.items()
    }


def report() -> Report:
    quality = Outcome(
        4, 2, Estimate(0.75, 0.5, 1.0), Estimate(0.5, 0.4, 0.6), 0.6931, 0.125, (Bin(0.25, 0.5, 2), Bin(0.5, 0.5, 2))
    )
    stale = {name: each for name, each in methods().items() if name != POPULAR}
    exposure = np.array([2, 1, 0])
    return Report(
        requests=2,
        users=2,
        methods=methods(),
        gains={TOWERS: Estimate(0.25, 0.125, 0.375), POPULAR: Estimate(-0.25, -0.5, -0.125)},
        retrieval=Group("all", "requests", 3, 2, {name: each for name, each in methods().items() if name != RANKED}),
        segments=(Group("user", "new", 2, 2, methods()), Group("item seen", "1 to 9 times", 2, 2, methods())),
        outcomes={"click": quality},
        staleness=(
            StalePoint("0s", 0, stale, {RANKED: Estimate(0, 0, 0), TOWERS: Estimate(0, 0, 0)}),
            StalePoint("1h", 3_600_000_000, stale, {RANKED: Estimate(-0.1, -0.2, 0.1), TOWERS: Estimate(-0.1)}),
        ),
        knobs=Knobs(1 / 16, 100, validated=True),
        notes=("2 < 3 & so on",),
        detail=Detail(
            values={},
            user_T=np.array([0, 1, 1]),
            exposure_I={RANKED: exposure, TOWERS: exposure, POPULAR: exposure},
            item_ID=np.eye(3, 4, dtype=np.float32),
            facts=Facts(np.array([0.5, 0.25, 0.25]), np.array([0, 1, -1]), ("<shoes>", "books")),
        ),
    )  # fmt: skip
