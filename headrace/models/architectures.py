"""Architectures by name: those of this package, and any class that is written `module:Class`. Imported when asked for."""

import inspect
from collections.abc import Mapping
from importlib import import_module
from typing import Any, Final, TypeVar

from headrace.models.base import RankingModel, Towers
from headrace.models.config import CAUSAL, CROSSES, ModelConfig
from headrace.models.preprocessing import Preprocessing

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
    module_name, colon, class_name = known.get(name, name).partition(":")
    said = f"no {part} {name!r}"
    if not colon or not module_name or not class_name:
        raise ArchitectureError(f"{said}: choose from {', '.join(known)}, or name a class as module:Class")
    try:
        module = import_module(module_name)
    except ImportError as error:
        raise ArchitectureError(
            f"{said}: module {module_name} cannot be imported ({error}): put it on the Python path, where training and serving run"
        ) from error
    found: Any = getattr(module, class_name, None)
    if not (isinstance(found, type) and issubclass(found, base)):
        what = "has no such class" if found is None else f"has it, but not as a subclass of {base.__name__}"
        raise ArchitectureError(f"{said}: module {module_name} {what} (headrace/models/base.py)")
    if inspect.isabstract(found):
        missing = ", ".join(sorted(found.__abstractmethods__))
        raise ArchitectureError(f"{said}: the class lacks {missing} (headrace/models/base.py)")
    return found
