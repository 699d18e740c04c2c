import errno
from pathlib import Path

import numpy as np
import pytest

from headrace.room import no_room


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_a_quota_and_the_largest_file_are_want_of_room(number: int) -> None:
    assert no_room(OSError(number, "as the system says it"))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, a device without room")
def test_numpy_says_it_without_a_number() -> None:
    with Path("/dev/full").open("wb") as full, pytest.raises(OSError, match="requested and 0 written") as raised:
        np.zeros(100_000).tofile(full)
    assert raised.value.errno is None
    assert no_room(raised.value)


@pytest.mark.parametrize("error", [PermissionError(errno.EACCES, "Permission denied"), OSError("something else")])
def test_no_other_fault_is(error: OSError) -> None:
    assert not no_room(error)
