"""How well the ranker's probabilities fit what came of what was shown: impressions after the cut, by outcome.

Without impressions nothing is said: the candidates of a request were not shown, so that nothing came of them is no observation.
"""

from dataclasses import dataclass

import numpy as np
import polars as pl
import torch
from feast import FeatureStore

from headrace import names
from headrace.arrays import Floats, Ints, Mask
from headrace.models import columns
from training import metrics
from training.config import TrainConfig
from training.dataset import T_US, Split, features, sample
from training.intervals import Estimate, estimate, estimates, resampled_users
from training.metrics import Bin
from training.processes import device_of
from training.scoring import Models, rank_logits


@dataclass(frozen=True)
class Outcome:
    """Of one outcome over impressions. `constant_log_loss` is that of saying the mean rate of every one."""

    impressions: int
    positives: int
    auc: Estimate
    log_loss: Estimate
    constant_log_loss: float
    calibration_error: float
    bins: tuple[Bin, ...]


def measure_outcomes(models: Models, split: Split, store: FeatureStore, config: TrainConfig) -> dict[str, Outcome]:
    """By outcome, on up to `max_test` impressions (0 for all). An outcome that all or none of them had is left out."""
    shown = split.test_impressions
    rows = sample(shown, config.max_test or shown.height, config.seed)
    if rows.is_empty():
        return {}
    probability_RO = probabilities(models, rows, store, config)
    _, user_R = np.unique(rows[names.USER_ID].to_numpy(), return_inverse=True)
    found = {}
    for place, name in enumerate(models.ranker.outcomes):
        positive_R = rows[name].to_numpy().astype(np.bool_)
        if positive_R.any() and not positive_R.all():
            found[name] = measure(probability_RO[:, place], positive_R, user_R, config)
    return found


def measure(probability_R: Floats, positive_R: Mask, user_R: Ints, config: TrainConfig) -> Outcome:
    """Labels of both kinds are there."""
    _, place_R = np.unique(probability_R, return_inverse=True)
    areas = [
        metrics.weighted_auc(place_R, positive_R, weight_U[user_R])
        for weights_NU in resampled_users(int(user_R.max()) + 1, seed=config.seed, resamples=config.resamples)
        for weight_U in weights_NU
    ]
    losses_R = metrics.log_loss(probability_R, positive_R)
    loss = estimates({"log_loss": losses_R}, user_R, seed=config.seed, resamples=config.resamples)["log_loss"]
    constant_R = metrics.log_loss(np.full(len(positive_R), positive_R.mean()), positive_R)
    bins = metrics.calibration_bins(probability_R, positive_R)
    return Outcome(
        impressions=len(positive_R),
        positives=int(positive_R.sum()),
        auc=estimate(metrics.auc(probability_R, positive_R), np.array(areas)),
        log_loss=loss,
        constant_log_loss=metrics.mean(constant_R),
        calibration_error=metrics.calibration_error(bins),
        bins=bins,
    )


def probabilities(models: Models, rows: pl.DataFrame, store: FeatureStore, config: TrainConfig) -> Floats:
    """The ranker's, of each outcome for rows of impressions, users and items as they stood when these were shown. Shape (R, O)."""
    table = columns.by_name(features(store, names.RANKER_SERVICE, rows))
    users = models.preprocessing.users(table, rows[T_US].to_numpy(), models.shop.row)
    items = models.preprocessing.items(table, with_activity=True)
    alone = items.rows(torch.arange(rows.height)[:, None])
    device = device_of(config.device)
    rows_R1 = models.shop.rows(rows[names.ITEM_ID].to_arrow())[:, None]
    logits_R1O = rank_logits(models, users, alone, rows_R1, device)
    # Where an item stood is known of an impression, and part of how likely it was taken.
    position_R1 = torch.from_numpy(1 + rows["position"].fill_null(0).cast(pl.Int64).to_numpy()[:, None])
    placed_R1O = models.ranker.at_positions(logits_R1O.to(device), position_R1.to(device)).cpu()
    probability_RO: Floats = torch.sigmoid(placed_R1O[:, 0].detach().double()).numpy()
    return probability_RO
