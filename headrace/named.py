"""What `module:name` names, imported when it is asked for."""

from importlib import import_module
from typing import Any


class NamedError(LookupError):
    """The message says what is wrong with the name."""


def named(path: str) -> Any:
    """Raises NamedError."""
    module_name, colon, name = path.partition(":")
    if not (colon and module_name and name):
        raise NamedError(f"{path!r} is not written as module:name")
    try:
        module = import_module(module_name)
    except ImportError as error:
        raise NamedError(
            f"module {module_name} cannot be imported ({error}): put its folder on PYTHONPATH, wherever it is needed"
        ) from error
    try:
        return getattr(module, name)
    except AttributeError as error:
        raise NamedError(f"module {module_name} has no {name}") from error
