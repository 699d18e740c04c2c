"""Explored slates from the event lake, with what came of them, as arrays for `training.estimators`.

A place of a slate is weighed by all that stands down to it: w(k) = P'(1..k) / P(1..k). That is right where what happens at a place depends
on it and on the places above, not on those below (the cascade; J. McInerney et al., "Counterfactual evaluation of slate recommendations
with sequential reward interactions", 2020). The log holds what was shown and not what was left, so of all policies it can speak of those
that draw another share of slates from the same orders (docs/off_policy.md).
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
import polars as pl

from headrace import names
from headrace.arrays import Floats, Ints, Mask
from headrace.clock import from_micros
from headrace.events import MODEL_VERSION_CHARS
from headrace.exploration import log_prefix_chances
from headrace.settings import DAY_US, HOUR_US
from headrace.stores.lake import EventLake
from training.config import TrainConfig
from training.dataset import T_US, events_on_items, impressions
from training.estimators import OffPolicyError, check_propensities, folds, shrunk_rate

_REQUEST: Final = "request_id"
_SHOWN: Final = ("position", "propensity", names.PROPERTIES, "model_version")


@dataclass(frozen=True)
class LoggedSlates:
    """R impressions, each slate's in the order of its places; `log_logged_R`, `log_drawn_R` and `greedy_R` are of all places down to it."""

    reward_R: Floats
    slate_R: Ints
    position_R: Ints
    log_logged_R: Floats
    log_drawn_R: Floats
    greedy_R: Mask
    left_out: dict[str, int]
    """Slates of the version in the window that are not here, by reason."""

    @property
    def slates(self) -> int:
        return int(self.slate_R.max()) + 1


def read_slates(
    lake: EventLake, version: str, days: float, outcome: str, config: TrainConfig, called: str | None = None
) -> LoggedSlates:
    """Of the last `days` that a model version has shown something in, by the name that impressions have of it; `called` is what errors call
    it. `outcome`: of `training.dataset.LABELS`, as `config` counts them; what was shown in the last of its `outcome_hours` before the log
    ends is left out, as its outcomes may still come.

    Raises OffPolicyError where nothing is left, DatasetError where there is nothing at all.
    """
    called = called or f"version {version}"
    events = events_on_items(lake, _SHOWN).sort(T_US, names.EVENT_ID)
    shown = events.filter(
        (pl.col(names.TYPE) == names.IMPRESSION)
        & (pl.col("model_version") == version[:MODEL_VERSION_CHARS])
        & pl.col(_REQUEST).is_not_null()
    ).unique([_REQUEST, names.ITEM_ID], keep="first", maintain_order=True)
    if shown.is_empty():
        raise OffPolicyError(
            f"the event lake {lake.path} holds no impression of {called}: serve slates first, with HEADRACE_EXPLORATION above 0, or name a "
            "version that has"
        )
    end_us = int(shown[T_US].max()) + 1  # type: ignore[arg-type]
    settled_us = int(events[T_US].max()) - int(config.outcome_hours * HOUR_US)  # type: ignore[arg-type]
    shown = shown.filter(pl.col(T_US) >= end_us - int(days * DAY_US))
    rows = shown.with_columns(
        pl.col(names.PROPERTIES).str.json_path_match(f"$.{names.DRAWN}").cast(pl.Float64, strict=False).alias("drawn"),
        (pl.col(names.PROPERTIES).str.json_path_match(f"$.{names.GREEDY}") != "false").alias("greedy"),
    )
    of_slate = rows.group_by(_REQUEST).agg(
        pl.col("drawn").is_not_null().any().alias("explored"),
        ((pl.col("position").n_unique() == pl.len()) & (pl.col("position").max() == pl.len() - 1)).alias("whole"),
        (pl.coalesce("as_of", T_US).max() <= settled_us).alias("settled"),
    )
    wanted = of_slate.filter("explored", "whole", "settled")
    left_out = {
        "not explored": of_slate.filter(~pl.col("explored")).height,
        "with a place missing": of_slate.filter("explored", ~pl.col("whole")).height,
        "whose outcomes may still come": of_slate.filter("explored", "whole", ~pl.col("settled")).height,
    }
    if wanted.is_empty():
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in left_out.items() if count)
        raise OffPolicyError(
            f"none of {of_slate.height:,} slates of {called} in the {days:g} days up to {from_micros(end_us).isoformat()} can be read: "
            f"{reasons}. Outcomes may come for {config.outcome_hours:g} hours (outcome_hours): serve with HEADRACE_EXPLORATION above 0, "
            "take more days (--days), or wait for the outcomes"
        )
    asked = events.join(wanted.select(_REQUEST), on=_REQUEST, how="semi")
    labels = impressions(asked, config).select(_REQUEST, names.ITEM_ID, outcome)
    rows = rows.join(wanted.select(_REQUEST), on=_REQUEST, how="semi").join(labels, on=[_REQUEST, names.ITEM_ID])
    rows = rows.sort(_REQUEST, "position")
    check_propensities(rows["propensity"].fill_null(float("nan")).to_numpy())
    # Behind what was explored nothing is left to chance: such a place follows from those above it.
    rows = rows.with_columns(
        pl.col("propensity").log().cum_sum().over(_REQUEST).alias("log_logged"),
        pl.col("drawn").fill_null(1.0).log().cum_sum().over(_REQUEST).alias("log_drawn"),
        pl.col("greedy").fill_null(True).cast(pl.Int8).cum_min().over(_REQUEST).alias("greedy"),
    )
    return LoggedSlates(
        reward_R=rows[outcome].cast(pl.Float64).to_numpy(),
        slate_R=rows[_REQUEST].rank("dense").cast(pl.Int64).to_numpy() - 1,
        position_R=rows["position"].cast(pl.Int64).to_numpy(),
        log_logged_R=rows["log_logged"].to_numpy(),
        log_drawn_R=rows["log_drawn"].to_numpy(),
        greedy_R=rows["greedy"].cast(pl.Boolean).to_numpy(),
        left_out=left_out,
    )


def cascade_weights(slates: LoggedSlates, share: float) -> tuple[Floats, Floats]:
    """Of the policy that draws this share of slates: each place's weight, and that of the places above it, 1 at the first. Shapes (R,)."""
    log_target_R = log_prefix_chances(slates.log_drawn_R, slates.greedy_R, share)
    with np.errstate(over="ignore"):  # an infinite weight is refused where it is used
        weights_R = np.exp(log_target_R - slates.log_logged_R)
    return weights_R, np.where(slates.position_R == 0, 1.0, np.roll(weights_R, 1))


def place_rates(slates: LoggedSlates) -> Floats:
    """A model of rewards that knows the place alone, learnt from the other fifths of the slates. Shape (R,).

    What it expects of what the target shows at a place is then the same number, whatever that is: nothing else is known of it.
    """
    places = int(slates.position_R.max()) + 1
    rates_R = np.empty(len(slates.reward_R))
    for here_R, others_R in folds(slates.slate_R):
        rewards_P = np.bincount(slates.position_R[others_R], slates.reward_R[others_R], places)
        seen_P = np.bincount(slates.position_R[others_R], minlength=places)
        overall = rewards_P.sum() / max(seen_P.sum(), 1)
        rates_R[here_R] = shrunk_rate(rewards_P, seen_P, overall)[slates.position_R[here_R]]
    return rates_R
