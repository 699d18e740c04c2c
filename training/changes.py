"""A typed config is changed by name: from a command line, and in a copy."""

from collections.abc import Iterable, Mapping
from dataclasses import fields, replace
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, Final, TypeVar

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Config = TypeVar("Config", bound="DataclassInstance")

_KINDS: Final = {int: "a whole number", float: "a number", str: "text"}


def parse_changes(
    texts: Iterable[str], of: "type[DataclassInstance]", named: Iterable[str] | None = None
) -> dict[str, Any]:
    """Each `key=value`, the last one of a key counting. Raises ValueError, which names these keys, or all."""
    return dict(parse_change(text, of, named) for text in texts)


def parse_change(text: str, of: "type[DataclassInstance]", named: Iterable[str] | None = None) -> tuple[str, Any]:
    """`key=value`, the value read as the type that the key has. Raises ValueError."""
    key, equals, value = text.partition("=")
    kinds: dict[str, Any] = {field.name: field.type for field in fields(of)}
    known = sorted(kinds if named is None else named)
    if not equals:
        raise ValueError(f"cannot read {text!r}: write key=value with a key of {', '.join(known)}")
    if key not in kinds:
        alike = get_close_matches(key, known, n=1)
        meant = f"did you mean {alike[0]}? Known" if alike else "known"
        raise ValueError(f"there is no setting {key!r}: {meant} are {', '.join(known)}")
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
