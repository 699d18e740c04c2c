"""What the outcomes of sending mean for the events that were sent."""

from typing import Any

import orjson
import pytest

from headrace.client import Backoff, ClientConfig, RefusedError, RefusedEvent, UnavailableError
from headrace.client.answers import EventsAnswer
from headrace.client.outbox import Outbox, Stats
from headrace.client.spool import MemorySpool


def outbox(*users: str, on_refused: Any = None, **options: Any) -> Outbox:
    box = Outbox(MemorySpool(10_000), ClientConfig(**options), on_refused)
    for number, user in enumerate(users):
        box.spool.append(orjson.dumps({"event_id": str(number), "user_id": user}))
    return box


def answer(accepted: int, *refused: int, token: str | None = None) -> EventsAnswer:
    listed = [{"index": index, "event_id": None, "field": "price", "reason": "bad"} for index in refused]
    return EventsAnswer.model_validate({"accepted": accepted, "refused": listed, "token": token})


def ids(box: Outbox) -> list[str]:
    return [orjson.loads(event)["event_id"] for event in box.take().events]


def test_a_refused_event_is_told_and_does_not_block_the_others():
    told: list[RefusedEvent] = []
    box = outbox("u", "v", "w", on_refused=told.append)
    assert box.settle(box.take(), answer(2, 1)) == 0
    assert [(each.event["event_id"], each.field, each.reason) for each in told] == [("1", "price", "bad")]
    assert box.refused == tuple(told)
    assert box.stats() == Stats(waiting=0, acknowledged=2, refused=1, damaged=0)


def test_a_batch_of_bad_events_alone_is_settled_by_what_the_refusal_lists():
    box = outbox("u", "v")
    listed = [{"index": index, "field": "price", "reason": "bad"} for index in range(2)]
    assert box.settle(box.take(), RefusedError("x", "", "no event was accepted", tuple(listed))) == 0
    assert box.stats() == Stats(waiting=0, acknowledged=0, refused=2, damaged=0)


def test_a_batch_that_is_too_large_is_halved_until_the_event_is_found():
    box = outbox("u", "v", "w", "x")
    too_large = RefusedError("POST /v1/events answered 413", "", "the body exceeds 10 bytes")
    assert ids(box) == ["0", "1", "2", "3"]
    assert box.settle(box.take(), too_large) == 0
    assert ids(box) == ["0", "1"]
    assert box.settle(box.take(), too_large) == 0
    assert ids(box) == ["0"]
    assert box.settle(box.take(), too_large) == 0
    assert [(each.event["event_id"], each.field) for each in box.refused] == [("0", "event")]
    assert ids(box) == ["1", "2"]  # twice as many after each that went in
    box.settle(box.take(), answer(2))
    assert ids(box) == ["3"]


def test_after_a_failure_the_same_events_wait_longer_and_longer():
    box = outbox("u", backoff=Backoff(first_s=1, most_s=4))
    down = UnavailableError("down")
    pauses = [box.settle(box.take(), down) for _ in range(4)]
    assert all(most / 2 <= pause <= most for pause, most in zip(pauses, [1, 2, 4, 4], strict=True))
    assert box.settle(box.take(), UnavailableError("full", 30.0)) == 30
    assert ids(box) == ["0"]
    assert box.trouble is not None
    assert box.settle(box.take(), answer(1)) == 0
    assert box.trouble is None


def test_an_answer_that_counts_other_events_acknowledges_none():
    box = outbox("u", "v")
    assert box.settle(box.take(), answer(1)) > 0
    assert ids(box) == ["0", "1"]
    assert "2 events were sent, but 1 acknowledged and 0 refused" in str(box.trouble)


@pytest.mark.parametrize("index", [2, -1])
def test_an_answer_that_refuses_an_event_that_was_not_sent_acknowledges_none(index: int):
    told: list[RefusedEvent] = []
    box = outbox("u", "v", on_refused=told.append)
    assert box.settle(box.take(), answer(0, 0, index)) > 0
    listed = tuple({"index": each, "field": "price", "reason": "bad"} for each in (0, index))
    box.settle(box.take(), RefusedError("x", "", "no event was accepted", listed))
    assert (told, ids(box)) == ([], ["0"])  # halved, to find out which


def test_the_last_token_of_each_user_is_kept_for_as_many_users_as_were_asked_for():
    box = outbox("u", "v", "w", remembered_users=2, batch_events=1)
    for token in ("t0", "t1", "t2"):
        box.settle(box.take(), answer(1, token=token))
    assert [box.last_token(user) for user in ("u", "v", "w")] == [None, "t1", "t2"]
    box.spool.append(orjson.dumps({"event_id": "3", "user_id": "v"}))
    box.settle(box.take(), answer(0, 0, token="t3"))  # refused: not an event that anybody will see
    assert box.last_token("v") == "t1"


def test_a_callback_that_fails_does_not_block_the_others(caplog: pytest.LogCaptureFixture):
    def fail(_: RefusedEvent) -> None:
        raise RuntimeError("no")

    box = outbox("somebody", "v", on_refused=fail)
    assert box.settle(box.take(), answer(1, 0)) == 0
    assert box.stats().waiting == 0
    assert "on_refused failed" in caplog.text
    assert "somebody" not in caplog.text  # no personal data in logs
