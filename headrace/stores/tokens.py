"""Tokens of acknowledgements: an opaque text that says up to where in the log something is, so that a request can ask to see it."""

import re
from collections.abc import Mapping
from typing import Final

EVENTS: Final = "e"
ITEMS: Final = "i"
KINDS: Final = (EVENTS, ITEMS)
MAX_TOKEN: Final = 40_000
"""Characters: of a request that went to every one of 1,024 partitions."""
_PLACE: Final = re.compile(r"(\d{1,5})-(\d{1,19})", re.ASCII)
_REMEDY: Final = "send the token of an acknowledgement as it came"


def make_token(kind: str, positions: Mapping[int, int]) -> str:
    """`e.2-1831234567890.3-17`: the kind, then each log partition with the position in it."""
    return ".".join([kind, *(f"{partition}-{position}" for partition, position in sorted(positions.items()))])


def read_token(text: str) -> tuple[str, dict[int, int]]:
    """Kind and positions by log partition. Raises ValueError for what is no token."""
    if len(text) > MAX_TOKEN:
        raise ValueError(f"a token of {len(text)} characters, at most {MAX_TOKEN}: {_REMEDY}")
    kind, *parts = text.split(".")
    places = [_PLACE.fullmatch(part) for part in parts]
    found = {int(place[1]): int(place[2]) for place in places if place is not None}
    if kind not in KINDS or not parts or len(found) < len(parts):
        raise ValueError(f"{text[:60]!r} is no token: {_REMEDY}")
    return kind, found
