"""Arithmetic as school books write it, read and worked out exactly: "(20-5)*3/4", "1,200 x .5", "$12", "20%".

evaluate() is a recursive descent over digits and operators and knows nothing else; no text is ever given to eval().
show() writes a result as such texts do, or says that they cannot.

    sum = product (("+" | "-") product)*;  product = signed (("*" | "x" | "/" | ...) signed)*;  signed = ("+" | "-")* atom
    atom = "$"? digits "%"? | "(" sum ")"
"""

from __future__ import annotations

import re
from collections.abc import Callable
from fractions import Fraction
from typing import Final, NoReturn, final

LONGEST: Final = 200  # characters; the longest expression of GSM8K has 61
_DEEPEST: Final = 32  # parentheses and signs
_DIGITS: Final = r"\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+\.?\d*|\.\d+"
_TOKEN = re.compile(rf"\s*(?:\$\s?)?(?:(?P<number>{_DIGITS})(?P<percent>\s?%)?|(?P<sign>[-+*/()x×÷−]))", re.ASCII)
_SAME: Final = {"x": "*", "×": "*", "÷": "/", "−": "-"}


class NotArithmetic(ValueError):
    """A text that is no expression, or one without a value."""


def evaluate(expression: str, leaf: Callable[[Fraction], Fraction] = lambda number: number) -> Fraction:
    """The exact value. `leaf` is asked what each number shall count for; of "20%" it is asked for 20. Raises NotArithmetic."""
    if len(expression) > LONGEST:
        raise NotArithmetic(f"longer than {LONGEST} characters")
    return _Reader(expression, leaf).whole()


def show(value: Fraction, decimals: int = 0) -> str | None:
    """The value in digits, with at least so many decimals unless it is whole; None where four decimals do not give it exactly."""
    scaled = value * 10_000
    if scaled.denominator != 1:
        return None
    digits = f"{abs(int(scaled)):05d}"
    whole, rest = digits[:-4], digits[-4:].rstrip("0")
    sign = "-" if value < 0 else ""
    return f"{sign}{whole}.{rest.ljust(decimals, '0')}" if rest else f"{sign}{whole}"


@final
class _Reader:
    def __init__(self, text: str, leaf: Callable[[Fraction], Fraction]) -> None:
        self._tokens = _tokens(text)
        self._leaf, self._at, self._depth = leaf, 0, 0

    def whole(self) -> Fraction:
        value = self._sum()
        if self._at < len(self._tokens):
            self._refuse()
        return value

    def _sum(self) -> Fraction:
        value = self._product()
        while (sign := self._take("+", "-")) is not None:
            term = self._product()
            value = value + term if sign == "+" else value - term
        return value

    def _product(self) -> Fraction:
        value = self._signed()
        while (sign := self._take("*", "/")) is not None:
            factor = self._signed()
            if sign == "/" and not factor:
                raise NotArithmetic("division by 0")
            value = value * factor if sign == "*" else value / factor
        return value

    def _signed(self) -> Fraction:
        self._depth += 1
        if self._depth > _DEEPEST:
            raise NotArithmetic(f"nested deeper than {_DEEPEST}")
        if (sign := self._take("+", "-")) is not None:
            value = self._signed() if sign == "+" else -self._signed()
        elif self._take("(") is not None:
            value = self._sum()
            if self._take(")") is None:
                self._refuse()
        else:
            value = self._number()
        self._depth -= 1
        return value

    def _number(self) -> Fraction:
        token = self._tokens[self._at] if self._at < len(self._tokens) else ""
        if isinstance(token, str):
            self._refuse()
        self._at += 1
        number, divisor = token
        return self._leaf(number) / divisor

    def _take(self, *signs: str) -> str | None:
        if self._at < len(self._tokens) and (token := self._tokens[self._at]) in signs:
            self._at += 1
            return str(token)
        return None

    def _refuse(self) -> NoReturn:
        raise NotArithmetic(f"something else was expected at part {self._at + 1} of {len(self._tokens)}")


def _tokens(text: str) -> list[str | tuple[Fraction, int]]:
    """Signs, and numbers with what they are divided by: 100 for a per cent."""
    tokens: list[str | tuple[Fraction, int]] = []
    at, text = 0, text.rstrip()
    while at < len(text):
        found = _TOKEN.match(text, at)
        if found is None:
            raise NotArithmetic(f"{text[at : at + 10]!r} is neither a number nor a sign")
        sign, number = found["sign"], found["number"]
        tokens.append(_SAME.get(sign, sign) if sign else (number_of(number), 100 if found["percent"] else 1))
        at = found.end()
    return tokens


def number_of(digits: str) -> Fraction:
    """ "1,234.5" """
    return Fraction(digits.replace(",", "").rstrip("."))
