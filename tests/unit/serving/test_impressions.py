"""What was shown goes into the log as valid events, in the background; what cannot is counted."""

import threading
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import orjson
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace import names
from headrace.clock import from_micros
from headrace.decoding import decode_payload
from headrace.events import Context, EventIn, to_record
from headrace.stores.log import LogUnavailableError
from serving import candidates as c
from serving.candidates import Candidates, Chances, Slate, Trace
from serving.committer import LogWriter
from serving.impressions import ImpressionLog, Shown, lines_of
from serving.metrics import RecommenderMetrics
from tests.conftest import wait_until

T = 1_767_225_600_000_000


def slate(
    item_ids: list[str],
    sources: list[str],
    scores: list[float],
    version: str | None = "v3",
    unknown: tuple[str, ...] = (),
) -> Slate:
    bits = np.array([c.BIT[source] for source in sources], np.int64)
    items = Candidates(np.arange(len(item_ids)), bits, np.array(scores, np.float64))
    return Slate(item_ids, items, T, 7, version, Trace(100), unknown)


SLATE = slate(["i1", "i2"], [c.TWO_TOWER, c.NEW], [0.5, 0.25])


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
            self.gate.wait(20)
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


def records_of(each: Shown) -> list[dict[str, Any]]:
    """What the log will say of a slate."""
    return [orjson.loads(line) for line in lines_of(each).split(b"\n") if line]


