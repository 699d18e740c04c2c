"""Law 1 as a comparison: what an engine answered, against the oracle. Integers, strings and lists equal, floats to 1e-9 of their scale."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import numpy as np

from headrace.aggregates import spec as sp
from headrace.aggregates.spec import AggregateSpec, ViewSpec
from headrace.clock import from_micros
from tests import oracles
from tests.oracles import Event

TOLERANCE: Final = 1e-9
ADDED_UP: Final = frozenset({sp.SUM, sp.MEAN, sp.STD, sp.DECAYED_SUM, sp.ZSCORE})
"""Functions whose value depends on the order of addition. Of all others the very same number is due."""


class Truth:
    """The oracle over some events, one entity at a time, each value computed once for all engines."""

    def __init__(self, spec: ViewSpec, events: Iterable[Event]) -> None:
        self.spec = spec
        self._by_key: dict[str, list[Event]] = {}
        self._values: dict[tuple[str, str, int], Any] = {}
        for event in events:
            self._by_key.setdefault(event.get(spec.entity_column) or "", []).append(event)

    @property
    def keys(self) -> list[str]:
        return sorted(key for key in self._by_key if key)

    def value(self, aggregate: AggregateSpec, key: str, t_us: int) -> Any:
        where = (aggregate.name, key, t_us)
        if where not in self._values:
            self._values[where] = oracles.value(self.spec, aggregate, self._by_key.get(key, []), key, t_us)
        return self._values[where]

    def check(self, engine: str, pairs: Sequence[tuple[str, int]], answers: Mapping[str, Sequence[Any]]) -> int:
        """Every feature of `answers` at every (key, t); returns how many said something (not 0, null or empty)."""
        said = 0
        for aggregate in self.spec.aggregates:
            for (key, t_us), got in zip(pairs, plain(answers[aggregate.name]), strict=True):
                expected = self.value(aggregate, key, t_us)
                said += bool(expected)
                if got != expected and not self._close(aggregate, key, t_us, got, expected):
                    raise AssertionError(
                        f"{self.spec.name}.{aggregate.name} of {key} at {from_micros(t_us).isoformat()}: the {engine} says "
                        f"{got!r}, the oracle {expected!r} ({aggregate})"
                    )
        return said

    def _close(self, aggregate: AggregateSpec, key: str, t_us: int, got: Any, expected: Any) -> bool:
        if aggregate.function not in ADDED_UP or got is None or expected is None:
            return False
        scale = oracles.scale(aggregate, self.spec, self._by_key.get(key, []), key, t_us)
        return abs(got - expected) <= TOLERANCE * scale


def plain(values: Any) -> list[Any]:
    """A column of any engine as Python values, NaN as None."""
    listed = values.tolist() if isinstance(values, np.ndarray) else list(values)
    return [None if isinstance(value, float) and value != value else value for value in listed]
