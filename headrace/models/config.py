"""Sizes of the models, as they are kept in a bundle."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

CLICK, CART, PURCHASE = "click", "cart", "purchase"
CAUSAL, CROSSES = "causal", "crosses"
# What an outcome is worth when its probabilities are added up to a score.
OUTCOME_VALUES = {CLICK: 1.0, CART: 2.0, PURCHASE: 4.0}


@dataclass(frozen=True)
class ModelConfig:
    """Shared by towers and ranker. What depends on the data is read off `Preprocessing`."""

    width: int = 32
    heads: int = 2
    layers: int = 1
    crosses: int = 2
    cross_width: int = 128
    hidden: int = 64
    dropout: float = 0.1
    outcomes: tuple[str, ...] = (CLICK,)
    # Names of headrace/models/architectures.py, or module:Class.
    towers: str = CAUSAL
    ranker: str = CROSSES

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is no multiple of heads {self.heads}")
        unknown = set(self.outcomes) - set(OUTCOME_VALUES)
        if unknown or not self.outcomes:
            raise ValueError(f"outcomes {self.outcomes}: choose from {sorted(OUTCOME_VALUES)}")

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, state: Mapping[str, Any]) -> "ModelConfig":
        unknown = set(state) - {field.name for field in fields(cls)}
        if unknown:
            raise ValueError(f"unknown model settings {sorted(unknown)}: the bundle was written by another version")
        return cls(**{**state, "outcomes": tuple(state["outcomes"])})
