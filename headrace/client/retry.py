"""When to try again: exponential backoff with jitter, and what a server asks for in Retry-After."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from email.utils import parsedate_to_datetime

from headrace.clock import Clock, to_micros


@dataclass(frozen=True)
class Backoff:
    """Seconds between attempts: doubled each time from `first_s` to `most_s`, of which a random half is left out.

    What a server asks for (Retry-After) is waited for too, up to `most_asked_s`.
    """

    first_s: float = 0.1
    most_s: float = 10.0
    most_asked_s: float = 300.0

    def __post_init__(self) -> None:
        if not 0 < self.first_s <= self.most_s:
            raise ValueError(
                f"Backoff(first_s={self.first_s}, most_s={self.most_s}): give 0 < first_s <= most_s, in seconds"
            )

    def delay_s(
        self, failures: int, asked_s: float | None = None, chance: Callable[[], float] = random.random
    ) -> float:
        """Seconds to wait after that many failures in a row, from 1. `chance` returns 0 to 1."""
        longest = min(self.most_s, self.first_s * 2.0 ** min(failures - 1, 60))
        return max(longest * (1 - chance() / 2), min(asked_s or 0.0, self.most_asked_s))


def retry_after_s(header: str | None, clock: Clock) -> float | None:
    """Seconds that a Retry-After header asks for, given as seconds or as an HTTP date; None where it says nothing."""
    if header is None:
        return None
    text = header.strip()
    if text.isdecimal() and len(text) < 10:
        return float(text)
    try:
        return max(0.0, (to_micros(parsedate_to_datetime(text)) - clock()) / 1_000_000)
    except ValueError:
        return None
