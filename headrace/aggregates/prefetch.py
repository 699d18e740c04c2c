"""A hint to the processor: fetch this, it is needed soon. Entities of a batch lie anywhere in memory, and waiting for each costs most."""

from collections.abc import Callable
from typing import Any, Final, cast

import llvmlite.ir as ir
import numpy.typing as npt
from numba.core import types
from numba.extending import intrinsic

from headrace.aggregates.arrays import Int

AHEAD: Final = 8
"""How many events ahead to ask."""
_FOR_WRITING, _KEEP, _DATA = 1, 3, 1


def _prefetch(typing_context: Any, array: Any, index: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        place = builder.bitcast(builder.gep(data, [arguments[1]]), ir.IntType(8).as_pointer())
        half = ir.IntType(32)
        hint = builder.module.declare_intrinsic(
            "llvm.prefetch", [place.type], ir.FunctionType(ir.VoidType(), [place.type, half, half, half])
        )
        builder.call(hint, [place, half(_FOR_WRITING), half(_KEEP), half(_DATA)])
        return context.get_dummy_value()

    return types.void(array, index), generate


prefetch = cast(Callable[[npt.NDArray[Any], Int], None], intrinsic(_prefetch))
"""Ask for the line that holds array[index], of an array of one dimension. The place need not exist."""
