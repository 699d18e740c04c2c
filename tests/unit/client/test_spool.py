import pytest

from headrace.client import ClientConfig, ClosedError, SpoolFullError
from headrace.client.spool import MemorySpool


def test_in_memory_events_stay_until_they_are_acknowledged_and_the_bound_counts_what_waits():
    spool = MemorySpool(10)
    for event in (b"1234", b"5", b"67890"):
        spool.append(event)
    with pytest.raises(SpoolFullError, match=r"the spool in memory holds 10 bytes .* its bound is 10"):
        spool.append(b"x")
    assert spool.take(2, 100).events == (b"1234", b"5")
    assert spool.take(9, 4).events == spool.take(9, 1).events == (b"1234",)
    spool.ack(spool.take(2, 100))
    assert (spool.appended, spool.acknowledged) == (3, 2)
    spool.append(b"12345")
    assert spool.take(9, 100).events == (b"67890", b"12345")
    spool.close()
    with pytest.raises(ClosedError):
        spool.append(b"1")


def test_a_bound_that_holds_no_event_is_refused():
    with pytest.raises(ValueError, match="spool_bytes=1000"):
        ClientConfig(spool_bytes=1_000)
    with pytest.raises(ValueError, match="batch_events=0"):
        ClientConfig(batch_events=0)
