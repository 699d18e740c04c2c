import numpy as np
import pytest

from training.learn_ranker import platt


def test_scaling_finds_the_line_that_the_labels_were_drawn_by() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=200_000)
    labels = (rng.random(200_000) < 1 / (1 + np.exp(-(0.5 * logits - 2)))).astype(float)
    slope, shift = platt(logits, labels)
    assert slope == pytest.approx(0.5, abs=0.03)
    assert shift == pytest.approx(-2, abs=0.03)


@pytest.mark.parametrize("label", [0.0, 1.0])
def test_labels_that_are_all_alike_leave_finite_numbers_and_the_order(label: float) -> None:
    slope, shift = platt(np.array([-1.0, 0.0, 2.0]), np.full(3, label))
    assert np.isfinite([slope, shift]).all()
    assert slope > 0


def test_logits_that_say_the_contrary_do_not_turn_the_order_around() -> None:
    slope, _ = platt(np.array([-1.0, -2.0, 1.0, 2.0]), np.array([1.0, 1.0, 0.0, 0.0]))
    assert slope == 0.05


def test_no_label_at_all_changes_nothing() -> None:
    assert platt(np.zeros(0), np.zeros(0)) == (1.0, 0.0)
