"""Reads of single bytes and of eight at a time by address, for compiled loops over text.

Numba counts references to arrays at every call and looks at the sign of every index; in a loop that looks at each byte of the log that is
most of the time. Whoever uses these keeps the array alive, and sees to it that the eight bytes lie inside it.
"""

from typing import Any

import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from numba.core import types
from numba.extending import intrinsic

from headrace.kernel import kernel


def _load(bits: int) -> Any:
    def load(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = builder.inttoptr(arguments[0], ir.IntType(bits).as_pointer())
        return (
            builder.zext(builder.load(pointer, align=1), ir.IntType(64))
            if bits < 64
            else builder.load(pointer, align=1)
        )

    return load


@intrinsic  # type: ignore[untyped-decorator]
def byte_at(_: Any, at: Any) -> Any:
    """The byte at an address, as int64."""
    return types.int64(types.int64), _load(8)


@intrinsic  # type: ignore[untyped-decorator]
def word_at(_: Any, at: Any) -> Any:
    """The eight bytes at an address as a little-endian uint64."""
    return types.uint64(types.int64), _load(64)


@kernel
def address_of(array: Any) -> int:
    """Where an array's first element lies."""
    return np.int64(array.ctypes.data)  # type: ignore[return-value]  # one without a sign would make floats of sums
