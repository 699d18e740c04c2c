"""Spans of time as they are written on a command line: 30s, 15m, 1h, 1d."""

import re

_UNITS_US = {"s": 1_000_000, "m": 60_000_000, "h": 3_600_000_000, "d": 86_400_000_000}
_SPAN = re.compile(r"(\d+(?:\.\d+)?)([smhd])")


def span_us(text: str) -> int | None:
    """Microseconds; None for what is no span."""
    match = _SPAN.fullmatch(text.strip())
    return None if match is None else round(float(match[1]) * _UNITS_US[match[2]])
