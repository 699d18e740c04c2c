"""Spans of time as they are written on a command line: 30s, 15m, 1h, 1d."""

import re

from headrace.settings import DAY_US, HOUR_US, MICROS

_UNITS_US = {"s": MICROS, "m": 60 * MICROS, "h": HOUR_US, "d": DAY_US}
_SPAN = re.compile(r"(\d+(?:\.\d+)?)([smhd])")


def span_us(text: str) -> int | None:
    """Microseconds; None for what is no span."""
    match = _SPAN.fullmatch(text.strip())
    return None if match is None else round(float(match[1]) * _UNITS_US[match[2]])
