"""What an answer of `POST /v1/recommend` says of how it was made: the one place that knows how it says it."""

from collections.abc import Mapping
from typing import Any, Final

from serving.api import RecommendIn

_OPTION: Final = "explain" if "explain" in RecommendIn.model_fields else "stages"

Answer = Mapping[str, Any]


def explained(body: Mapping[str, Any]) -> dict[str, Any]:
    """The request that asks for it."""
    return {**body, _OPTION: True}


def stages_of(answer: Answer) -> dict[str, dict[str, Any]]:
    """By name in the order of the request path: `count`, `removed`, `ms`."""
    told = answer["explain"]["stages"] if "explain" in answer else answer["stages"]
    return {stage["stage"]: stage for stage in told}


def saw_event(answer: Answer) -> bool:
    """Whether it was computed with an event of a user who had none: else the user is unknown, or not read at all."""
    return not any(reason.startswith("hydrate: ") for reason in answer["degraded"])
