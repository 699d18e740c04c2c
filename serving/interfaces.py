"""What the request path needs of the online store and of a model, and what each may raise."""

from collections.abc import Mapping, Sequence
from typing import Any, Final, Protocol

import redis

Features = dict[str, Any]
"""`view__feature` to a column: one value for the user, one value for each item."""

# What a store or a model may raise on bad state or input; anything else is a fault of ours (`pipeline.last_resort`).
STORE_ERRORS: Final = (redis.RedisError, OSError, RuntimeError, ValueError, LookupError)
MODEL_ERRORS: Final = (RuntimeError, ValueError, LookupError, TypeError, ArithmeticError)


class Rows(Protocol):
    """State of some entities in one view."""

    def values(self, t_us: int) -> Mapping[str, Any]: ...


class Fetched(Protocol):
    """Rows of several views, fetched in one round trip (headrace.stores.online_reader.Snapshot)."""

    @property
    def streams(self) -> Mapping[str, Rows]: ...
    @property
    def plain(self) -> Mapping[str, Rows]: ...
    @property
    def newest_us(self) -> int: ...
    @property
    def complete_us(self) -> int: ...
    @property
    def waiting(self) -> Sequence[str]: ...


class FeatureReader(Protocol):
    """What the request path needs of the online store."""

    def fetch(self, wanted: Mapping[str, Sequence[str]], /) -> Fetched: ...


class Model(Protocol):
    """What the request path needs of a trained model. Results of a search are (item id, score), best first."""

    @property
    def version(self) -> str: ...
    def knows(self, item_id: str) -> bool: ...
    def retrieve(self, user: Features, t_us: int, k: int) -> list[tuple[str, float]]: ...
    def similar_items(self, item_ids: Sequence[str], k: int) -> list[tuple[str, float]]: ...
    def rank(self, user: Features, item_ids: Sequence[str], items: Features, t_us: int) -> Sequence[float]: ...
