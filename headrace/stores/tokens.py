"""Tokens of acknowledgements: what a client hands back to see what it has written. `e.2-1831234567890.3-17` is kind and log positions."""

from collections.abc import Mapping
from typing import Final

EVENTS: Final = "e"
ITEMS: Final = "i"
_KINDS: Final = (EVENTS, ITEMS)


def make_token(kind: str, positions: Mapping[int, int]) -> str:
    """The token of an append of events or of items that reached these positions, by log partition."""
    return ".".join([kind, *(f"{partition}-{position}" for partition, position in sorted(positions.items()))])


def read_token(text: str) -> tuple[str, dict[int, int]]:
    """Kind and positions. Raises ValueError for what is no token."""
    kind, *pairs = text.split(".")
    positions: dict[int, int] = {}
    for pair in pairs:
        partition, dash, position = pair.partition("-")
        if not (dash and _is_number(partition) and _is_number(position)):
            raise ValueError(f"{text[:60]!r} is no token: send the `token` of an acknowledgement as it came")
        positions[int(partition)] = int(position)
    if kind not in _KINDS or not positions:
        raise ValueError(f"{text[:60]!r} is no token: send the `token` of an acknowledgement as it came")
    return kind, positions


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 19