def test_an_impression_says_what_was_shown_where_by_which_model_and_as_of_when() -> None:
    assert records_of(shown(context=Context(device="phone")))[1] == {
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


def test_an_explored_impression_says_with_which_chance_it_was_shown_and_one_behind_it_that_it_was_sure() -> None:
    chances = Chances(np.array([0.96, 0.004]), np.array([0.2, 1e-7]), np.array([True, False]), is_drawn=True)
    answered = slate(["i1", "i2", "i3"], [c.TWO_TOWER, c.NEW, c.POPULAR], [0.5, 0.25, 7.0], unknown=("x",))
    records = records_of(shown(replace(answered, chances=chances)))
    assert [(record["propensity"], record.get("properties")) for record in records] == [
        (0.96, '{"greedy":true,"drawn":0.2}'),
        (0.004, '{"greedy":false,"drawn":1e-7}'),
        (1.0, None),
        (1.0, None),
    ]


def test_of_more_places_that_were_explored_than_are_shown_the_first_are_logged() -> None:
    chances = Chances(np.array([0.5, 0.25]), np.array([0.5, 0.25]), np.array([True, False]), is_drawn=True)
    [record] = records_of(shown(replace(slate(["i1"], [c.TWO_TOWER], [0.5]), chances=chances)))
    assert record["propensity"] == 0.5


IDS = st.text(st.characters(exclude_categories=["Cc", "Cs"]), min_size=1, max_size=128)
WHO = st.fixed_dictionaries(
    {}, optional={"user_id": IDS.filter(lambda each: not each.startswith(names.ANONYMOUS_PREFIX)), "session_id": IDS}
).flatmap(
    lambda ids: (
        st.just(ids) if "user_id" in ids else st.builds(lambda anonymous: {**ids, "anonymous_id": anonymous}, IDS)
    )
)
CONTEXTS = st.none() | st.builds(
    Context,
    **{
        name: st.none() | st.text(st.characters(exclude_categories=["Cc", "Cs"]), min_size=1, max_size=30)
        for name, each in Context.model_fields.items()
        if "str" in str(each.annotation)
    },
)
ITEMS = st.lists(
    st.tuples(IDS, st.sampled_from(c.SOURCES), st.floats(-1e6, 1e6)), max_size=4, unique_by=lambda each: each[0]
)


@settings(deadline=None)
@given(who=WHO, context=CONTEXTS, found=ITEMS, unknown=st.lists(IDS, max_size=2), version=st.none() | IDS)
def test_records_are_those_of_valid_events(
    who: dict[str, str],
    context: Context | None,
    found: list[tuple[str, str, float]],
    unknown: list[str],
    version: str | None,
) -> None:
    """What is built by hand, for speed, is what the event contract makes of the same impression."""
    answered = slate(
        [i for i, _, _ in found], [s for _, s, _ in found], [x for _, _, x in found], version, tuple(unknown)
    )
    items = [*found, *((item, "unknown", None) for item in unknown)]
    expected = [
        to_record(
            EventIn(
                event_id=f"r1:{position}",
                type="impression",
                item_id=item,
                timestamp=from_micros(T + 9),
                request_id="r1",
                position=position,
                source=source,
                score=score,
                model_version=version or "none",
                as_of=from_micros(T),
                propensity=1.0,
                context=context,
                **who,
            ),  # type: ignore[call-arg]
            T + 9,
            T + 9,
        )
        for position, (item, source, score) in enumerate(items)
    ]
    assert records_of(shown(answered, who, context)) == expected


def test_a_version_longer_than_an_event_may_have_is_cut() -> None:
    record = records_of(shown(slate(["i"], [c.POPULAR], [0.0], version="v" * 200)))[0]
    assert record["model_version"] == "v" * 128


def test_closing_writes_what_waits_and_the_log_can_decode_it() -> None:
    log = MemoryLog()
    metrics = written_by(log, shown(who={"anonymous_id": "a"}))
    table, bad = decode_payload(b"\n".join(log.payloads))
    assert bad == []
    assert table["event_id"].to_pylist() == ["r1:0", "r1:1"]
    assert table["user_key"].to_pylist() == ["anon:a", "anon:a"]
    assert metrics.impressions_logged.value == 2


def test_items_that_nobody_knows_were_shown_too() -> None:
    log = MemoryLog()
    metrics = written_by(log, shown(slate(["i1"], [c.GIVEN], [0.5], unknown=("x",))))
    table, _ = decode_payload(log.payloads[0])
    assert table["item_id"].to_pylist() == ["i1", "x"]
    assert table["score"].to_pylist() == [0.5, None]
    assert metrics.impressions_logged.value == 2


def test_an_empty_slate_writes_nothing() -> None:
    log = MemoryLog()
    assert written_by(log, shown(slate([], [], []))).impressions_logged.value == 0
    assert log.payloads == []


def test_impressions_that_the_log_does_not_take_are_dropped_and_counted() -> None:
    log = MemoryLog()
    log.error = LogUnavailableError("down")
    assert dropped(written_by(log, shown())) == {"log_unavailable": 2}


def test_a_fault_of_ours_is_counted_and_what_comes_after_it_is_written() -> None:
    log, metrics = MemoryLog(), RecommenderMetrics()
    log.error = AssertionError("a fault of ours")
    impressions = ImpressionLog(LogWriter(lambda: log), metrics)
    impressions.add(shown())
    wait_until(lambda: dropped(metrics) == {"failed": 2})
    log.error = None
    impressions.add(shown())
    impressions.close()
    assert metrics.impressions_logged.value == 2


def test_a_full_queue_drops_the_slate_and_no_request_waits() -> None:
    log, metrics = MemoryLog(), RecommenderMetrics()
    log.gate = threading.Event()
    impressions = ImpressionLog(LogWriter(lambda: log), metrics)
    begun = time.monotonic()
    for _ in range(2_502):  # 2,000 wait, at most 500 are in the hand of the thread
        impressions.add(shown())
    assert time.monotonic() - begun < 10
    assert dropped(metrics)["queue_full"] >= 4
    log.gate.set()
    impressions.close(timeout_s=60)
    assert dropped(metrics)["queue_full"] + metrics.impressions_logged.value == 2 * 2_502


def test_what_still_waits_when_the_time_for_closing_is_over_is_counted() -> None:
    log, metrics = MemoryLog(), RecommenderMetrics()
    log.gate = threading.Event()
    impressions = ImpressionLog(LogWriter(lambda: log), metrics)
    for _ in range(550):  # at most 500 are in the hand of the thread
        impressions.add(shown())
    impressions.close(timeout_s=0.05)
    log.gate.set()
    impressions._thread.join(20)
    assert not impressions._thread.is_alive()
    assert dropped(metrics)["closed"] >= 100
    assert dropped(metrics)["closed"] + metrics.impressions_logged.value == 1_100
