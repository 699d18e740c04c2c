import math

import numpy as np
import pytest

from training.config import small
from training.outcomes import measure

CONFIG = small().changed(resamples=200)


def test_an_outcome_is_measured_by_order_surprise_and_calibration() -> None:
    found = measure(
        np.array([0.75, 0.5, 0.25, 0.25]), np.array([True, True, False, False]), np.array([0, 1, 2, 3]), CONFIG
    )
    assert (found.impressions, found.positives) == (4, 2)
    assert found.auc.value == 1.0
    assert (found.auc.low, found.auc.high) == (1.0, 1.0)
    assert found.log_loss.value == pytest.approx((2 * math.log(4 / 3) + math.log(2) + math.log(4 / 3)) / 4)
    assert found.constant_log_loss == pytest.approx(math.log(2))
    assert found.calibration_error == pytest.approx((0.25 + 0.5 + 0.25 + 0.25) / 4)


def test_impressions_of_one_user_have_no_interval() -> None:
    found = measure(np.array([0.6, 0.4]), np.array([True, False]), np.array([0, 0]), CONFIG)
    assert (found.auc.low, found.log_loss.low) == (None, None)
