import threading
import time
from collections.abc import Mapping
from typing import Any

from headrace.decoding import decode_payload
from headrace.events import Context
from headrace.stores.log import LogUnavailableError
from serving.candidates import Candidate, Slate, Trace
from serving.committer import LogWriter
from serving.impressions import ImpressionLog, Shown, impression_of
from serving.metrics import RecommenderMetrics

T = 1_767_225_600_000_000
SLATE = Slate([Candidate("i1", "two_tower", 0.5), Candidate("i2", "new", 0.25)], T, 7, "v3", Trace(100))


class MemoryLog:
    partitions = 1

    def __init__(self) -> None:
        self.payloads: list[bytes] = []
        self.error: Exception | None = None
        self.gate: threading.Event | None = None

    def check_room(self) -> None:
        pass

    def append(self, payloads: Mapping[int, bytes], counts: Mapping[int, int]) -> dict[int, int]:
        if self.gate is not None:
            self.gate.wait(5)
        if self.error is not None:
            raise self.error
        self.payloads.append(payloads[0])
        return {0: len(self.payloads)}


def shown(slate: Slate = SLATE, who: dict[str, str] | None = None, context: Context | None = None) -> Shown:
    return Shown(slate, "r1", who or {"user_id": "u"}, context, T + 9)


def written_by(log: MemoryLog, *slates: Shown) -> RecommenderMetrics:
    """Metrics after these slates were added and the log of impressions was closed."""
    metrics = RecommenderMetrics()
    impressions = ImpressionLog(LogWriter(lambda: log), metrics)
    for each in slates:
        impressions.add(each)
    impressions.close()
    assert not impressions._thread.is_alive()
    return metrics


def dropped(metrics: RecommenderMetrics) -> dict[str, Any]:
    return {reason: counter.value for reason, counter in metrics.impressions_dropped.items() if counter.value}


def test_an_impression_says_what_was_shown_where_by_which_model_and_as_of_when():
    assert impression_of(shown(context=Context(device="phone")), 1) == {
        "event_id": "r1:1",
        "type": "impression",
        "user_id": "u",
        "user_key": "u",
        "item_id": "i2",
        "timestamp": T + 9,
        "received_at": T + 9,
        "request_id": "r1",
        "position": 1,
        "score": 0.25,
        "source": "new",
        "model_version": "v3",
        "as_of": T,
        "propensity": 1.0,
        "context_device": "phone",
        "schema_version": 1,
    }


def test_closing_writes_what_waits_and_the_log_can_decode_it():
    log = MemoryLog()
    metrics = written_by(log, shown(who={"anonymous_id": "a"}))
    table, bad = decode_payload(b"\n".join(log.payloads))
    assert bad == []
    assert table["event_id"].to_pylist() == ["r1:0", "r1:1"]
    assert table["user_key"].to_pylist() == ["anon:a", "anon:a"]
    assert metrics.impressions_logged.value == 2


def test_impressions_that_the_log_does_not_take_are_dropped_and_counted():
    log = MemoryLog()
    log.error = LogUnavailableError("down")
    assert dropped(written_by(log, shown())) == {"log_unavailable": 2}


def test_a_fault_of_ours_is_counted_and_what_comes_after_it_is_written():
    log, metrics = MemoryLog(), RecommenderMetrics()
    log.error = AssertionError("a fault of ours")
    impressions = ImpressionLog(LogWriter(lambda: log), metrics)
    impressions.add(shown())
    deadline = time.monotonic() + 5
    while dropped(metrics) != {"failed": 2}:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    log.error = None
    impressions.add(shown())
    impressions.close()
    assert metrics.impressions_logged.value == 2


def test_an_item_whose_id_no_event_may_have_is_dropped_and_counted_while_the_others_are_written():
    log = MemoryLog()
    bad = Slate([Candidate("x" * 129, "popular", 0.0), Candidate("i2", "new", 0.25)], T, 7, "v3", Trace(100))
    metrics = written_by(log, shown(bad))
    assert dropped(metrics) == {"invalid": 1}
    assert metrics.impressions_logged.value == 1


def test_what_still_waits_when_the_time_for_closing_is_over_is_counted():
    log, metrics = MemoryLog(), RecommenderMetrics()
    log.gate = threading.Event()
    impressions = ImpressionLog(LogWriter(lambda: log), metrics)
    for _ in range(150):  # at most 100 are in the hand of the thread
        impressions.add(shown())
    impressions.close(timeout_s=0.05)
    log.gate.set()
    impressions._thread.join(5)
    assert not impressions._thread.is_alive()
    assert dropped(metrics)["closed"] >= 100
    assert dropped(metrics)["closed"] + metrics.impressions_logged.value == 300
