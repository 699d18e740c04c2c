"""Feast's entity keys as the store's: a string for each entity, the same that events carry."""

from collections.abc import Sequence
from typing import Final

from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value

SEPARATOR: Final = "\x1f"
_ESCAPES: Final = str.maketrans({"\\": "\\\\", SEPARATOR: "\\u"})
_AS_IT_IS: Final = frozenset({"string_val", "uuid_val", "time_uuid_val", "decimal_val"})
_NUMBERS: Final = frozenset({"int32_val", "int64_val", "bool_val", "unix_timestamp_val", "double_val", "float_val"})


class EntityKeyError(ValueError):
    """An entity that cannot be named: a join key without a value, or of a type that is no key."""


def key_of(entity: EntityKey) -> str:
    """The store's key of Feast's. Raises EntityKeyError."""
    return entity_key(entity.join_keys, entity.entity_values)


def entity_key(join_keys: Sequence[str], values: Sequence[Value]) -> str:
    """The value of a single join key as it is; several are escaped and joined, in the order of their names.

    No two entities of a view share a key, since a join key has one type. Raises EntityKeyError.
    """
    if len(join_keys) == 1:
        return _text(join_keys[0], values[0])
    named = sorted(zip(join_keys, values, strict=True), key=lambda pair: pair[0])
    return SEPARATOR.join(_text(name, value).translate(_ESCAPES) for name, value in named)


def _text(name: str, value: Value) -> str:
    which = value.WhichOneof("val")
    if which in _AS_IT_IS:
        return str(getattr(value, which))
    if which in _NUMBERS:
        return repr(getattr(value, which))
    if which == "bytes_val":
        return value.bytes_val.hex()
    if which is None or which == "null_val":
        raise EntityKeyError(f"join key '{name}' has no value: leave rows without it out")
    raise EntityKeyError(f"join key '{name}' is a {which}: a key is a string, a number, a UUID or bytes")
