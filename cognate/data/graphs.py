"""Word problems from random solution graphs: 2 to 8 steps, each a relation between amounts, in GSM8K's answer format.

problem(seed, index) is pure. Each amount follows from the one before it and, at times, from another earlier one; so every step is
needed and the graph is more than a chain. The sentences may come in any order, and some are beside the point. The last steps may
go on to dollars, boxes, minutes or hours. The chain is evaluated again in exact arithmetic before it is returned.

synthetic.py has simpler stories, told in the order of their solution; they stand in for data, these go beside real problems.
Source: the idea is iGSM's, Ye et al., arXiv:2407.20311, section 2.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from cognate.data.formats import Example
from cognate.data.renumber import chain_holds

SHORTEST: Final = 2
LONGEST: Final = 8

_NAMES = (
    "Ada", "Amir", "Bella", "Ben", "Carla", "Chen", "Dora", "Elif", "Emil", "Farid", "Gina", "Hana", "Igor", "Ivy", "Jonas", "Kofi",
    "Lena", "Luca", "Mara", "Nadia", "Omar", "Pia", "Quinn", "Rosa", "Sami", "Tara", "Uma", "Viktor", "Wanda", "Yusuf",
)  # fmt: skip
_THINGS = (
    "apples", "balloons", "beads", "books", "buttons", "candles", "cards", "coins", "cookies", "eggs", "flowers", "lemons", "marbles",
    "muffins", "notebooks", "oranges", "pencils", "photos", "plants", "postcards", "shells", "stamps", "stickers", "tickets", "toys",
)  # fmt: skip


@dataclass(frozen=True)
class _Amount:
    who: str
    value: int


@dataclass
class _Draft:
    """A problem being written. sentences: in any order; endings: in theirs, after all others; lines: the chain"""

    rng: random.Random
    things: str
    names: list[str]
    amounts: list[_Amount] = field(default_factory=list)
    sentences: list[str] = field(default_factory=list)
    endings: list[str] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)

    @property
    def last(self) -> _Amount:
        return self.amounts[-1]

    def begin(self, most: int = 60) -> _Amount:
        """Somebody whose amount is told."""
        amount = _Amount(self.names.pop(), self.rng.randint(2, min(60, most)))
        self.sentences.append(f"{amount.who} has {amount.value} {self.things}.")
        return amount

    def work_out(self, beginning: str, expression: str, value: int, unit: str) -> int:
        sign = "$" if unit == "dollars" else ""
        self.lines.append(f"{beginning} {expression} = {sign}<<{expression}={value}>>{value}{'' if sign else f' {unit}'}.")
        return value


def problem(seed: int, index: int) -> Example:
    """Problem `index` of the endless list that `seed` names."""
    rng = random.Random(f"graph/{seed}/{index}")  # noqa: S311 - text seeds are hashed with SHA-512: the same on every machine
    steps = rng.randint(SHORTEST, LONGEST)
    draft = _Draft(rng, rng.choice(_THINGS), rng.sample(_NAMES, len(_NAMES)))
    draft.amounts.append(draft.begin())
    ending = rng.choice([each for each in _ENDINGS if each[0] < steps])
    while len(draft.lines) < steps - ending[0]:
        _relate(draft)
    question, value = ending[1](draft)
    _distract(draft)
    if rng.random() < 0.5:
        rng.shuffle(draft.sentences)
    text = " ".join([*draft.sentences, *draft.endings, question])
    answer = "\n".join([*draft.lines, f"#### {value}"])
    assert chain_holds(answer), answer
    return Example(f"Question: {text}\nAnswer:", f" {answer}", text)


# --- relations: one step each, from the last amount to that of somebody new ---------------------------------


def _relate(draft: _Draft) -> None:
    last, value, who, things, rng = draft.last, draft.last.value, draft.names.pop(), draft.things, draft.rng
    relation = rng.choice(_possible(value))
    if relation == "more":
        number = rng.randint(2, 60)
        sentence, expression, value = f"{who} has {number} more {things} than {last.who}.", f"{value}+{number}", value + number
    elif relation == "fewer":
        number = rng.randint(2, min(60, value - 2))
        sentence, expression, value = f"{who} has {number} fewer {things} than {last.who}.", f"{value}-{number}", value - number
    elif relation == "times":
        number = rng.randint(2, 9)
        sentence, expression, value = f"{who} has {number} times as many {things} as {last.who}.", f"{value}*{number}", value * number
    elif relation == "part":
        number = rng.choice(_parts(value))
        sentence, expression, value = f"{last.who} has {number} times as many {things} as {who}.", f"{value}/{number}", value // number
    elif relation == "percent":
        number = rng.choice(_percents(value))
        sentence, expression = f"{who} has {number}% as many {things} as {last.who}.", f"{value}*{number}/100"
        value = value * number // 100
    elif relation == "joint":
        other = _other(draft, 999 - value)
        sentence, expression = f"{who} has as many {things} as {last.who} and {other.who} together.", f"{value}+{other.value}"
        value += other.value
    else:
        other = _other(draft, value - 2)
        sentence, expression = f"{last.who} has as many {things} as {who} and {other.who} together.", f"{value}-{other.value}"
        value -= other.value
    draft.sentences.append(sentence)
    draft.amounts.append(_Amount(who, draft.work_out(f"{who} has", expression, value, things)))


def _possible(value: int) -> list[str]:
    """Relations that lead to an amount within 2..999."""
    possible = {
        "more": value < 940,
        "fewer": value > 3,
        "times": value < 112,
        "part": bool(_parts(value)),
        "percent": bool(_percents(value)),
        "joint": value < 997,
        "difference": value > 4,
    }
    return [relation for relation, is_possible in possible.items() if is_possible]


def _parts(value: int) -> list[int]:
    return [number for number in range(2, 10) if value % number == 0 and value // number >= 2]


def _percents(value: int) -> list[int]:
    return [number for number in (10, 20, 25, 40, 50, 60, 75, 80) if value * number % 100 == 0 and value * number >= 200]


def _other(draft: _Draft, most: int) -> _Amount:
    """Somebody with at most so many: one from before, or somebody told of now."""
    before = [amount for amount in draft.amounts[:-1] if amount.value <= most]
    return draft.rng.choice(before) if before and draft.rng.random() < 0.7 else draft.begin(most)


# --- endings: no more steps, one, or two, then the question and its answer ----------------------------------


def _ask(draft: _Draft) -> tuple[str, int]:
    return f"How many {draft.things} does {draft.last.who} have?", draft.last.value


def _together(draft: _Draft) -> tuple[str, int]:
    others = draft.rng.sample(draft.amounts[:-1], draft.rng.randint(1, min(3, len(draft.amounts) - 1)))
    summed = [*others, draft.last]
    names = f"{', '.join(each.who for each in summed[:-1])} and {summed[-1].who}"
    expression = "+".join(str(each.value) for each in summed)
    value = draft.work_out(f"{names} have", expression, sum(each.value for each in summed), draft.things)
    return f"How many {draft.things} do {names} have together?", value


def _sold(draft: _Draft) -> int:
    price = draft.rng.randint(2, 9)
    draft.endings.append(f"{draft.last.who} sells all {draft.things} for ${price} each.")
    return draft.work_out(f"{draft.last.who} gets", f"{draft.last.value}*{price}", draft.last.value * price, "dollars")


def _sell(draft: _Draft) -> tuple[str, int]:
    return f"How many dollars does {draft.last.who} get?", _sold(draft)


def _spend(draft: _Draft) -> tuple[str, int]:
    money = _sold(draft)
    spent = draft.rng.randint(1, min(money - 1, 90))
    draft.endings.append(f"Of the money {draft.last.who} spends ${spent}.")
    left = draft.work_out(f"{draft.last.who} keeps", f"{money}-{spent}", money - spent, "dollars")
    return f"How many dollars does {draft.last.who} keep?", left


def _pack(draft: _Draft) -> tuple[str, int]:
    """Into as many boxes as they fill; what is in each follows."""
    value = draft.last.value
    boxes = draft.rng.choice([number for number in range(1, value + 1) if value % number == 0])
    each = value // boxes
    draft.endings.append(f"{draft.last.who} packs all {draft.things} into {'boxes' if boxes > 1 else 'a box'} of {each}.")
    return f"How many full boxes does {draft.last.who} get?", draft.work_out(f"{draft.last.who} gets", f"{value}/{each}", boxes, "boxes")


def _minutes(draft: _Draft) -> int:
    each = draft.rng.choice([5, 10, 12, 15, 20, 30])
    draft.endings.append(f"{draft.last.who} needs {each} minutes for every one of the {draft.things}.")
    return draft.work_out(f"{draft.last.who} needs", f"{draft.last.value}*{each}", draft.last.value * each, "minutes")


def _take_minutes(draft: _Draft) -> tuple[str, int]:
    return f"How many minutes does {draft.last.who} need for all {draft.things}?", _minutes(draft)


def _take_time(draft: _Draft) -> tuple[str, int]:
    """In hours where they come out even, else in minutes and those of a break."""
    minutes = _minutes(draft)
    if minutes % 60 == 0:
        hours = draft.work_out(f"{draft.last.who} needs", f"{minutes}/60", minutes // 60, "hours")
        return f"How many hours does {draft.last.who} need for all {draft.things}?", hours
    rest = draft.rng.randint(5, 45)
    draft.endings.append(f"A break takes {rest} minutes more.")
    total = draft.work_out(f"{draft.last.who} is done after", f"{minutes}+{rest}", minutes + rest, "minutes")
    return f"After how many minutes is {draft.last.who} done?", total


_ENDINGS: Final[tuple[tuple[int, Callable[[_Draft], tuple[str, int]]], ...]] = (
    (0, _ask), (0, _ask), (1, _together), (1, _together), (1, _sell), (1, _pack), (1, _take_minutes), (2, _spend), (2, _take_time),
)  # fmt: skip


# --- what is beside the point ------------------------------------------------------------------------------


def _distract(draft: _Draft) -> None:
    """Up to two sentences with numbers that nothing follows from."""
    for _ in range(draft.rng.randint(0, 2)):
        known, stranger = draft.rng.choice(draft.amounts).who, draft.names.pop()
        number = draft.rng.randint(2, 60)
        others = draft.rng.choice([things for things in _THINGS if things != draft.things])
        sentence = draft.rng.choice(
            [
                f"{stranger} has {number} more {draft.things} than {known}.",
                f"{stranger} has {number} {draft.things}.",
                f"{known} also has {number} {others}.",
                f"{known} is {number + 6} years old.",
            ]
        )
        draft.sentences.insert(draft.rng.randint(0, len(draft.sentences)), sentence)
