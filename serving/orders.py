"""The orders that candidates are taken in: what is popular, what trends, what is new. From the values of all items, as of one time."""

from typing import Final, NamedTuple

import numpy as np

from headrace import names
from headrace.arrays import Floats, Ints
from serving import catalogue as cat
from serving.activity import Activity
from serving.catalogue import Catalogue, Orders

TOP: Final = 1_000


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
    return np.argsort(np.array(catalogue.item_ids[:count], dtype=np.str_), kind="stable")


def make_orders(catalogue: Catalogue, activity: Activity | None, by_id: Ints, as_of_us: int) -> Orders:
    """`popular` by a week's acts; `trending` by an hourly rate that the last hour weighs most
    in; `newest` by when an item was first heard of. `by_id` is that of these rows. Without activity no item is popular.
    """
    count = len(by_id)
    overall, trend = (np.zeros(count), np.zeros(count)) if activity is None else scores(activity, count)
    shown = catalogue.state[:count] == cat.AVAILABLE
    newest = _best(catalogue.listed_us[:count].astype(np.float64), by_id)
    trending = _best(trend, by_id)
    return Orders(
        popular=_best(overall, by_id),
        trending=trending[(trend[trending] > 0) & shown[trending]][:TOP],
        newest=newest[shown[newest]][:TOP],
        overall=overall,
        as_of_us=as_of_us,
    )


def scores(activity: Activity, count: int) -> tuple[Floats, Floats]:
    """Overall and trend of each row. Shapes (count,)."""
    weights = np.zeros((len(activity.features), 2))
    for place, feature in enumerate(activity.features):
        weights[place] = POPULARITY.get(feature, Weight(0.0, 0.0))
    read = np.flatnonzero(weights.any(axis=1))
    values = np.nan_to_num(activity.table()[:count][:, read]) @ weights[read]
    overall, trend = np.ascontiguousarray(values.T)  # each of its own: `take` copies all of what does not lie together
    return overall, trend


def _best(scores: Floats, by_id: Ints) -> Ints:
    """Rows, the highest score first."""
    return by_id[np.argsort(-scores[by_id], kind="stable")]
