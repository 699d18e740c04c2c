"""What an operation on an item may say: the fields of a plain view, each value of the type that the view declares."""

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import pyarrow as pa

from headrace.events import MAX_NUMBER
from headrace.stores.plain_rows import STRING, FeastValue, PlainLayout

MAX_TEXT: Final = 4_096
"""Characters of a text."""
MAX_LIST: Final = 1_024


class ItemFieldError(ValueError):
    """A field that the view does not have, or a value that does not fit it."""

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"{field}: {reason}")
        self.field = field
        self.reason = reason


@dataclass(frozen=True)
class _Kind:
    """A type of field: what it is called in a refusal, in Arrow, and how a value of JSON becomes one of it (None: it does not fit)."""

    wanted: str
    arrow: pa.DataType
    read: Callable[[object], Any]


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and len(value) <= MAX_TEXT else None


def _number(value: object) -> float | None:
    sound = isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= MAX_NUMBER
    return float(value) if sound else None  # type: ignore[arg-type]


def _single(value: object) -> float | None:
    """The float of 32 bits that is nearest, as every store keeps it."""
    number = _number(value)
    return None if number is None else float(struct.unpack("f", struct.pack("f", number))[0])


def _whole(bits: int) -> Callable[[object], int | None]:
    bound = 1 << (bits - 1)

    def read(value: object) -> int | None:
        return value if isinstance(value, int) and not isinstance(value, bool) and -bound <= value < bound else None

    return read


def _flag(value: object) -> bool | None:
    return value if isinstance(value, bool) else None


def _list_of(kind: _Kind) -> _Kind:
    def read(value: object) -> list[Any] | None:
        if not isinstance(value, list) or len(value) > MAX_LIST:
            return None
        found = [kind.read(each) for each in value]
        return None if any(each is None for each in found) else found

    return _Kind(f"a list of at most {MAX_LIST}, each {kind.wanted}", pa.list_(kind.arrow), read)


_SINGLE_KINDS: Final = {
    STRING: _Kind(f"a string of at most {MAX_TEXT} characters", pa.string(), _text),
    "DOUBLE": _Kind(f"a number of at most {MAX_NUMBER:g}", pa.float64(), _number),
    "FLOAT": _Kind(f"a number of at most {MAX_NUMBER:g}", pa.float32(), _single),
    "INT64": _Kind("a whole number of 64 bits", pa.int64(), _whole(64)),
    "INT32": _Kind("a whole number of 32 bits", pa.int32(), _whole(32)),
    "BOOL": _Kind("true or false", pa.bool_(), _flag),
}
_KINDS: Final = _SINGLE_KINDS | {f"{name}_LIST": _list_of(kind) for name, kind in _SINGLE_KINDS.items()}


def conform(layout: PlainLayout, fields: Mapping[str, object]) -> dict[str, Any]:
    """A full row of the view: each of its fields, None where nothing is said. Raises ItemFieldError."""
    kinds = dict(layout.fields)
    for name in fields:
        if name not in kinds:
            raise ItemFieldError(
                name, f"view '{layout.view}' has no such field; it has {', '.join(kinds)}: declare it, or leave it out"
            )
    return {name: _conformed(name, kind, fields.get(name)) for name, kind in layout.fields}


def arrow_type(kind: str) -> pa.DataType:
    """The column of a field in the lake; text for a type that no operation can set, where every value is null."""
    return _KINDS[kind].arrow if kind in _KINDS else pa.string()


def feast_value(kind: str, value: Any) -> FeastValue:
    """A value that `conform` gave, None aside, as a row is packed from."""
    if kind in _SINGLE_KINDS:
        return _Single(value)
    return _feast_list(kind, value)


class _Single:
    """One value in the shape of Feast's message, whose import takes seconds."""

    def __init__(self, value: str | float) -> None:
        self.string_val = value if isinstance(value, str) else ""
        self.number = value

    def WhichOneof(self, oneof_group: str) -> str:
        return "string_val" if isinstance(self.number, str) else "number"

    def SerializeToString(self) -> bytes:
        raise AssertionError("numbers and texts are not packed as messages")


def _feast_list(kind: str, value: list[Any]) -> FeastValue:
    from feast.type_map import python_values_to_proto_values
    from feast.value_type import ValueType

    found: FeastValue = python_values_to_proto_values([value], ValueType[kind])[0]
    return found


def _conformed(name: str, kind: str, value: object) -> Any:
    if value is None:
        return None
    if kind not in _KINDS:
        raise ItemFieldError(name, f"it is a {kind}, which cannot be set here: write it with Feast's `push`")
    found = _KINDS[kind].read(value)
    if found is None:
        raise ItemFieldError(name, f"it must be {_KINDS[kind].wanted}")
    return found
