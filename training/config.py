"""What a training run does, as one typed value. `size` is the dial; everything that grows with it is derived here."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from headrace.models.config import CAUSAL, CROSSES, ModelConfig
from headrace.named import NamedError, named


@dataclass(frozen=True)
class TrainConfig:
    """All numbers of a run. Build one with `small()`, `default()` or `large()`, change it with `changed`."""

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
    max_positives: int = 20_000
    max_lists: int = 5_000
    # Requests: of the validation, that the towers are judged by; of the test, that are drawn, and those of them that the ranker
    # answers too (0 for all); and resamples for intervals.
    max_validation: int = 2_000
    max_test: int = 2_000
    max_ranked_requests: int = 400
    resamples: int = 1_000
    # What retrieval offers the ranker, and how much of it a list to learn from has.
    candidates: int = 200
    list_length: int = 32
    # Models.
    length: int = 30
    width: int = 32
    heads: int = 2
    layers: int = 1
    cross_width: int = 128
    dropout: float = 0.1
    # Fitting: at most so many epochs, ended after `patience` of them without a better one.
    batch: int = 128
    tower_epochs: int = 30
    list_batch: int = 16
    ranker_epochs: int = 10
    patience: int = 4
    learning_rate: float = 1e-3
    weight_decay: float = 1e-2
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
        for name in (
            "size",
            "threads",
            "max_positives",
            "max_lists",
            "candidates",
            "length",
            "cross_width",
            "batch",
            "tower_epochs",
            "list_batch",
            "ranker_epochs",
            "patience",
            "drawn_items",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("max_validation", "max_test", "max_ranked_requests", "resamples"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be 0 or more")
        if self.list_length < 2:
            raise ValueError(f"list_length is {self.list_length}; there is an order from 2 candidates on")
        if not 0 < self.test_share < 1:
            raise ValueError(f"test_share is {self.test_share}; it must lie between 0 and 1")
        if not 0 <= self.validation_share < 1:
            raise ValueError(f"validation_share is {self.validation_share}; it must lie between 0 and 1")
        if not 0 <= self.averaging < 1:
            raise ValueError(f"averaging is {self.averaging}; it must lie between 0 and 1, 1 left out: 0 keeps no mean")
        if self.days <= 0:
            raise ValueError(f"days is {self.days}; it must be above 0")

    def changed(self, **changes: Any) -> "TrainConfig":
        """A copy with some values changed. Raises ValueError for an unknown key."""
        known = {field.name for field in fields(self)}
        unknown = sorted(set(changes) - known)
        if unknown:
            raise ValueError(f"unknown training setting {', '.join(unknown)}; known are {', '.join(sorted(known))}")
        return replace(self, **changes)

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
    """Rows, width and history grow with `size`; a pass over the rows costs about size cubed."""
    return TrainConfig(
        name=name,
        size=size,
        max_positives=20_000 * size**2,
        max_lists=5_000 * size**2,
        max_ranked_requests=400 * size,
        length=min(10 + 20 * size, 50),
        width=32 * size,
        cross_width=64 + 96 * size,
        batch=256 * size**2,
        layers=min(size, 3),
        dropout=min(0.25 * size, 0.5),
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


def by_name(name: str) -> TrainConfig:
    """One of CONFIGS, or what a function of the user's returns: `module:function`, the module on the Python path. Raises ValueError."""
    if name in CONFIGS:
        return CONFIGS[name]()
    said = f"no training config {name!r}"
    try:
        function = named(name)
    except NamedError as error:
        raise ValueError(
            f"{said}: {error}; choose from {', '.join(CONFIGS)}, or name a function as module:function"
        ) from error
    if not callable(function):
        raise ValueError(f"{said}: it is of type {type(function).__name__}, no function")
    config = function()
    if not isinstance(config, TrainConfig):
        raise ValueError(f"{said}: it returned {type(config).__name__}, not a TrainConfig: change `small()`")
    return config


def parse_change(text: str) -> tuple[str, Any]:
    """`key=value` from a command line, the value read as the type that the key has. Raises ValueError."""
    key, equals, value = text.partition("=")
    kinds = {field.name: field.type for field in fields(TrainConfig)}
    if not equals or key not in kinds:
        raise ValueError(f"cannot read {text!r}: write key=value with a key of {', '.join(sorted(kinds))}")
    read = {int: int, float: float, str: str}[kinds[key]]  # type: ignore[index]
    return key, read(value)
