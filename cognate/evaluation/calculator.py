"""A calculator for decoding: once a model has written "<<48/2=", the result and ">>" are put down for it.

What stands between the marks is read by data/arithmetic.py, never evaluated as code. Where that is no arithmetic, or the result has
more than four decimals, the model is left to itself. Scores with it are a figure of their own: the headline is without.

Source: Cobbe et al., arXiv:2110.14168, section 2: the annotations are there to let a calculator in.
"""

from __future__ import annotations

import re
from collections import deque
from typing import Final, final

from cognate.data.arithmetic import LONGEST, NotArithmetic, evaluate, show
from cognate.data.tokenizer import Tokenizer

_ASKED: Final = re.compile(rf"<<([^<>=\n]{{1,{LONGEST}}})=\Z")


@final
class Calculator:
    """For one call of Cognate.stream() or generate(), as `revise`: it remembers what each row has written."""

    def __init__(self, tokenizer: Tokenizer, rows: int) -> None:
        self._tokenizer = tokenizer
        self._written: list[list[int]] = [[] for _ in range(rows)]
        self._due: list[deque[int]] = [deque() for _ in range(rows)]

    def __call__(self, row: int, token: int) -> int:
        """The token that `row` gets instead of `token`: the next one of a result that is due, or the same."""
        written, due = self._written[row], self._due[row]
        if due:
            token = due.popleft()
        written.append(token)
        if not due and (result := worked_out(self._tokenizer.decode(written[-LONGEST:]))) is not None:
            due.extend(self._tokenizer.encode(f"{result}>>"))
        return token


def worked_out(text: str) -> str | None:
    """The result that a text ending in "<<expression=" asks for; None where it asks for none that could be given."""
    asked = _ASKED.search(text)
    try:
        return show(evaluate(asked[1])) if asked else None
    except NotArithmetic:
        return None
