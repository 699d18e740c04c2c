"""Events on their way out: completed, checked by the contract, written as JSON."""

from datetime import datetime
from typing import Any

import orjson
import pytest

from headrace.client import RefusedError
from headrace.client.event import ContextFields, EventFields, encode_event, new_event_id
from headrace.events import Context, EventIn

NOW = 1_767_225_600_250_000  # 2026-01-01T00:00:00.25Z
VIEW = {"event_id": "e", "type": "view", "user_id": "u", "item_id": "i", "timestamp": "2026-01-01T00:00:00+00:00"}


def encoded(event: Any, max_bytes: int = 1_000) -> dict[str, Any]:
    return orjson.loads(encode_event(event, lambda: NOW, max_bytes)[1])


def test_an_event_goes_out_as_it_was_given():
    event = VIEW | {"properties": {"colour": None, "sizes": [1]}, "context": {"page": "/"}, "price": 2.5}
    assert encode_event(event, lambda: NOW, 1_000)[0] == "e"
    assert encoded(event) == event | {"schema_version": 1}
    assert encoded(EventIn.model_validate(event)) == event | {"schema_version": 1}


def test_id_and_time_are_added_where_they_are_missing():
    sent = encoded({"type": "view", "user_id": "u", "item_id": "i"})
    assert datetime.fromisoformat(sent["timestamp"]) == datetime.fromisoformat("2026-01-01T00:00:00.25+00:00")
    assert sent["event_id"][:15] == "019b76da-a8fa-7"  # 0x019b76daa8fa ms, version 7


def test_an_id_holds_the_time_and_74_random_bits():
    assert new_event_id(lambda: NOW, lambda count: b"\0" * count) == "019b76da-a8fa-7000-8000-000000000000"
    assert new_event_id(lambda: NOW, lambda count: b"\xff" * count) == "019b76da-a8fa-7fff-bfff-ffffffffffff"
    assert len({new_event_id(lambda: NOW) for _ in range(1_000)}) == 1_000


@pytest.mark.parametrize(
    ("changes", "field", "reason"),
    [
        ({"item_id": None}, "event", "item_id is needed for type view"),
        ({"type": "stare"}, "type", "Input should be 'impression'"),
        ({"timestamp": "2026-01-01T00:00:00"}, "timestamp", "timezone"),
        ({"timestamp": datetime(2026, 1, 1)}, "timestamp", "timezone"),  # noqa: DTZ001
        ({"colour": "red"}, "colour", "Extra inputs"),
        ({"price": "5"}, "price", "valid number"),
        ({"properties": {"x": object()}}, "event", "properties cannot be written as JSON"),
        ({"query": "\ud800"}, "query", "valid"),
        ({"query": "x" * 950}, "event", "at most 1000 (ClientConfig.max_event_bytes)"),
    ],
)
def test_a_bad_event_is_refused_at_once_with_field_and_reason(changes: dict[str, Any], field: str, reason: str):
    with pytest.raises(RefusedError) as caught:
        encoded(VIEW | changes)
    assert caught.value.field == field
    assert reason in caught.value.reason


def test_the_arguments_of_track_are_the_fields_of_the_contract():
    assert {"type", *EventFields.__annotations__} == set(EventIn.model_fields)
    assert set(ContextFields.__annotations__) == set(Context.model_fields)
