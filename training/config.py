"""What a training run does, as one typed value. `size` is the dial; everything that grows with it is derived here."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from math import isfinite
from typing import Any, Final

from headrace.models.config import CAUSAL, CROSSES, ModelConfig
from headrace.models.index import LEAST_RECALL
from headrace.named import NamedError, named
from training.changes import changed

_AT_LEAST_1: Final = (
    "size", "threads", "max_positives", "max_lists", "candidates", "length", "width", "heads", "cross_width", "batch", "tower_epochs",
    "list_batch", "ranker_epochs", "patience", "drawn_items", "layers",
)  # fmt: skip
_AT_LEAST_0: Final = (
    "seed", "max_validation", "max_test", "max_ranked_requests", "resamples", "test_days", "validation_days", "weight_decay", "warm_up",
    "min_outcomes", "full_softmax_items", "exact_below",
)  # fmt: skip
_ABOVE_0: Final = ("days", "outcome_hours", "learning_rate")
# Beyond these no machine and no shop is, and sizes and times no longer fit into what holds them.
_YEARS_100: Final = 36_525
_AT_MOST: Final[Mapping[str, int]] = {
    "size": 64, "seed": 2**32 - 1, "threads": 1_024, "days": _YEARS_100, "test_days": _YEARS_100, "validation_days": _YEARS_100,
    "outcome_hours": 24 * _YEARS_100, "length": 8_192, "width": 8_192, "cross_width": 8_192, "layers": 64, "resamples": 100_000,
}  # fmt: skip
_AT_MOST_ELSE: Final = 2**31 - 1
_FEWEST_RESAMPLES: Final = 100
_PARTS: Final = ("validation_share", "dropout", "averaging")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """All numbers of a run. Build one with `small()`, `default()` or `large()`, change it with `changed`.

    What has no value here grows with `size`: `of_size`.
    """

    name: str
    size: int
    seed: int = 0
    # auto: a GPU where there is one.
    device: str = "auto"
    # More threads lose time on busy cores, and change the last digits.
    threads: int = 1
    # Data: how far back from the newest event; how much of it, last in time, is kept for the test, and how much before that to
    # choose by. Days count where they are above 0, else shares.
    days: float = 90.0
    test_share: float = 0.1
    test_days: float = 0.0
    validation_share: float = 0.1
    validation_days: float = 0.0
    outcome_hours: float = 24.0
    min_rating: float = 3.0
    min_outcomes: int = 50
    max_positives: int
    max_lists: int
    # Requests: of the validation, that the towers are judged by; of the test, that are drawn, and those of them that the ranker
    # answers too (0 for all); and resamples for intervals.
    max_validation: int = 2_000
    max_test: int = 2_000
    max_ranked_requests: int
    resamples: int = 1_000
    # What retrieval offers the ranker, and how much of it a list to learn from has.
    candidates: int = 200
    list_length: int = 32
    # Models.
    length: int
    width: int
    heads: int = 2
    layers: int
    cross_width: int
    dropout: float
    # Fitting: at most so many epochs, ended after `patience` of them without a better one.
    batch: int
    tower_epochs: int
    list_batch: int = 16
    ranker_epochs: int = 10
    patience: int
    learning_rate: float = 1e-3
    # Of directions it is the decay that keeps steps large: weights it holds small turn further (docs/experiments.md).
    weight_decay: float = 0.3
    warm_up: int = 100
    averaging: float = 0.999
    # Softmax over the catalogue up to so many items, above that over the batch's and so many that are drawn.
    full_softmax_items: int = 20_000
    drawn_items: int = 4_096
    # Retrieval: up to how many items all are scored, and what an index of more has to find of the 500 best.
    exact_below: int = 20_000
    index_recall: float = 0.97
    # Architectures: names of headrace/models/architectures.py, or module:Class.
    towers: str = CAUSAL
    ranker: str = CROSSES

    def __post_init__(self) -> None:
        for name in (each.name for each in fields(self) if each.type is float):
            self._check(name, isfinite(getattr(self, name)), "finite")
        for name in _AT_LEAST_1:
            self._check(name, getattr(self, name) >= 1, "at least 1")
        for name in _AT_LEAST_0:
            self._check(name, getattr(self, name) >= 0, "0 or more")
        for name in (each.name for each in fields(self) if each.type is int or each.name in _AT_MOST):
            most = _AT_MOST.get(name, _AT_MOST_ELSE)
            self._check(name, getattr(self, name) <= most, f"at most {most:,}")
        for name in _ABOVE_0:
            self._check(name, getattr(self, name) > 0, "above 0")
        for name in _PARTS:
            self._check(name, 0 <= getattr(self, name) < 1, "from 0 to 1, 1 left out")
        self._check("test_share", 0 < self.test_share < 1, "between 0 and 1")
        self._check("list_length", self.list_length >= 2, "at least 2: of one candidate there is no order")
        self._check("width", self.width % self.heads == 0, f"a multiple of heads, which is {self.heads}")
        self._check(
            "resamples",
            self.resamples == 0 or self.resamples >= _FEWEST_RESAMPLES,
            f"0, for no intervals, or at least {_FEWEST_RESAMPLES}: fewer give no ends of an interval",
        )
        self._check("name", bool(self.name) and "/" not in self.name, "a word without a slash: folders bear it")
        self._check("index_recall", LEAST_RECALL <= self.index_recall <= 1, f"from {LEAST_RECALL} to 1")

    def _check(self, name: str, holds: bool, bound: str) -> None:
        if not holds:
            raise ValueError(f"{name} is {getattr(self, name)}; it must be {bound}")

    def changed(self, **changes: Any) -> "TrainConfig":
        """A copy with some values changed. Raises ValueError for an unknown key, or a value out of range."""
        return changed(self, "training setting", changes)

    def model(self, outcomes: tuple[str, ...]) -> ModelConfig:
        return ModelConfig(
            width=self.width,
            heads=self.heads,
            layers=self.layers,
            cross_width=self.cross_width,
            hidden=2 * self.width,
            dropout=self.dropout,
            outcomes=outcomes,
            towers=self.towers,
            ranker=self.ranker,
        )

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, state: Mapping[str, Any]) -> "TrainConfig":
        return small().changed(**state)


def of_size(name: str, size: int) -> TrainConfig:
    """Rows and lists grow with the square of `size`; widths, batches and epochs with it; history, layers and dropout up to a bound."""
    return TrainConfig(
        name=name,
        size=size,
        max_positives=20_000 * size**2,
        max_lists=5_000 * size**2,
        max_ranked_requests=400 * size,
        length=min(10 + 20 * size, 50),
        width=32 * size,
        cross_width=64 + 96 * size,
        batch=256 * size,
        layers=min(size, 3),
        dropout=min(0.175 * size, 0.5),
        tower_epochs=50 * size,
        patience=4 * size,
    )


def small() -> TrainConfig:
    """Under a minute on two cores: the demo and the tests."""
    return of_size("small", 1)


def default() -> TrainConfig:
    """Two attention layers over 50 items at width 64, crosses 256 wide."""
    return of_size("default", 2)


def large() -> TrainConfig:
    return of_size("large", 4)


CONFIGS: Mapping[str, Callable[[], TrainConfig]] = {"small": small, "default": default, "large": large}


def configured(name: str, changes: Mapping[str, Any]) -> TrainConfig:
    """What a command line asks for: a config by its name with some values changed. Of the package's own a changed `size` derives all that
    grows with it, before the other changes. Raises ValueError.
    """
    others = {key: value for key, value in changes.items() if key != "size"}
    if others == changes:
        return by_name(name).changed(**changes)
    size = changes["size"]
    if name not in CONFIGS:
        raise ValueError(
            f"size is {size}, but a config of your own has its sizes settled: let {name} begin with `of_size(name, {size})`, or set "
            "what is to change by its own name"
        )
    own = CONFIGS[name]()
    return of_size(name if size == own.size else f"size-{size}", size).changed(**others)


def by_name(name: str) -> TrainConfig:
    """One of CONFIGS, or what a function of the user's returns: `module:function`, the module on the Python path. Raises ValueError."""
    if name in CONFIGS:
        return CONFIGS[name]()
    said = f"no training config {name!r}"
    try:
        function = named(name)
    except NamedError as error:
        raise ValueError(
            f"{said}: choose from {', '.join(CONFIGS)}, or name a function of your own as module:function ({error})"
        ) from error
    if not callable(function):
        raise ValueError(f"{said}: it is of type {type(function).__name__}, no function")
    config = function()
    if not isinstance(config, TrainConfig):
        raise ValueError(f"{said}: it returned {type(config).__name__}, not a TrainConfig: change `small()`")
    return config
