import pytest

from training.stages import aloud, silent


def test_a_stage_is_a_line_on_standard_error_and_nothing_where_it_is_not_asked_for(
    capsys: pytest.CaptureFixture[str],
) -> None:
    aloud("reading events")
    silent("baselines")
    assert capsys.readouterr() == ("", "... reading events\n")
