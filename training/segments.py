"""Kinds of requests: of new and returning users, for head, tail and cold items, by how often the item was met. T requests."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from headrace import names
from headrace.arrays import Ints, Mask
from training.requests import Requests

USER, ITEM, SEEN = "user", "item", "item seen"
# Lower ends of the ranges of episodes.
_RANGES = (0, 1, 10, 100, 1_000)


@dataclass(frozen=True)
class Segment:
    """Some of the requests. `of` is what they are told apart by."""

    of: str
    name: str
    member_T: Mask


def segments(requests: Requests, before_cut: pl.DataFrame, met_I: npt.NDArray[np.float32]) -> list[Segment]:
    """Those with requests in them.

    A user is new without an episode before the cut. `met_I` are the items' episodes before it: the head are the most popular
    items that together have half of them, cold is an item without any, the tail is the rest.
    """
    known = set(before_cut[names.USER_ID].unique())
    returning_T = np.array([user in known for user in requests.rows[names.USER_ID]], np.bool_)
    head_I, target_T = head(met_I), requests.target_T
    seen_T = met_I[target_T]
    ends = (*_RANGES[1:], np.inf)
    found = [
        Segment(USER, "new", ~returning_T),
        Segment(USER, "returning", returning_T),
        Segment(ITEM, "head", head_I[target_T]),
        Segment(ITEM, "tail", ~head_I[target_T] & (seen_T > 0)),
        Segment(ITEM, "cold", seen_T == 0),
        *(
            Segment(SEEN, _range_name(low, high), (seen_T >= low) & (seen_T < high))
            for low, high in zip(_RANGES, ends, strict=True)
        ),
    ]
    return [segment for segment in found if segment.member_T.any()]


def head(met_I: npt.NDArray[np.float32]) -> Mask:
    """The fewest items that have at least half of the episodes, of equals the first. Shape (I,)."""
    order: Ints = np.argsort(-met_I, kind="stable")
    sums = np.cumsum(met_I[order].astype(np.float64))
    head_I = np.zeros(len(met_I), np.bool_)
    if sums[-1] > 0:
        head_I[order[: int(np.searchsorted(sums, sums[-1] / 2)) + 1]] = True
    return head_I


def _range_name(low: int, high: float) -> str:
    if low + 1 == high:
        return f"{low} times"
    return f"{low:,} times or more" if np.isinf(high) else f"{low:,} to {int(high) - 1:,} times"
