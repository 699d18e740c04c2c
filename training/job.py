"""What every training command shares: an error that is the user's to mend is one line, not a traceback."""

import sys
from collections.abc import Callable

from headrace.models.bundle import BundleError
from headrace.room import no_room
from headrace.stores.models import RegistryError
from training.fit import TrainError


def run(job: Callable[[], None]) -> int:
    """The exit code of a command: 0, or 1 with the reason on standard error."""
    try:
        job()
    except (ValueError, RegistryError, BundleError, TrainError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        if not no_room(error):
            raise
        print(f"error: {error}: make room; a training goes on with `headrace train --resume`", file=sys.stderr)
        return 1
    return 0
