"""Worked problems with other numbers: GSM8K, SVAMP and ASDiv through their own chains, every answer worked out anew.

renumbered() is pure. A problem is read as a function from some of its numbers to all the others: each step of the chain is
evaluated again with the new numbers, and a number is replaced everywhere, in question and chain, by what its old value has
become. So the text stays consistent by construction; what cannot be read so is left out, never guessed:
    a step that is not exactly true as written, a number in the chain that nothing explains, a value that would have to become
    two different ones, a number of the question that the chain does not use but that follows from others.
Numbers that words repeat ("five", "half", "dozen", "week"), fractions, decimals, ordinals, times and years stay as they are.

Source: the annotations are those of Cobbe et al., arXiv:2110.14168, section 2.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from itertools import permutations
from typing import Final

from cognate.data.arithmetic import NotArithmetic, evaluate, number_of, show
from cognate.data.formats import Example

_TRIES: Final = 100  # draws for a variant before it is given up: of GSM8K's first variants 45 % need one, 95 % at most 71
_LARGEST: Final = 10**6

_STEP = re.compile(r"<<([^=<>]+)=([^<>]+)>>")
_EQUATION = re.compile(r"\A([^=<>\n]+)=([^=<>\n]+)\n#### ")  # ASDiv's: the chain is one equation, without marks
# Also in "30mph" and "0.2x50", not in "B12".
_NUMBER = re.compile(r"(?<![\d.A-WYZa-wyz_])(?:\d{1,3}(?:,\d{3})+(?![\d,])(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+)", re.ASCII)


class NotRenumberable(ValueError):
    """Why a problem is left out, in a few words."""


def renumbered(example: Example, count: int, seed: int) -> list[Example]:
    """Up to `count` variants, all different; a function of the seed and the problem. Raises NotRenumberable."""
    problem = read(example.identity, example.answer.strip())
    rng = random.Random(f"{seed}/{example.key}")  # noqa: S311 - hashed with SHA-512: the same on every machine
    variants: dict[str, Example] = {}
    for _ in range(count):
        for _ in range(_TRIES):
            made = _vary(problem, rng)
            if made is not None and made[0] not in variants:
                question, answer = made
                variants[question] = Example(f"Question: {question}\nAnswer:", f" {answer}", question)
                break
    return list(variants.values())


def chain_holds(answer: str) -> bool:
    """Whether every step is exactly true as written, and the last one gives the number behind "####"."""
    try:
        steps = [(evaluate(expression), evaluate(result)) for expression, result in _steps(answer)]
        final = evaluate(answer.rpartition("####")[2])
    except NotArithmetic:
        return False
    return bool(steps) and all(value == result for value, result in steps) and steps[-1][1] == final


# --- reading ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Problem:
    """movable: values that may become others; fixed: values that must not change, whatever they stand for

    percents: those of the movable that are per cent; derived: values of the chain that are other forms of them
    """

    question: str
    answer: str
    steps: tuple[tuple[str, Fraction], ...]  # expression, result
    movable: tuple[Fraction, ...]
    fixed: frozenset[Fraction]
    percents: frozenset[Fraction]
    derived: frozenset[Fraction]


def read(question: str, answer: str) -> Problem:
    """The problem as a function of its numbers; raises NotRenumberable."""
    steps = tuple((expression, _value(result)) for expression, result in _steps(answer))
    if not steps:
        raise NotRenumberable("no annotated steps")
    if not chain_holds(answer):
        raise NotRenumberable("a step is not exactly true")
    asked = {value for value, _ in _numbers(question)}
    spoken = _spoken(f"{question} {answer}")
    results = {result for _, result in steps}
    leaves = [_leaves(expression) for expression, _ in steps]
    used = set().union(*leaves)
    chain = used | {value for value, _ in _numbers(answer)}
    percents = {number_of(digits) for digits in re.findall(r"(\d+)\s?(?:%|percent)", question)}
    used |= {value for value in percents if not used.isdisjoint(_of_percent(value))}
    movable = {value for value in asked & used if value.denominator == 1 and value > 1} - spoken - _set_in_form(question)
    fixed = frozenset((asked - movable) | spoken)
    percents &= movable
    derived = (chain - asked) & {form for value in percents for form in _of_percent(value)}
    if not movable:
        raise NotRenumberable("no number that could be another")
    known = asked | spoken | derived
    for numbers, (_, result) in zip([*leaves, chain], [*steps, ("", Fraction(0))], strict=True):
        if unexplained := numbers - known:
            raise NotRenumberable(f"nothing explains {show(min(unexplained)) or 'a number'}")
        known.add(result)
    # "30 pupils, 20 of them girls and 10 boys": were 30 not used, it would contradict the others once they change.
    if implied := (asked - used) & (results | set(_combinations(movable))):
        raise NotRenumberable(f"{show(min(implied))} follows from the others")
    return Problem(question, answer, steps, tuple(sorted(movable)), fixed, frozenset(percents), frozenset(derived))


def _steps(answer: str) -> list[tuple[str, str]]:
    """(expression, result) as text."""
    return _STEP.findall(answer) or _EQUATION.findall(answer)


def _value(text: str) -> Fraction:
    try:
        return evaluate(text)
    except NotArithmetic as error:
        raise NotRenumberable("a result that is no number") from error


def _numbers(text: str) -> Iterator[tuple[Fraction, re.Match[str]]]:
    for found in _NUMBER.finditer(text):
        yield number_of(found[0]), found


def _leaves(expression: str) -> set[Fraction]:
    leaves: set[Fraction] = set()

    def note(number: Fraction) -> Fraction:
        leaves.add(number)
        return number

    evaluate(expression, note)
    return leaves


def _of_percent(value: Fraction) -> tuple[Fraction, ...]:
    """What 20 % also appears as: 0.2, 0.8, 1.2, 80, 120."""
    share = value / 100
    return share, 1 - share, 1 + share, 100 - value, 100 + value


def _combinations(values: set[Fraction]) -> Iterator[Fraction]:
    for one, other in permutations(values, 2):
        yield from (one + other, one - other, one * other, one / other)


_SET = re.compile(
    r"\d+\s?/\s?\d+"  # 3/4
    r"|\d+:\d+(?:\s?[ap]\.?m)?|\d+\s?[ap]\.?m\b"  # 10:30, 5 pm
    r"|\d+(?:st|nd|rd|th)\b"
    r"|(?:1[89]|20)\d\d(?!\d|[.,]\d|\s?%)",
    re.IGNORECASE | re.ASCII,
)


def _set_in_form(text: str) -> set[Fraction]:
    """Whole numbers whose form would make nonsense of another: in fractions, times of day, ordinals, years."""
    return {number_of(digits) for found in _SET.finditer(text) for digits in re.findall(r"\d+", found[0])}


# What words say in numbers. A value that a word may stand for is never changed, and explains itself in the chain.
_ONES: Final = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen"
)
_TENS: Final = "twenty thirty forty fifty sixty seventy eighty ninety"
_WORDS: Final[Mapping[str, tuple[str, ...]]] = {
    **{rf"{word}(?:s|th)?": (str(number),) for number, word in enumerate(_ONES.split())},
    **{word: (str(number),) for number, word in enumerate(_TENS.split(), 2) for number in (10 * number,)},
    "hundreds?": ("100",),
    "thousands?|kilo[a-z]+|km|kg|grams?|liters?|litres?|milliliters?|ml|meters?": ("1000", "0.001"),
    "millions?": ("1000000",),
    "once|single": ("1",),
    "twice|doubled?|doubles|doubling|couples?|pairs?|both|second|twins?|either|half|halves|halved|average": ("2", "0.5", "1.5"),
    "thrice|tripled?|triples|third|thirds|triplets?": ("3",),
    "quarters?|quadrupled?|fourths?": ("4", "0.25", "0.75", "25"),
    "fifths?": ("5", "0.2"),
    "tenths?": ("10", "0.1"),
    "dozens?": ("12",),
    "score": ("20",),
    "seconds?|minutes?|mins?|hours?|hourly|hrs?": ("60", "24", "3600"),
    "days?|daily": ("24", "7", "30", "31", "365"),
    "weeks?|weekly|biweekly": ("7", "52", "4", "14"),
    "weekdays?|weekends?|workdays?": ("5", "2", "7"),
    "months?|monthly": ("12", "30", "31", "4", "28"),
    "years?|annual|annually|yearly": ("12", "365", "52"),
    "decades?": ("10",),
    "century|centuries": ("100",),
    "inch|inches|foot|feet|yards?": ("12", "3", "36"),
    "ounces?|oz|pounds?|lbs?": ("16",),
    "gallons?|quarts?|pints?|cups?": ("4", "2", "8", "16", "128"),
    "centimeters?|cm": ("100",),
    "percent|percentage|cents?|pennies|penny": ("100", "0.01"),
    "nickels?": ("5", "0.05"),
    "dimes?": ("10", "0.1"),
    "squares?|rectangles?|rectangular|perimeter": ("4", "2"),
    "triangles?": ("3", "2", "0.5"),
}  # fmt: skip
_SPOKEN = [(re.compile(rf"\b(?:{words})\b", re.IGNORECASE), frozenset(map(Fraction, values))) for words, values in _WORDS.items()]


def _spoken(text: str) -> set[Fraction]:
    values = {Fraction(1), *(Fraction(100), Fraction(1, 100)) * ("%" in text)}
    return values.union(*(meant for words, meant in _SPOKEN if words.search(text)))


# --- writing ----------------------------------------------------------------------------------------------


def _vary(problem: Problem, rng: random.Random) -> tuple[str, str] | None:
    """(question, answer) with other numbers; None where this draw did not work out."""
    now = {value: Fraction(_draw(int(value), value in problem.percents, rng)) for value in problem.movable}
    if now.keys() == set(now.values()) or len(set(now.values()) | problem.fixed) < len(now) + len(problem.fixed):
        return None
    now |= {value: value for value in problem.fixed}
    for value in problem.percents:
        for old, new in zip(_of_percent(value), _of_percent(now[value]), strict=True):
            if old in problem.derived and now.setdefault(old, new) != new:
                return None
    for expression, old in problem.steps:
        try:
            new = evaluate(expression, now.__getitem__)
        except NotArithmetic:  # a difference that is 0 now
            return None
        if not _alike(old, new) or now.setdefault(old, new) != new:
            return None
    question, answer = (_rewrite(text, now) for text in (problem.question, problem.answer))
    if question is None or answer is None or not chain_holds(answer):
        return None
    return question, answer


def _draw(value: int, is_percent: bool, rng: random.Random) -> int:
    """Between half and twice the value, and as round."""
    unit = max(power for power in (1, 10, 100, 1000, 10_000, 100_000) if power == 1 or (value % power == 0 and value >= 5 * power))
    low, high = max(2, -(-value // 2)), max(6, 2 * value)
    if is_percent and value < 100:
        high = min(high, 95)
    return unit * rng.randint(-(-low // unit), high // unit)


def _alike(old: Fraction, new: Fraction) -> bool:
    """Natural numbers stay natural, shares stay below 1, nothing changes its sign."""
    same_kind = new.denominator == 1 or (old.denominator != 1 and _decimals(new) <= max(2, _decimals(old)))
    return same_kind and (old > 0) == (new > 0) and (old < 0) == (new < 0) and (old < 1) == (new < 1) and abs(new) <= _LARGEST


def _decimals(value: Fraction) -> float:
    digits = show(value)
    return math.inf if digits is None else len(digits.partition(".")[2])


def _rewrite(text: str, now: Mapping[Fraction, Fraction]) -> str | None:
    """The text with every number that `now` knows; None where one cannot be written."""
    parts, at = [], 0
    for value, found in _numbers(text):
        new = now.get(value, value)
        digits = found[0] if new == value else show(new, len(found[0].partition(".")[2]))
        if digits is None:
            return None
        if "," in found[0] and new != value:
            whole, point, rest = digits.partition(".")
            digits = f"{int(whole):,}{point}{rest}"
        parts += [text[at : found.start()], digits]
        at = found.end()
    return "".join([*parts, text[at:]])
