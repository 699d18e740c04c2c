"""Compiled views, kept for as long as Feast keeps the view object that they were compiled from."""

import weakref
from collections.abc import Callable
from typing import Generic, TypeVar

from feast import FeatureView

T = TypeVar("T")


class LayoutCache(Generic[T]):
    """What `make` gives for a view, made once for each object.

    By identity: stream views that differ in their aggregations are equal to Feast.
    """

    def __init__(self, make: Callable[[FeatureView], T]) -> None:
        self._make = make
        self._known: dict[int, tuple[weakref.ref[FeatureView], T]] = {}

    def __call__(self, view: FeatureView) -> T:
        number = id(view)
        known = self._known.get(number)
        if known is not None and known[0]() is view:
            return known[1]
        made = self._make(view)
        self._known[number] = (weakref.ref(view, lambda _: self._known.pop(number, None)), made)
        return made
