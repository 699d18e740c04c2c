"""What the API answers, as frozen values. Fields that a newer server adds are left out."""

from datetime import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict


class Answer(BaseModel):
    """Base of all answers."""

    model_config = ConfigDict(frozen=True, extra="ignore", protected_namespaces=())


class SlateItem(Answer):
    """An item, the score that placed it, the source that found it, and its place from 0."""

    item_id: str
    score: float | None
    source: str
    position: int


class Slate(Answer):
    """Items best first, or in an order that was drawn (`explored`). `degraded` names what was missing, as `stage: reason`; ages and times
    in milliseconds.
    """

    request_id: str
    items: tuple[SlateItem, ...]
    model_version: str | None = None
    features_age_ms: float | None = None
    as_of: datetime
    degraded: tuple[str, ...] = ()
    explored: bool = False
    took_ms: float
    explain: dict[str, Any] | None = None


class Profile(Answer):
    """What the store knows of a user as of `as_of`: `features[view][feature]`. Ages in milliseconds."""

    user_key: str
    as_of: datetime
    known: bool
    complete_age_ms: float | None = None
    newest_event_age_ms: float | None = None
    features: dict[str, dict[str, Any]]


class RefusedItem(Answer):
    """An operation that was not done: which list of the request, where in it, and why."""

    list: str
    index: int
    item_id: str | None = None
    field: str
    reason: str


class ItemsAnswer(Answer):
    """Operations on the catalogue that are on disk, and those refused. `token` is for `after`."""

    accepted: int
    refused: tuple[RefusedItem, ...] = ()
    positions: dict[str, int] = {}
    token: str | None = None


class RefusedEvent(Answer):
    """An event that the server will never take, as it was sent, with the field and the reason."""

    event: dict[str, Any]
    field: str
    reason: str


class _Refusal(Answer):
    index: int
    field: str
    reason: str


class EventsAnswer(Answer):
    """Events that are on disk, and those refused. `token` is for `after`."""

    accepted: int
    refused: tuple[_Refusal, ...] = ()
    token: str | None = None
