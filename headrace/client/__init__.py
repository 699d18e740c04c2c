"""The typed client of the HTTP API (docs/client.md): `Client` for threads, `AsyncClient` for tasks."""

from headrace.client.aio import AsyncClient
from headrace.client.answers import ItemsAnswer, Profile, RefusedEvent, RefusedItem, Slate, SlateItem
from headrace.client.calls import Filter, Item, Options
from headrace.client.config import ClientConfig
from headrace.client.errors import (
    AnswerError,
    ClosedError,
    HeadraceError,
    OverloadedError,
    RefusedError,
    RetryableError,
    SpoolError,
    SpoolFullError,
    SpoolHeldError,
    TimedOutError,
    UnauthorizedError,
    UnavailableError,
    UndeliveredError,
)
from headrace.client.event import ContextFields, EventFields
from headrace.client.outbox import Stats
from headrace.client.retry import Backoff
from headrace.client.sync import Client

__all__ = [
    "AnswerError",
    "AsyncClient",
    "Backoff",
    "Client",
    "ClientConfig",
    "ClosedError",
    "ContextFields",
    "EventFields",
    "Filter",
    "HeadraceError",
    "Item",
    "ItemsAnswer",
    "Options",
    "OverloadedError",
    "Profile",
    "RefusedError",
    "RefusedEvent",
    "RefusedItem",
    "RetryableError",
    "Slate",
    "SlateItem",
    "SpoolError",
    "SpoolFullError",
    "SpoolHeldError",
    "Stats",
    "TimedOutError",
    "UnauthorizedError",
    "UnavailableError",
    "UndeliveredError",
]
