"""The decorator of compiled functions: loops over arrays, compiled at their first call and kept on disk for the next process.

A compiled function holds the code of the kernels that it calls and the constants that it reads, also those of other modules.
Numba looks only at the file of the function itself when it decides whether what it kept is still good, so here every source that
has a part in kernels counts: an upgrade or an edit in place is never answered by old code.
"""

import fcntl
import hashlib
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO, Final, TypeVar, cast

import numba as nb
from numba.core.caching import CompileResultCacheImpl, FunctionCache

F = TypeVar("F", bound=Callable[..., Any])
MARK = b"kernel"
"""What a module says somewhere when its code, or a constant of it, is compiled into kernels."""
PATIENCE_S: Final = 60.0
"""For another process that compiles the same. What takes longer has failed, or stands still."""
_POLL_S: Final = 0.02


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
    """One process at a time compiles a kernel, the others wait for what it keeps: the parts of a stack start together."""

    _impl_class = _CacheImpl
    _turn: BinaryIO | None = None

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        found = super().load_overload(sig, target_context)
        if found is None and self._turn is None:
            self._turn = self._take_turn()
            found = super().load_overload(sig, target_context)  # somebody else may have kept it meanwhile
            if found is not None:
                self._end_turn()
        return found

    def save_overload(self, sig: Any, data: Any) -> None:
        try:
            super().save_overload(sig, data)
        finally:
            self._end_turn()

    def _take_turn(self) -> BinaryIO | None:
        """The locked file beside what is kept; the system unlocks it if the process ends. None where it cannot be had."""
        try:
            self._impl.locator.ensure_cache_path()
            turn = (Path(self._cache_path) / f"{self._impl.filename_base}.turn").open("ab")
        except OSError:  # where nothing can be kept, each process compiles for itself
            return None
        until = time.monotonic() + PATIENCE_S
        while time.monotonic() < until:
            try:
                fcntl.flock(turn, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return turn
            except BlockingIOError:
                time.sleep(_POLL_S)
            except OSError:  # a file system without locks
                break
        turn.close()
        return None

    def _end_turn(self) -> None:
        if self._turn is not None:
            fcntl.flock(self._turn, fcntl.LOCK_UN)  # closing alone would leave it to a child that was forked meanwhile
            self._turn.close()
            self._turn = None
