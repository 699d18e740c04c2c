"""A typed config is changed by name: from a command line, and in a copy."""

from collections.abc import Iterable, Mapping
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any, Final, TypeVar

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Config = TypeVar("Config", bound="DataclassInstance")

_KINDS: Final = {int: "a whole number", float: "a number", str: "text"}


def parse_changes(texts: Iterable[str], of: "type[DataclassInstance]") -> dict[str, Any]:
    """Each `key=value`, the last one of a key counting. Raises ValueError."""
    return dict(parse_change(text, of) for text in texts)


def parse_change(text: str, of: "type[DataclassInstance]") -> tuple[str, Any]:
    """`key=value`, the value read as the type that the key has. Raises ValueError."""
    key, equals, value = text.partition("=")
    kinds: dict[str, Any] = {field.name: field.type for field in fields(of)}
    if not equals or key not in kinds:
        raise ValueError(f"cannot read {text!r}: write key=value with a key of {', '.join(sorted(kinds))}")
    kind = kinds[key]
    try:
        return key, kind(value)
    except ValueError as error:
        raise ValueError(f"{key} is {value!r}: write {key}=VALUE with {_KINDS[kind]}") from error


def changed(config: Config, what: str, changes: Mapping[str, Any]) -> Config:
    """A copy with some values changed; `what` a key is called in an error. Raises ValueError for an unknown one."""
    known = {field.name for field in fields(config)}
    unknown = [f"{key}={value}" for key, value in sorted(changes.items()) if key not in known]
    if unknown:
        raise ValueError(f"unknown {what} {', '.join(unknown)}; known are {', '.join(sorted(known))}")
    return replace(config, **changes)
