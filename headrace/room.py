"""Whether an error says that there is no room."""

import errno
from typing import Final

_FULL: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def no_room(error: OSError) -> bool:
    """A disk or a quota that is full, or a file that is as large as it may be. NumPy says of it only how much it has written."""
    return error.errno in _FULL or (error.errno is None and "requested and" in str(error))
