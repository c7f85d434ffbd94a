"""arithmetic.py: what counts as arithmetic, its exact value, and that nothing else is ever worked out."""

from __future__ import annotations

import ast
import operator
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cognate.data.arithmetic import LONGEST, NotArithmetic, evaluate, show


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("2+3*4", 14),
        ("(2+3)*4", 20),
        ("20-5-3", 12),
        ("48/2/3", 8),
        ("1,200 x .5", 600),
        ("$12 - $2.50", Fraction(19, 2)),
        ("20%*50", 10),
        ("100 × 3 ÷ 4 − 1", 74),
        ("-3+5", 2),
        ("2*-3", -6),
        ("1/3", Fraction(1, 3)),
        ("0.1+0.2", Fraction(3, 10)),
        ("05+1.", 6),
    ],
)
def test_value(expression: str, value: Fraction) -> None:
    assert evaluate(expression) == value


@pytest.mark.parametrize(
    "text",
    [
        "", "2+", "(2", "2)", "2 3", "2**3", "2//3", "2^3", "1e5", "x=3", "__import__('os')", "five", "1/0", "1/(2-2)", "2(3)", "()", "%",
        "1,23", "٣+1",
    ],
)  # fmt: skip
def test_what_is_no_arithmetic_is_refused(text: str) -> None:
    with pytest.raises(NotArithmetic):
        evaluate(text)


@pytest.mark.parametrize("text", ["1+" * LONGEST + "1", "(" * 50 + "1" + ")" * 50, "-" * 50 + "1"])
def test_what_would_cost_too_much_is_refused(text: str) -> None:
    """A model may write anything behind "<<"."""
    with pytest.raises(NotArithmetic):
        evaluate(text)


_OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv, ast.USub: operator.neg}


def worked_out_by_python(node: ast.expr) -> Fraction:
    if isinstance(node, ast.BinOp):
        return _OPERATORS[type(node.op)](worked_out_by_python(node.left), worked_out_by_python(node.right))
    if isinstance(node, ast.UnaryOp):
        return _OPERATORS[type(node.op)](worked_out_by_python(node.operand))
    assert isinstance(node, ast.Constant)
    return Fraction(str(node.value))


numbers = st.decimals(0, 999, places=1).map(str) | st.integers(0, 99).map(str)
expressions = st.recursive(
    numbers,
    lambda inner: st.tuples(inner, st.sampled_from("+-*/"), inner).map(lambda t: f"{t[0]}{t[1]}{t[2]}") | inner.map(lambda e: f"({e})"),
    max_leaves=8,
)


@given(expressions)
def test_the_value_is_pythons(expression: str) -> None:
    """Another parser's tree, in exact arithmetic."""
    if len(expression) > LONGEST:
        return
    try:
        expected = worked_out_by_python(ast.parse(expression, mode="eval").body)
    except ZeroDivisionError:
        with pytest.raises(NotArithmetic):
            evaluate(expression)
    else:
        assert evaluate(expression) == expected


def test_leaves_are_asked_in_order() -> None:
    seen: list[Fraction] = []
    assert evaluate("20%*(3+.5)", lambda number: seen.append(number) or 2 * number) == Fraction(40, 100) * 7
    assert seen == [20, 3, Fraction(1, 2)]


@pytest.mark.parametrize(
    ("value", "decimals", "text"),
    [
        (Fraction(12), 0, "12"),
        (Fraction(12), 2, "12"),
        (Fraction(25, 2), 0, "12.5"),
        (Fraction(25, 2), 2, "12.50"),
        (Fraction(-1, 4), 0, "-0.25"),
        (Fraction(1, 10_000), 0, "0.0001"),
        (Fraction(1, 3), 0, None),
        (Fraction(0), 0, "0"),
    ],
)
def test_shown(value: Fraction, decimals: int, text: str | None) -> None:
    assert show(value, decimals) == text
