from collections.abc import Mapping

from headrace.events import Context, decode_payload
from headrace.stores.log import LogUnavailableError
from serving.candidates import Candidate, Slate, Trace
from serving.committer import LogWriter
from serving.impressions import ImpressionLog, impressions_of
from serving.metrics import RecommenderMetrics

T = 1_767_225_600_000_000
SLATE = Slate([Candidate("i1", "two_tower", 0.5), Candidate("i2", "new", 0.25)], T, 7, "v3", Trace(100))


class MemoryLog:
    partitions = 1

    def __init__(self) -> None:
        self.payloads: list[bytes] = []
        self.down = False

    def append(self, payloads: Mapping[int, bytes], counts: Mapping[int, int]) -> dict[int, int]:
        if self.down:
            raise LogUnavailableError("down")
        self.payloads.append(payloads[0])
        return {0: len(self.payloads)}


def test_an_impression_says_what_was_shown_where_by_which_model_and_as_of_when():
    records = impressions_of(SLATE, "r1", {"user_id": "u"}, Context(device="phone"), T + 9)
    assert records[1] == {
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
    log, metrics = MemoryLog(), RecommenderMetrics()
    impressions = ImpressionLog(LogWriter(lambda: log), metrics)
    impressions.add(impressions_of(SLATE, "r1", {"anonymous_id": "a"}, None, T))
    impressions.close()
    table, bad = decode_payload(b"\n".join(log.payloads))
    assert bad == []
    assert table["event_id"].to_pylist() == ["r1:0", "r1:1"]
    assert table["user_key"].to_pylist() == ["anon:a", "anon:a"]
    assert metrics.impressions_logged._value.get() == 2


def test_impressions_that_the_log_does_not_take_are_dropped_and_counted():
    log, metrics = MemoryLog(), RecommenderMetrics()
    log.down = True
    impressions = ImpressionLog(LogWriter(lambda: log), metrics)
    impressions.add(impressions_of(SLATE, "r1", {"user_id": "u"}, None, T))
    impressions.close()
    assert metrics.impressions_dropped.labels("log_unavailable")._value.get() == 2
    assert not impressions._thread.is_alive()
