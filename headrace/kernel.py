"""The decorator of compiled functions: loops over arrays, compiled at their first call and kept on disk for the next process."""

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba as nb

F = TypeVar("F", bound=Callable[..., Any])


def kernel(function: F) -> F:
    """Compile a function over NumPy arrays and numbers; it releases the GIL. Keeps the annotated type for its callers."""
    return cast(F, nb.njit(cache=True, nogil=True)(function))
