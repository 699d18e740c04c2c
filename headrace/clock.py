"""Time enters a process here and is passed on; nothing else asks the system for it. Times are aware UTC or integer microseconds."""

import time
from collections.abc import Callable
from datetime import UTC, datetime

Clock = Callable[[], int]
"""Returns Unix time in microseconds."""


def system_clock() -> int:
    return time.time_ns() // 1_000


def to_micros(moment: datetime) -> int:
    """Unix microseconds of an aware datetime, without the rounding of `datetime.timestamp()`."""
    if moment.tzinfo is None:
        raise ValueError(f"{moment.isoformat()} has no time zone; times in Headrace are aware UTC")
    delta = moment - datetime(1970, 1, 1, tzinfo=UTC)
    return (delta.days * 86_400 + delta.seconds) * 1_000_000 + delta.microseconds


def from_micros(micros: int) -> datetime:
    seconds, rest = divmod(int(micros), 1_000_000)
    return datetime.fromtimestamp(seconds, tz=UTC).replace(microsecond=rest)
