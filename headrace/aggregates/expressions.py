"""What an aggregation's expression is worth for each event: `price*quantity` over columns, nulls as NaN."""

import ast
from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from headrace.arrays import Floats


def evaluate(expression: str, columns: Mapping[str, npt.NDArray[Any]]) -> Floats:
    """The values of an expression that `spec.py` has checked. `columns` numeric, NaN for null, all of one shape.

    Null (NaN) where an input is null, on division by zero, and where the result is beyond what a float64 holds.
    """
    shape = next(iter(columns.values())).shape if columns else ()
    with np.errstate(all="ignore"):
        values = np.broadcast_to(_walk(ast.parse(expression, mode="eval").body, columns), shape)
    return np.where(np.isfinite(values), values, np.nan)


def _walk(node: ast.expr, columns: Mapping[str, npt.NDArray[Any]]) -> Floats:
    match node:
        case ast.BinOp(left=left, op=operator, right=right):
            return _OPERATORS[type(operator)](_walk(left, columns), _walk(right, columns))
        case ast.Name(id=name):
            return np.asarray(columns[name], dtype=np.float64)
        case ast.Constant(value=int() | float() as number):
            return np.asarray(number, dtype=np.float64)
    raise ValueError(f"'{ast.unparse(node)}' cannot be computed: use columns, numbers and + - * / alone")


def _divide(left: Floats, right: Floats) -> Floats:
    return np.where(right == 0, np.nan, np.divide(left, right))


_OPERATORS: Final[dict[type[ast.operator], Callable[[Floats, Floats], Floats]]] = {
    ast.Add: np.add,
    ast.Sub: np.subtract,
    ast.Mult: np.multiply,
    ast.Div: _divide,
}
