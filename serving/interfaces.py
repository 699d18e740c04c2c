"""What the request path needs of the online store and of a model, and what each may raise."""

from collections.abc import Mapping, Sequence
from typing import Any, Final, Protocol

import redis

from headrace.arrays import Floats, Ints, Mask
from headrace.models.columns import Columns

Features = dict[str, Any]
"""`view__feature` to a column of one value, the user's."""

# What a store or a model may raise on bad state or input; anything else is a fault of ours (`pipeline.last_resort`).
STORE_ERRORS: Final = (redis.RedisError, OSError, RuntimeError, ValueError, LookupError)
MODEL_ERRORS: Final = (RuntimeError, ValueError, LookupError, TypeError, ArithmeticError)


class Rows(Protocol):
    """State of some entities in one view."""

    @property
    def newest_us(self) -> int: ...
    def values(self, t_us: int) -> Mapping[str, Any]: ...


class PlainRows(Protocol):
    """Rows of some entities in one plain view."""

    def values(self, t_us: int | None = None) -> Mapping[str, Any]: ...


class Fetched(Protocol):
    """Rows of several views, fetched in one round trip (headrace.stores.online_reader.Snapshot)."""

    @property
    def streams(self) -> Mapping[str, Rows]: ...
    @property
    def plain(self) -> Mapping[str, PlainRows]: ...
    @property
    def newest_us(self) -> int: ...
    @property
    def complete_us(self) -> int: ...
    @property
    def waiting(self) -> Sequence[str]: ...


class FeatureReader(Protocol):
    """What the request path needs of the online store. `within_s`: no longer than that. `sent`: what `ask` gave, which may be None."""

    def ask(self, wanted: Mapping[str, Sequence[str]], /) -> Any | None: ...
    def fetch(
        self, wanted: Mapping[str, Sequence[str]], /, within_s: float | None = None, sent: Any | None = None
    ) -> Fetched: ...
    def close(self) -> None: ...


class Model(Protocol):
    """What the request path needs of a trained model. Rows are the catalogue's; what is found comes best first.

    `read_user` gives the user as the model reads one, which the other methods take; it means nothing to anybody else. `rank` gives a score
    for each of the R rows, (R,), of `activity` (R, activity features), NaN for null; `retrieve`, `neighbours` and `similar` give rows
    and their scores, (K,) each. All of them may raise MODEL_ERRORS.
    """

    @property
    def version(self) -> str: ...
    @property
    def activity_features(self) -> Sequence[str]:
        """What `rank` wants of each item, in this order."""
        ...

    def read_user(self, user: Features, t_us: int) -> Any: ...
    def retrieve(self, user: Any, k: int, allowed: Mask | None) -> tuple[Ints, Floats]: ...
    def neighbours(self, rows: Ints, k: int) -> tuple[Ints, Floats]: ...
    def similar(self, rows: Ints, k: int, allowed: Mask | None) -> tuple[Ints, Floats]: ...
    def rank(self, user: Any, rows: Ints, activity: Floats) -> Floats: ...
    def explain(self, user: Any, rows: Ints, activity: Floats) -> list[dict[str, Any]]: ...


class Encoder(Protocol):
    """What keeping a model's items current needs of it. `encode` is safe in any thread, `put` is the engine's alone."""

    @property
    def content_features(self) -> Sequence[str]: ...
    def encode(self, content: Columns) -> Any: ...
    def put(self, rows: Ints, encoded: Any) -> None: ...
