"""The event contract: what is let in, what is refused and why, and the way through the log and back."""

from typing import Any, get_args

import pyarrow as pa
import pytest

from headrace import names
from headrace.clock import from_micros
from headrace.decoding import decode_payload
from headrace.events import (
    EVENT_SCHEMA,
    ClockError,
    EventIn,
    EventType,
    Refusal,
    encode_records,
    parse,
    stamp,
    to_record,
)

NOON_US = 1_760_011_200_000_000
NOON = from_micros(NOON_US).isoformat()
VIEW: dict[str, Any] = {"event_id": "e1", "type": "view", "user_id": "u1", "item_id": "i1", "timestamp": NOON}


def test_the_contract_takes_the_event_types_that_the_engines_know() -> None:
    assert get_args(EventType) == names.EVENT_TYPES


def parsed(raw: dict[str, Any]) -> EventIn:
    event = parse(raw)
    assert isinstance(event, EventIn), event
    return event


def refused(raw: object) -> tuple[str, str]:
    answer = parse(raw, 3)
    assert isinstance(answer, Refusal)
    assert answer.index == 3
    return answer.field, answer.reason


def test_a_view_is_let_in() -> None:
    assert parsed(VIEW).item_id == "i1"


@pytest.mark.parametrize(
    ("change", "field", "reason"),
    [
        ({"user_id": 5}, "user_id", "valid string"),
        ({"colour": "red"}, "colour", "Extra inputs"),
        ({"type": "teleport"}, "type", "Input should be"),
        ({"timestamp": "2026-01-01T00:00:00"}, "timestamp", "timezone"),
        ({"timestamp": 5}, "timestamp", "ISO 8601"),
        ({"timestamp": "1700000000"}, "timestamp", "ISO 8601"),
        ({"timestamp": "0001-01-01T00:00:00+14:00"}, "timestamp", "before 1970"),
        ({"position": 2**40}, "position", "less than or equal"),
        ({"item_id": None}, "event", "item_id is needed"),
        ({"user_id": None}, "event", "one of user_id and anonymous_id"),
        ({"user_id": "anon:x"}, "event", "must not begin with"),
        ({"user_id": "a\nb"}, "user_id", "pattern"),
        ({"event_id": ""}, "event_id", "at least 1"),
        ({"price": float("nan")}, "price", "finite"),
        ({"price": -1.0}, "price", "greater than or equal to 0"),
        ({"quantity": 0}, "quantity", "greater than or equal to 1"),
        ({"score": 0.5}, "event", "belongs to type impression"),
        ({"type": "rate"}, "event", "value is needed"),
        ({"type": "search", "item_id": None}, "event", "query is needed"),
        ({"type": "identify", "item_id": None}, "event", "identify links two ids"),
        ({"properties": {"x": "y" * 9_000}}, "event", "8192 bytes"),
        ({"context": {"device": "phone", "shoe": 44}}, "context.shoe", "Extra inputs"),
        ({"schema_version": 2}, "schema_version", "less than or equal to 1"),
    ],
)
def test_what_breaks_the_contract_is_refused_by_field_and_reason(
    change: dict[str, Any], field: str, reason: str
) -> None:
    raw = {key: value for key, value in (VIEW | change).items() if value is not None}
    found = refused(raw)
    assert found[0] == field
    assert reason in found[1]


def test_what_is_no_object_is_refused() -> None:
    assert refused([])[0] == "event"


def test_a_timestamp_a_little_ahead_becomes_the_arrival_and_is_kept() -> None:
    record = stamp(parsed(VIEW), NOON_US - 1_000_000, clock_ahead_us=2_000_000)
    assert (record["timestamp"], record["client_timestamp"], record["received_at"]) == (
        NOON_US - 1_000_000,
        NOON_US,
        NOON_US - 1_000_000,
    )


def test_a_timestamp_far_ahead_is_refused_with_the_distance() -> None:
    with pytest.raises(ClockError, match=r"3\.0 s ahead"):
        stamp(parsed(VIEW), NOON_US - 3_000_000, clock_ahead_us=2_000_000)


def test_a_record_comes_back_from_the_log_as_it_went_in() -> None:
    raw = VIEW | {"context": {"device": "phone"}, "properties": {"a": [1, None]}, "price": 2.5, "quantity": 2}
    table, bad = decode_payload(encode_records([to_record(parsed(raw), NOON_US, NOON_US)]))
    row = table.to_pylist()[0]
    assert bad == []
    assert (row["event_id"], row["user_key"], row["context_device"], row["properties"]) == (
        "e1",
        "u1",
        "phone",
        '{"a":[1,null]}',
    )
    assert (row["timestamp"], row["price"], row["quantity"], row["session_id"]) == (from_micros(NOON_US), 2.5, 2, None)


def test_an_anonymous_event_is_keyed_by_its_anonymous_id() -> None:
    raw = {key: value for key, value in VIEW.items() if key != "user_id"} | {"anonymous_id": "a1"}
    assert to_record(parsed(raw), NOON_US, NOON_US)["user_key"] == "anon:a1"


def test_a_record_with_few_columns_decodes_with_nulls() -> None:
    line = b'{"event_id":"old","type":"scroll","user_key":"u","timestamp":1,"received_at":1}'
    table, bad = decode_payload(line)
    assert bad == []
    assert table.to_pylist()[0]["schema_version"] == 1
    assert set(table.column_names) <= set(EVENT_SCHEMA.names)


@pytest.mark.parametrize(
    "line",
    [
        b"{cut",
        b"[1]",
        b'{"event_id":"x","type":"view","user_key":"u","timestamp":"soon","received_at":1}',
        b'{"event_id":"x","type":"view","user_key":"u","timestamp":1,"received_at":1}',
        b'{"event_id":"x","type":"teleport","user_key":"u","timestamp":1,"received_at":1}',
        b'{"event_id":"' + b"x" * 70_000 + b'","type":"scroll","user_key":"u","timestamp":1,"received_at":1}',
        b"",
        b"\xff\xfe",
    ],
)
def test_a_line_that_is_no_event_is_set_aside_and_its_neighbours_are_kept(line: bytes) -> None:
    good = encode_records([to_record(parsed(VIEW), NOON_US, NOON_US)])
    table, bad = decode_payload(good + b"\n" + line + b"\n" + good)
    assert table["log_index"].to_pylist() == [0, 2]
    assert [(record.index, record.raw) for record in bad] == [(1, line)]
    assert table.schema.field("timestamp").type == pa.timestamp("us", tz="UTC")
