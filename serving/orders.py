"""The orders that candidates are taken in: what is popular, what trends, what is new. From the values of all items, as of one time."""

from typing import Final, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headrace import names
from headrace.arrays import Floats, Ints
from headrace.kernel import kernel
from serving import catalogue as cat
from serving.activity import Activity
from serving.catalogue import Catalogue, Orders

TOP: Final = 1_000
_AT_ONCE: Final = 4_096
"""Ids that are read while no other thread runs Python."""


class Weight(NamedTuple):
    """What one act counts for in the two scores of popularity."""

    overall: float
    trend: float


# What an act says about an item, relative to a view: all of it over the week, and by the hour in each window.
_WORTH: Final = {"views": 1.0, "clicks": 2.0, "carts": 5.0, "purchases": 10.0}
_HOURS: Final = {"1h": 1.0, "1d": 24.0, "7d": 168.0}
POPULARITY: Final = {
    f"{names.ITEM_ACTIVITY}__{act}_{window}": Weight(worth if window == "7d" else 0.0, worth / hours)
    for act, worth in _WORTH.items()
    for window, hours in _HOURS.items()
}


def by_id(catalogue: Catalogue, count: int) -> Ints:
    """The first `count` rows, in the order of their ids: what breaks ties, so that replicas agree. Shape (count,)."""
    starts = range(0, count, _AT_ONCE)
    ids = [pa.array(catalogue.item_ids[start : min(start + _AT_ONCE, count)], pa.string()) for start in starts]
    return np.asarray(pc.sort_indices(pa.chunked_array(ids, pa.string()))).astype(np.int64)


def make_orders(catalogue: Catalogue, activity: Activity | None, by_id: Ints, as_of_us: int) -> Orders:
    """`popular` by a week's acts; `trending` by an hourly rate that the last hour weighs most
    in; `newest` by when an item was first heard of. `by_id` is that of these rows. Without activity no item is popular.
    """
    count = len(by_id)
    overall, trend = (np.zeros(count), np.zeros(count)) if activity is None else scores(activity, count)
    shown = by_id[catalogue.state[by_id] == cat.AVAILABLE]
    return Orders(
        popular=_most_first(overall, by_id),
        trending=_first(trend, shown[trend[shown] > 0]),
        newest=_first(catalogue.listed_us, shown),
        overall=overall,
        as_of_us=as_of_us,
    )


def scores(activity: Activity, count: int) -> tuple[Floats, Floats]:
    """Overall and trend of each row. Shapes (count,)."""
    weights = np.zeros((len(activity.features), 2))
    for place, feature in enumerate(activity.features):
        weights[place] = POPULARITY.get(feature, Weight(0.0, 0.0))
    overall, trend = np.zeros(count), np.zeros(count)
    read = np.flatnonzero(weights.any(axis=1))
    _weigh(activity.table()[:count], read, weights[read], overall, trend)
    return overall, trend


@kernel
def _weigh(values: Floats, read: Ints, weights: Floats, overall: Floats, trend: Floats) -> None:
    """Without the GIL, which requests want: of a large catalogue it takes long."""
    for row in range(len(overall)):
        for place in range(len(read)):
            value = values[row, read[place]]
            if not np.isnan(value):
                overall[row] += value * weights[place, 0]
                trend[row] += value * weights[place, 1]


def _most_first(scores: Floats, by_id: Ints) -> Ints:
    """All rows, the highest score first. Of a large catalogue most have none, and those stand by id already."""
    acted = scores[by_id] > 0
    some = by_id[acted]
    return np.concatenate([some[np.argsort(-scores[some], kind="stable")], by_id[~acted]])


def _first(scores: Floats | Ints, by_id: Ints) -> Ints:
    """The TOP of these rows, the highest score first."""
    found = scores[by_id]
    if len(found) > TOP:
        least = np.partition(found, len(found) - TOP)[len(found) - TOP]
        by_id, found = by_id[found >= least], found[found >= least]
    return by_id[np.argsort(-found, kind="stable")][:TOP]
