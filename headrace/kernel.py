"""The decorator of compiled functions: loops over arrays, compiled at their first call and kept on disk for the next process.

A compiled function holds the code of the kernels that it calls and the constants that it reads, also those of other modules.
Numba looks only at the file of the function itself when it decides whether what it kept is still good, so here every source that
has a part in kernels counts: an upgrade or an edit in place is never answered by old code.
"""

import hashlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, cast

import numba as nb
from numba.core.caching import CompileResultCacheImpl, FunctionCache

F = TypeVar("F", bound=Callable[..., Any])
MARK = b"kernel"
"""What a module says somewhere when its code, or a constant of it, is compiled into kernels."""


def kernel(function: F) -> F:
    """Compile a function over NumPy arrays and numbers; it releases the GIL. Keeps the annotated type for its callers."""
    return _compiled(function, fastmath=False)


def fast_kernel(function: F) -> F:
    """As `kernel`, for a model's arithmetic: sums in any order, so that they run on vectors. NaN and infinity keep their meaning."""
    return _compiled(function, fastmath={"reassoc", "contract", "arcp", "nsz"})


def _compiled(function: F, fastmath: bool | set[str]) -> F:
    compiled = nb.njit(nogil=True, fastmath=fastmath)(function)
    compiled._cache = _Cache(function)  # what njit(cache=True) does, with our stamp
    return cast(F, compiled)


@cache
def sources_digest() -> str:
    """Of every source beside this package and in it that has a part in kernels."""
    root = Path(__file__).parent
    sources = (path.read_bytes() for room in (root, root.parent / "flows") for path in sorted(room.rglob("*.py")))
    digest = hashlib.sha256()
    for source in sources:
        if MARK in source:
            digest.update(source)
    return digest.hexdigest()


def _stamped(locator: type[Any]) -> type[Any]:
    return type(locator.__name__, (locator,), {"get_source_stamp": lambda _: sources_digest()})


class _CacheImpl(CompileResultCacheImpl):  # type: ignore[misc]
    _locator_classes = [_stamped(locator) for locator in CompileResultCacheImpl._locator_classes]


class _Cache(FunctionCache):  # type: ignore[misc]
    _impl_class = _CacheImpl
