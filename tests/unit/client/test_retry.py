import pytest

from headrace.client import Backoff
from headrace.client.retry import retry_after_s

NOW = 1_767_225_600_000_000  # Thu, 01 Jan 2026 00:00:00 GMT


def test_waits_double_up_to_the_longest_and_chance_takes_up_to_half():
    backoff = Backoff(first_s=1, most_s=10)
    assert [backoff.delay_s(failures, chance=lambda: 0) for failures in range(1, 7)] == [1, 2, 4, 8, 10, 10]
    assert [backoff.delay_s(failures, chance=lambda: 1) for failures in range(1, 7)] == [0.5, 1, 2, 4, 5, 5]
    assert backoff.delay_s(10_000, chance=lambda: 0) == 10


def test_what_the_server_asks_for_is_waited_for_up_to_a_bound():
    backoff = Backoff(first_s=1, most_s=10, most_asked_s=60)
    assert backoff.delay_s(1, 30, chance=lambda: 0) == 30
    assert backoff.delay_s(1, 0.1, chance=lambda: 0) == 1
    assert backoff.delay_s(1, 1e9, chance=lambda: 0) == 60


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (None, None),
        ("30", 30),
        (" 0 ", 0),
        ("Thu, 01 Jan 2026 00:00:30 GMT", 30),
        ("Wed, 31 Dec 2025 00:00:00 GMT", 0),
        ("Thu, 01 Jan 2026 00:00:30", None),
        ("soon", None),
        ("-1", None),
        ("9" * 400, None),
    ],
)
def test_retry_after_is_seconds_or_a_date(header: str | None, seconds: float | None):
    assert retry_after_s(header, lambda: NOW) == seconds


def test_a_backoff_that_never_waits_is_refused():
    with pytest.raises(ValueError, match="0 < first_s <= most_s"):
        Backoff(first_s=0)
