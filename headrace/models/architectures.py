"""Architectures by name: those of this package, and any class that is written `module:Class`. Imported when asked for."""

import inspect
from collections.abc import Mapping
from typing import Any, Final, TypeVar

from headrace.models.base import RankingModel, Towers
from headrace.models.config import CAUSAL, CROSSES, ModelConfig
from headrace.models.preprocessing import Preprocessing
from headrace.named import NamedError, named

TOWERS: Final = {CAUSAL: "headrace.models.towers:TwoTowers"}
RANKERS: Final = {CROSSES: "headrace.models.ranker:Ranker"}

Kind = TypeVar("Kind", Towers, RankingModel)


class ArchitectureError(ValueError):
    """A name that no architecture has; the message says which there are, and how another is named."""


def towers_of(preprocessing: Preprocessing, config: ModelConfig) -> Towers:
    """Untrained. Raises ArchitectureError."""
    return towers_class(config.towers)(preprocessing, config)


def ranker_of(preprocessing: Preprocessing, config: ModelConfig) -> RankingModel:
    """Untrained. Raises ArchitectureError."""
    return ranker_class(config.ranker)(preprocessing, config)


def check_names(towers: str, ranker: str) -> None:
    """Raises ArchitectureError where either is no name of an architecture: before a run reads data, and not after."""
    towers_class(towers)
    ranker_class(ranker)


def towers_class(name: str) -> type[Towers]:
    return _found("towers", name, TOWERS, Towers)  # type: ignore[type-abstract]


def ranker_class(name: str) -> type[RankingModel]:
    return _found("ranker", name, RANKERS, RankingModel)  # type: ignore[type-abstract]


def _found(part: str, name: str, known: Mapping[str, str], base: type[Kind]) -> type[Kind]:
    said = f"no {part} {name!r}"
    try:
        found: Any = named(known.get(name, name))
    except NamedError as error:
        raise ArchitectureError(
            f"{said}: {error}; choose from {', '.join(known)}, or name a class as module:Class"
        ) from error
    if not (isinstance(found, type) and issubclass(found, base)):
        raise ArchitectureError(f"{said}: it is no subclass of {base.__name__} (headrace/models/base.py)")
    if inspect.isabstract(found):
        missing = ", ".join(sorted(found.__abstractmethods__))
        raise ArchitectureError(f"{said}: the class lacks {missing} (headrace/models/base.py)")
    return found
