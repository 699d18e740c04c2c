"""From the log's lines to columns: what is taken, what is set aside and why, and that no line depends on its neighbours."""

import math
from typing import Any

import orjson
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace import names
from headrace.decoding import canonical, decode, decode_payload
from headrace.events import EVENT_SCHEMA, RECORD_SCHEMA

VIEW: dict[str, Any] = {
    "event_id": "e1",
    "type": "view",
    "user_key": "u1",
    "user_id": "u1",
    "item_id": "i1",
    "timestamp": 1_760_011_200_000_001,
    "received_at": 1_760_011_200_000_002,
}
MANY = VIEW | {
    "event_id": "e2",
    "position": 3,
    "score": 0.12345678901234567,
    "price": 1e-7,
    "value": -2.5,
    "quantity": 12,
    "query": 'schuhe "größe" 44\n\t\\ \u0001 \U0001f45f',
    "properties": '{"a":[1,null]}',
    "schema_version": 1,
}


def line(**change: Any) -> bytes:
    return orjson.dumps({name: value for name, value in (VIEW | change).items() if value is not ...})


def rows(payload: bytes) -> list[dict[str, Any]]:
    table, bad = decode_payload(payload)
    assert bad == []
    times = [field.name for field in RECORD_SCHEMA if pa.types.is_timestamp(field.type)]
    found = [{**row, **{name: _micros(row[name]) for name in times}} for row in table.to_pylist()]
    return [{name: value for name, value in row.items() if value is not None} for row in found]


def _micros(moment: Any) -> int | None:
    return None if moment is None else round(moment.timestamp()) * 1_000_000 + moment.microsecond


def reason(raw: bytes) -> str:
    _, [bad] = decode_payload(raw)
    return bad.reason


def test_every_value_comes_back_as_it_was_written() -> None:
    assert rows(orjson.dumps(MANY)) == [MANY | {"log_index": 0}]


def test_a_record_with_few_columns_decodes_with_nulls() -> None:
    table, bad = decode_payload(b'{"event_id":"old","type":"scroll","user_key":"u","timestamp":1,"received_at":1}')
    assert bad == []
    assert table.to_pylist()[0]["schema_version"] == 1
    assert set(table.column_names) <= set(EVENT_SCHEMA.names)


@pytest.mark.parametrize(
    "same",
    [
        b' {"event_id" : "e1", "type": "view"} ',
        b'{"type":"view","event_id":"e1"}',
        b'{"event_id":"\\u0065\\u0031","type":"view"}',
        b'{"event_id":"e0","type":"view","event_id":"e1"}',
        b'{"event_id":"e1","type":"view","colour":"red","more":{"a":[1]}}',
        b'{"event_id":"e1","type":"view","price":null}',
    ],
)
def test_json_of_any_form_is_the_same_record(same: bytes) -> None:
    rest = line(event_id=..., type=...)
    written = same.strip()[:-1] + b"," + rest[1:]
    assert rows(written) == [VIEW | {"schema_version": 1, "log_index": 0}]


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"{cut", "unexpected"),
        (b"[1]", "not an object but list"),
        (b"", "empty document"),
        (b"\xff\xfe", "UTF-8"),
        (line(event_id=5), "event_id is '5' (int), not a string"),
        (line(event_id=...), "event_id is missing"),
        (line(user_key="x" * 600), "user_key is longer than 517 bytes"),
        (line(type="teleport"), "type 'teleport' is unknown"),
        (line(item_id=...), "item_id is needed for type view"),
        (line(timestamp="soon"), "timestamp is 'soon' (str), not Unix microseconds between 1970 and 9999"),
        (line(timestamp=10**18), "not Unix microseconds between 1970 and 9999"),
        (line(timestamp=1.5), "not Unix microseconds between 1970 and 9999"),
        (line(price="12"), "price is '12' (str), not a number below 1e308"),
        (line(price=True), "price is 'True' (bool), not a number below 1e308"),
        (line(quantity=1.5), "quantity is '1.5' (float), not a whole number"),
        (line(position=2**31), "position is '2147483648' (int), not a whole number below 2147483648"),
        (line(properties={"a": 1}), "properties is \"{'a': 1}\" (dict), not a string"),
        (line(schema_version=2), "schema_version 2 is newer than 1, which this process knows: update it"),
        (line(schema_version=0), "schema_version is '0' (int), not a version from 1"),
    ],
)
def test_what_is_no_event_is_set_aside_with_the_reason(raw: bytes, said: str) -> None:
    assert said in reason(raw)


