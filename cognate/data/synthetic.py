"""Generated problems with checked answers, for a machine without data: arithmetic stories and small functions.

problem(seed, index) is pure. The solution of a story is evaluated again with exact arithmetic before it is returned;
the expected values of a function's tests come from a second implementation, and tests/data runs the one against the other.

What it is NOT: a benchmark, or a substitute for one. The stories come from a few sentence patterns, so a small model
learns them quickly; that shows training working, and says nothing about reasoning.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Final, Literal

from cognate.data.formats import Example

Kind = Literal["arithmetic", "functions"]
KINDS: Final[tuple[Kind, ...]] = ("arithmetic", "functions")
CATEGORY: Final[dict[Kind, str]] = {"arithmetic": "math", "functions": "code"}


def problem(seed: int, index: int) -> tuple[Kind, Example]:
    """Problem `index` of the endless list that `seed` names; every fourth is a function to write."""
    rng = random.Random(f"{seed}/{index}")  # noqa: S311 - text seeds are hashed with SHA-512: the same on every machine
    if index % 4 == 3:
        return "functions", _function(rng)
    return "arithmetic", _story(rng)


# --- arithmetic stories -----------------------------------------------------------------------------------

_NAMES = ("Ada", "Ben", "Chloe", "Dan", "Eva", "Finn", "Grace", "Hugo", "Iris", "Jack", "Kira", "Leo", "Mia", "Noah", "Olga", "Paul")
_THINGS = ("apples", "books", "cards", "coins", "eggs", "figs", "marbles", "pencils", "shells", "stamps", "stickers", "tickets")
_BEGINNINGS = ("{name} has {n} {things}.", "{name} starts with {n} {things}.", "There are {n} {things} in {name}'s box.")
_SENTENCES: Final[dict[str, tuple[str, ...]]] = {
    "+": ("{name} buys {n} more.", "A friend gives {name} {n} {things}.", "{name} finds {n} more {things}."),
    "-": ("{name} gives away {n}.", "{name} loses {n} {things}.", "{name} sells {n} of them."),
    "*": ("Then the number of {things} becomes {n} times as large.", "{name} wins until there are {n} times as many."),
    "/": ("{name} shares them equally among {n} friends and keeps one share.", "{name} keeps one of {n} equal piles."),
}


def _story(rng: random.Random) -> Example:
    """1 to 4 steps, each worked out in a line, as in GSM8K."""
    words = {"name": rng.choice(_NAMES), "things": rng.choice(_THINGS)}
    amount = rng.randint(2, 60)
    text, lines = [rng.choice(_BEGINNINGS).format(n=amount, **words)], []
    for _ in range(rng.randint(1, 4)):
        operator, n = _step(rng, amount)
        before, amount = amount, _apply(operator, amount, n)
        text.append(rng.choice(_SENTENCES[operator]).format(n=n, **words))
        lines.append(f"{before}{operator}{n} = <<{before}{operator}{n}={amount}>>{amount} {words['things']}")
    question = " ".join([*text, f"How many {words['things']} does {words['name']} have now?"])
    answer = "\n".join([*lines, f"#### {amount}"])
    assert solution_holds(answer), answer
    return Example(f"Question: {question}\nAnswer:", f" {answer}", question)


def _step(rng: random.Random, amount: int) -> tuple[str, int]:
    """An operation that keeps the amount a whole number between 1 and 999."""
    divisors = [n for n in range(2, 10) if amount % n == 0]
    operators = ["+"] + ["-"] * (amount > 2) + ["*"] * (amount < 100) + ["/"] * bool(divisors)
    operator = rng.choice(operators)
    if operator == "/":
        return operator, rng.choice(divisors)
    if operator == "*":
        return operator, rng.randint(2, 9)
    return operator, rng.randint(2, min(60, amount - 1) if operator == "-" else 60)


def _apply(operator: str, left: int, right: int) -> int:
    return {"+": left + right, "-": left - right, "*": left * right, "/": left // right}[operator]


_WORKED = re.compile(r"<<(\d+)([-+*/])(\d+)=(\d+)>>(\d+)")


def solution_holds(answer: str) -> bool:
    """Whether every <<a+b=c>> is true, continues the one before, and the last is the answer; in exact arithmetic."""
    amount: Fraction | None = None
    for left, operator, right, result, shown in _WORKED.findall(answer):
        a, b = Fraction(left), Fraction(right)
        if amount not in (None, a):
            return False
        amount = a + b if operator == "+" else a - b if operator == "-" else a * b if operator == "*" else a / b
        if amount != Fraction(result) or result != shown:
            return False
    return amount is not None and answer.endswith(f"\n#### {amount}")


# --- functions --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Task:
    """A family of functions with a whole number k. `code` is what is taught, `expected` what it must return."""

    name: str
    text: str
    argument: Literal["number", "numbers", "word"]
    code: str
    expected: Callable[[Any, int], Any]


_TASKS: Final = (
    _Task("add_{k}", "add {k} to a number", "number", "return n + {k}", lambda n, k: n - -k),
    _Task("times_{k}", "multiply a number by {k}", "number", "return n * {k}", lambda n, k: sum([n] * k)),
    _Task("remainder_{k}", "find the remainder of a number divided by {k}", "number", "return n % {k}", lambda n, k: divmod(n, k)[1]),
    _Task("at_most_{k}", "limit a number to at most {k}", "number", "return min(n, {k})", lambda n, k: n if n < k else k),
    _Task("is_multiple_of_{k}", "check whether a number is a multiple of {k}", "number",
          "return n % {k} == 0", lambda n, k: n // k * k == n),
    _Task("add_{k}_to_all", "add {k} to every number of a list", "numbers",
          "return [n + {k} for n in numbers]", lambda ns, k: [*map(k.__add__, ns)]),
    _Task("keep_above_{k}", "keep the numbers of a list that are greater than {k}", "numbers",
          "return [n for n in numbers if n > {k}]", lambda ns, k: [*filter(k.__lt__, ns)]),
    _Task("count_above_{k}", "count the numbers of a list that are greater than {k}", "numbers",
          "count = 0\n    for n in numbers:\n        if n > {k}:\n            count += 1\n    return count",
          lambda ns, k: sum(n > k for n in ns)),
    _Task("sum_of_first_{k}", "find the sum of the first {k} numbers of a list", "numbers",
          "total = 0\n    for n in numbers[:{k}]:\n        total += n\n    return total", lambda ns, k: sum(ns[:k])),
    _Task("every_{k}th", "take every {k}th item of a list, the first one included", "numbers",
          "return numbers[::{k}]", lambda ns, k: [n for at, n in enumerate(ns) if at % k == 0]),
    _Task("repeat_{k}_times", "repeat a word {k} times", "word", "return word * {k}", lambda w, k: "".join([w] * k)),
    _Task("first_{k}_letters", "take the first {k} letters of a word", "word",
          "return word[:{k}]", lambda w, k: "".join(c for at, c in enumerate(w) if at < k)),
    _Task("without_first_{k}", "remove the first {k} letters of a word", "word", "return word[{k}:]", lambda w, k: w.removeprefix(w[:k])),
    _Task("longer_than_{k}", "check whether a word has more than {k} letters", "word", "return len(word) > {k}", lambda w, k: w[k:] != ""),
)  # fmt: skip
_PARAMETER: Final = {"number": "n", "numbers": "numbers", "word": "word"}
_WORD_LIST = ("apple", "bridge", "cloud", "dragon", "engine", "forest", "garden", "hammer", "island", "jacket", "lemon", "window")


def _function(rng: random.Random) -> Example:
    """A sentence, two tests and "Code:", then the function with its docstring, as in MBPP."""
    task, k = rng.choice(_TASKS), rng.randint(2, 40)
    if task.argument == "word" or task.name in ("every_{k}th", "sum_of_first_{k}"):
        k = rng.randint(2, 6)
    name, text = task.name.format(k=k), task.text.format(k=k)
    arguments = [_argument(rng, task.argument) for _ in range(2)]
    tests = [f"assert {name}({argument!r}) == {task.expected(argument, k)!r}" for argument in arguments]
    prompt = "\n".join([f"Write a function to {text}.", *tests, "Code:"])
    docstring = f'"""{text[0].upper()}{text[1:]}."""'
    code = f"\ndef {name}({_PARAMETER[task.argument]}):\n    {docstring}\n    {task.code.format(k=k)}"
    return Example(prompt, code, text)  # a function that is held out is not trained on with other tests either


def _argument(rng: random.Random, kind: Literal["number", "numbers", "word"]) -> int | list[int] | str:
    if kind == "number":
        return rng.randint(0, 99)
    if kind == "numbers":
        return [rng.randint(0, 50) for _ in range(rng.randint(3, 6))]
    return rng.choice(_WORD_LIST)
