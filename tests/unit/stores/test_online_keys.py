"""Entity keys: what the store calls an entity, for each kind of join key."""

import uuid
from itertools import combinations

import pytest
from feast.protos.feast.types.Value_pb2 import Value
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.stores.online_keys import EntityKeyError, entity_key

ID = str(uuid.UUID(int=7))


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (Value(string_val="u1"), "u1"),
        (Value(string_val="anon:\x1f\\"), "anon:\x1f\\"),
        (Value(int64_val=-7), "-7"),
        (Value(int32_val=7), "7"),
        (Value(uuid_val=ID), ID),
        (Value(bool_val=True), "True"),
        (Value(unix_timestamp_val=12), "12"),
        (Value(bytes_val=b"\0\xff"), "00ff"),
    ],
)
def test_a_single_key_is_its_value_as_events_carry_it(value: Value, expected: str) -> None:
    assert entity_key(["user_id"], [value]) == expected


def test_several_keys_are_joined_in_the_order_of_their_names() -> None:
    one, two = Value(string_val="a"), Value(int64_val=2)
    assert entity_key(["b", "a"], [one, two]) == entity_key(["a", "b"], [two, one]) == "2\x1fa"


PARTS = st.lists(st.text(alphabet="a\\u\x1f", max_size=4), min_size=2, max_size=2)


@settings(deadline=None)
@given(st.lists(PARTS, min_size=2, max_size=6, unique_by=tuple))
def test_values_that_hold_the_separator_do_not_collide(entities: list[list[str]]) -> None:
    keys = [entity_key(["a", "b"], [Value(string_val=part) for part in parts]) for parts in entities]
    assert all(one != other for one, other in combinations(keys, 2))


@pytest.mark.parametrize("value", [Value(), Value(null_val=0)])  # type: ignore[arg-type]
def test_a_key_without_a_value_is_refused_with_its_name(value: Value) -> None:
    with pytest.raises(EntityKeyError, match="join key 'user_id' has no value"):
        entity_key(["user_id"], [value])


def test_a_list_is_no_key() -> None:
    value = Value()
    value.string_list_val.val.append("a")
    with pytest.raises(EntityKeyError, match="'user_id' is a string_list_val"):
        entity_key(["user_id"], [value])
