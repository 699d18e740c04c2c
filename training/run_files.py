"""Files of a run: written in one step, and read so that a damaged one is an error with a remedy."""

import os
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import polars as pl

# What Python, NumPy, torch, Arrow and Polars say of a file that is cut short, or of other content than it should have.
_DAMAGED: Final = (
    OSError, ValueError, LookupError, TypeError, AttributeError, RuntimeError, EOFError, pickle.UnpicklingError,
    pl.exceptions.PolarsError,
)  # fmt: skip
_MOST_SAID: Final = 160


class RunError(ValueError):
    """No run to go on with; the message says what to do."""


def write(file: Path, text: str) -> None:
    """In one step: what is there is whole."""
    draft = file.with_suffix(".draft")
    draft.write_text(text)
    with draft.open("rb") as written:
        os.fsync(written.fileno())
    draft.replace(file)


@contextmanager
def reading(file: Path, run: Path) -> Iterator[None]:
    """What a library says of a damaged file of a run becomes a RunError that names it."""
    try:
        yield
    except _DAMAGED as error:
        said = " ".join(f"{type(error).__name__}: {error}".split())[:_MOST_SAID]
        raise RunError(
            f"{file} cannot be read ({said}): mend it, or delete {run} and start anew with `headrace train`"
        ) from error
