"""What a client is told: slates and profiles as JSON."""

from typing import Any

import numpy as np
import orjson

from headrace.clock import from_micros
from serving.candidates import Slate, Stage
from serving.state import User

UNKNOWN = "unknown"
"""In place of a source, of an item that was given and that the catalogue does not know."""


def body_of(slate: Slate, request_id: str, *, explain: bool) -> bytes:
    found = zip(slate.item_ids, slate.items.scores.tolist(), slate.sources, strict=True)
    items: list[dict[str, Any]] = [
        {"item_id": item, "score": score, "source": source, "position": position}
        for position, (item, score, source) in enumerate(found)
    ]
    items += [
        {"item_id": item, "score": None, "source": UNKNOWN, "position": position}
        for position, item in enumerate(slate.unknown, start=len(items))
    ]
    body: dict[str, Any] = {
        "request_id": request_id,
        "items": items,
        "model_version": slate.model_version,
        "features_age_ms": None if slate.features_age_us is None else slate.features_age_us / 1_000,
        "as_of": _moment(slate.as_of_us),
        "degraded": slate.trace.degraded,
        "explored": slate.is_explored,
        "took_ms": round(slate.trace.seconds * 1_000, 3),
    }
    if explain:
        body["explain"] = {
            "stages": [_stage(each, "stage") | {"removed": dict(each.removed)} for each in slate.trace.stages],
            "sources": [_stage(each, "source") for each in slate.trace.sources],
            **slate.trace.explained,
        }
    return orjson.dumps(body)


def profile_of(user_key: str, user: User, complete_us: int, newest_us: int) -> bytes:
    """What the store knows of a user, as of now, with ages."""
    views: dict[str, dict[str, Any]] = {}
    for name, column in user.features.items():
        view, _, feature = name.partition("__")
        views.setdefault(view, {})[feature] = _value(column[0])
    body = {
        "user_key": user_key,
        "as_of": _moment(user.t_us),
        "known": newest_us > 0,
        "complete_age_ms": (user.t_us - complete_us) / 1_000 if complete_us else None,
        "newest_event_age_ms": (user.t_us - newest_us) / 1_000 if newest_us else None,
        "features": views,
    }
    return orjson.dumps(body, default=str)


def _stage(stage: Stage, kind: str) -> dict[str, Any]:
    return {kind: stage.name, "count": stage.count, "ms": round(stage.seconds * 1_000, 3)}


def _moment(micros: int) -> str:
    return from_micros(micros).isoformat(timespec="microseconds")


def _value(value: Any) -> Any:
    """NumPy's scalars as Python's, NaN as null."""
    plain = value.item() if isinstance(value, np.generic) else value
    return None if isinstance(plain, float) and plain != plain else plain
