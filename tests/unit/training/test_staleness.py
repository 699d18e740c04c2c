import pytest

from training.staleness import Lag, parse_lags


def test_lags_are_read_in_rising_order_and_fresh_is_always_among_them() -> None:
    assert parse_lags("1h, 0s,1.5m,1d") == (
        Lag("0s", 0),
        Lag("1.5m", 90_000_000),
        Lag("1h", 3_600_000_000),
        Lag("1d", 86_400_000_000),
    )
    assert [lag.text for lag in parse_lags("60s,1m")] == ["0s", "60s"]


@pytest.mark.parametrize("text", ["", "1", "-1s", "1w", "1m;2m", "soon"])
def test_a_lag_that_cannot_be_read_is_refused_with_how_to_write_it(text: str) -> None:
    with pytest.raises(ValueError, match="write lags like 0s,1m,1h,1d"):
        parse_lags(text)
