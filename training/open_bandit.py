"""Open Bandit (Y. Saito et al., "Open Bandit Dataset and Pipeline", 2021): fashion shown by two policies, with propensities and clicks.

`<folder>/<policy>/<campaign>.csv.gz`, or `.csv`, or one folder further down, as it is published. Columns that are read: `item_id`,
`position` (1 to 3), `click`, `propensity_score`: the chance of the item at its position, whatever stands beside it. Each row stands alone.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import polars as pl

from headrace.arrays import Floats, Ints, Mask
from training.estimators import OffPolicyError, folds, shrunk_rate

_COLUMNS: Final = {
    "item_id": pl.Int64,
    "position": pl.Int64,
    "click": pl.Float64,
    "propensity_score": pl.Float64,
}


@dataclass(frozen=True)
class Shown:
    """R impressions of one policy, in the order of the file. Shapes (R,)."""

    item_R: Ints
    position_R: Ints
    click_R: Floats
    propensity_R: Floats


def read(folder: Path, policy: str, campaign: str = "women") -> Shown:
    """Raises OffPolicyError where there is no such file, or not with those columns."""
    found = [
        path
        for pattern in (f"{policy}/{campaign}.csv", f"{policy}/{campaign}/{campaign}.csv")
        for path in (folder / f"{pattern}.gz", folder / pattern)
        if path.is_file()
    ]
    if not found:
        raise OffPolicyError(f"{folder} holds no {policy}/{campaign}.csv.gz: name the folder that holds {policy}/")
    try:
        table = pl.read_csv(found[0], columns=list(_COLUMNS), schema_overrides=_COLUMNS)
    except pl.exceptions.PolarsError as error:
        raise OffPolicyError(
            f"{found[0]} is no Open Bandit file with columns {', '.join(_COLUMNS)}: {str(error).splitlines()[0]}"
        ) from error
    holes = [name for name, column in table.to_dict().items() if column.null_count()]
    if holes:
        raise OffPolicyError(f"{found[0]} has empty cells in {', '.join(holes)}: fetch it again")
    item_R, position_R, click_R, propensity_R = (table[name].to_numpy() for name in _COLUMNS)
    return Shown(item_R, position_R, click_R, propensity_R)


def numbered(*logs: Shown) -> tuple[list[Shown], int, int]:
    """The same impressions with items and positions numbered from 0 over all logs, and how many there are of each."""
    items = np.unique(np.concatenate([each.item_R for each in logs]))
    positions = np.unique(np.concatenate([each.position_R for each in logs]))
    renamed = [
        Shown(
            np.searchsorted(items, each.item_R),
            np.searchsorted(positions, each.position_R),
            each.click_R,
            each.propensity_R,
        )
        for each in logs
    ]
    return renamed, len(items), len(positions)


def chances(shown: Shown, items: int, positions: int, policy: str) -> Floats:
    """How often the policy showed each item at each position, in the mean of its time: shape (positions, items), rows of sum 1.

    Not the mean of its propensities: of those only the shown items' are logged, and a policy that learns shows an item most while it
    is likely.
    """
    counted_PI = np.bincount(shown.position_R * items + shown.item_R, minlength=positions * items).reshape(
        positions, items
    )
    total_P1 = counted_PI.sum(axis=1, keepdims=True)
    if not total_P1.all():
        raise OffPolicyError(
            f"policy {policy} was never seen at position {1 + int(total_P1.argmin())} of the {positions} that the logs have: "
            "take more of its logs, or logs of the same positions"
        )
    return np.asarray(counted_PI / total_P1)


def click_rates(shown: Shown, items: int, positions: int) -> Floats:
    """The model of rewards: clicks per impression by position and item, drawn towards the position's rate. Shape (positions, items)."""
    cell_R = shown.position_R * items + shown.item_R
    seen_PI = np.bincount(cell_R, minlength=positions * items).reshape(positions, items)
    clicks_PI = np.bincount(cell_R, shown.click_R, positions * items).reshape(positions, items)
    rate_P1 = clicks_PI.sum(axis=1, keepdims=True) / np.maximum(seen_PI.sum(axis=1, keepdims=True), 1)
    return shrunk_rate(clicks_PI, seen_PI, rate_P1)


def expectations(shown: Shown, target_PI: Floats) -> tuple[Floats, Floats]:
    """What `click_rates` of the other folds say of each impression, and in the mean over what the target shows there. Shapes (R,)."""
    positions, items = target_PI.shape
    predicted_R, expected_R = np.empty(len(shown.item_R)), np.empty(len(shown.item_R))
    for here_R, others_R in folds(np.arange(len(shown.item_R))):
        rates_PI = click_rates(_take(shown, others_R), items, positions)
        predicted_R[here_R] = rates_PI[shown.position_R[here_R], shown.item_R[here_R]]
        expected_R[here_R] = (rates_PI * target_PI).sum(axis=1)[shown.position_R[here_R]]
    return predicted_R, expected_R


def _take(shown: Shown, which: Mask) -> Shown:
    return Shown(shown.item_R[which], shown.position_R[which], shown.click_R[which], shown.propensity_R[which])
