"""Expressions over event columns: nulls are NaN and stay so."""

import numpy as np
import pytest

from headrace.aggregates.expressions import evaluate

NULL = np.nan
COLUMNS = {"price": np.array([2.0, NULL, 3.0, 1e308]), "quantity": np.array([4.0, 1.0, 0.0, 1e10])}


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("price", [2.0, NULL, 3.0, 1e308]),
        ("price*quantity", [8.0, NULL, 0.0, NULL]),
        ("price/quantity", [0.5, NULL, NULL, 1e298]),
        ("quantity-quantity/2", [2.0, 0.5, 0.0, 5e9]),
        ("(1+quantity)*2", [10.0, 4.0, 2.0, 20000000002.0]),
        ("3", [3.0, 3.0, 3.0, 3.0]),
    ],
)
def test_an_expression_is_null_where_an_input_is_null_a_divisor_0_or_the_result_too_large(
    expression: str, expected: list[float]
) -> None:
    np.testing.assert_array_equal(evaluate(expression, COLUMNS), expected)


def test_anything_but_arithmetic_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'abs\(price\)' cannot be computed"):
        evaluate("abs(price)", COLUMNS)