def test_a_line_that_is_no_event_is_kept_whole_and_its_neighbours_are_taken() -> None:
    table, [bad] = decode_payload(line() + b"\n{cut off\n" + line(event_id="e2"))
    assert table["event_id"].to_pylist() == ["e1", "e2"]
    assert table["log_index"].to_pylist() == [0, 2]
    assert (bad.index, bad.raw) == (1, b"{cut off")


def test_several_payloads_are_told_apart() -> None:
    decoded = decode([line() + b"\n" + line(), b"?", line(event_id="e3")], ["event_id"])
    assert decoded.columns["event_id"].to_pylist() == ["e1", "e1", "e3"]
    assert (decoded.payload.tolist(), decoded.index.tolist()) == ([0, 0, 2], [0, 1, 0])
    assert [(number, bad.index, bad.raw) for number, bad in decoded.bad] == [(1, 0, b"?")]


def test_nothing_decodes_to_nothing() -> None:
    decoded = decode([])
    assert [len(decoded.columns[name]) for name in RECORD_SCHEMA.names] == [0] * len(RECORD_SCHEMA.names)


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**64 - 1),
    st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from([*names.EVENT_TYPES, 0, 1, -0.0, 1e22, 9007199254740993, 1e300, 5e-324, 123456789.125]),
    TEXT,
    st.lists(TEXT, max_size=2),
    st.dictionaries(TEXT, TEXT, max_size=2),
)
MUTATED = st.dictionaries(st.sampled_from(RECORD_SCHEMA.names), VALUES, max_size=6).map(lambda change: MANY | change)
LINES = st.one_of(
    MUTATED.map(orjson.dumps),
    MUTATED.map(lambda value: orjson.dumps(value, option=orjson.OPT_INDENT_2).replace(b"\n", b" ")),
    st.tuples(MUTATED.map(orjson.dumps), st.integers(0, 400), st.binary(max_size=3)).map(
        lambda cut: (cut[0][: cut[1]] + cut[2] + cut[0][cut[1] :]).replace(b"\n", b" ")
    ),
    st.binary(max_size=30).map(lambda raw: raw.replace(b"\n", b" ")),
)


def plainly(raw: bytes) -> dict[str, Any] | None:
    """The record by the full parser alone, or None."""
    try:
        return dict(orjson.loads(canonical(raw)))
    except ValueError:
        return None


@settings(max_examples=300, deadline=None)
@given(st.lists(LINES, min_size=1, max_size=5))
def test_compiled_code_and_the_full_parser_agree_on_every_line(lines: list[bytes]) -> None:
    expected = [plainly(raw) for raw in lines]
    table, bad = decode_payload(b"\n".join(lines))
    assert [record.index for record in bad] == [n for n, record in enumerate(expected) if record is None]
    columns = {name: table[name].cast(_plain(table[name].type)).to_pylist() for name in RECORD_SCHEMA.names}
    for row, record in enumerate(record for record in expected if record is not None):
        for name, values in columns.items():
            value, wanted = values[row], record.get(name, 1 if name == "schema_version" else None)
            if isinstance(value, float):
                wanted = float(wanted)
            assert value == wanted, name
            if isinstance(value, float):
                assert math.copysign(1, value) == math.copysign(1, wanted)


def _plain(kind: pa.DataType) -> pa.DataType:
    return pa.int64() if pa.types.is_timestamp(kind) else kind
