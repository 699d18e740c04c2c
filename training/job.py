"""What every training command shares: an error that is the user's to mend is one line, not a traceback."""

import sys
from collections.abc import Callable
from typing import Final

from headrace.models.bundle import BundleError
from headrace.room import no_room
from headrace.stores.models import RegistryError
from training.fit import TrainError

_OURS: Final = ("training", "headrace")


def run(job: Callable[[], None]) -> int:
    """The exit code of a command: 0, or 1 with the reason on standard error."""
    try:
        job()
    except (ValueError, RegistryError, BundleError, TrainError) as error:
        if type(error) is ValueError and not _is_ours(error):
            raise
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        if not no_room(error):
            raise
        print(f"error: {error}: make room; a training goes on with `headrace train --resume`", file=sys.stderr)
        return 1
    return 0


def _is_ours(error: ValueError) -> bool:
    """Whether our code raised it, and so says what to do: of a library, or of a user's own models, it is a fault to be found."""
    where = error.__traceback__
    while where is not None and where.tb_next is not None:
        where = where.tb_next
    return where is not None and where.tb_frame.f_globals["__name__"].split(".")[0] in _OURS
