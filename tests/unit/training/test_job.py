"""What is the user's to mend is one line on standard error, and what is not is a traceback."""

import errno

import numpy as np
import pytest

from training.config import small
from training.fit import TrainError
from training.job import run


def failing(error: Exception) -> int:
    def job() -> None:
        raise error

    return run(job)


def test_a_training_that_cannot_go_on_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert failing(TrainError("the loss of the towers is nan in epoch 1")) == 1
    assert capsys.readouterr().err == "error: the loss of the towers is nan in epoch 1\n"


def test_a_full_disk_is_one_line_with_the_remedy(capsys: pytest.CaptureFixture[str]) -> None:
    assert failing(OSError(errno.ENOSPC, "No space left on device", "rows.npy")) == 1
    assert capsys.readouterr().err == (
        "error: [Errno 28] No space left on device: 'rows.npy': make room; a training goes on with `headrace train --resume`\n"
    )


def test_another_fault_of_the_system_keeps_its_traceback() -> None:
    with pytest.raises(PermissionError):
        failing(PermissionError(errno.EACCES, "Permission denied"))


def test_a_value_that_our_code_refuses_is_one_line_and_one_that_a_library_refuses_a_traceback(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(lambda: small().changed(width=7)) == 1
    assert capsys.readouterr().err == "error: width is 7; it must be a multiple of heads, which is 2\n"
    with pytest.raises(ValueError, match="could not be broadcast"):
        run(lambda: np.zeros(2) + np.zeros(3))
