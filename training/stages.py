"""What a command is at, on standard error: work that takes a while should not look like work that hangs."""

import sys
from collections.abc import Callable

Say = Callable[[str], None]


def silent(what: str) -> None:
    """Of a command that prints JSON, and of processes beside the first."""


def aloud(what: str) -> None:
    print(f"... {what}", file=sys.stderr, flush=True)
