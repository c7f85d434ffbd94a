"""graphs.py: every problem is solved again from its words alone, by a program that has not seen how it was made."""

from __future__ import annotations

import re
from fractions import Fraction

import pytest

from cognate.data.formats import Example
from cognate.data.graphs import LONGEST, SHORTEST, problem
from cognate.data.renumber import chain_holds

PROBLEMS = [problem(0, index) for index in range(1000)]


def solve(text: str) -> Fraction:
    """Read the sentences as equations, in any order, until nothing new follows; then answer the question."""
    has: dict[tuple[str, str], Fraction] = {}
    sentences = re.findall(r"[^.?]+[.?]", text)
    for _ in sentences:
        for sentence in sentences:
            take_in(sentence.strip(), has)
    return answer(sentences[-1].strip(), text, has)


def take_in(sentence: str, has: dict[tuple[str, str], Fraction]) -> None:
    if found := re.fullmatch(r"(\w+) (?:also )?has (\d+) (\w+)\.", sentence):
        has[found[1], found[3]] = Fraction(found[2])
    elif found := re.fullmatch(r"(\w+) has (\d+) (more|fewer) (\w+) than (\w+)\.", sentence):
        sign = 1 if found[3] == "more" else -1
        relate(has, (found[1], found[4]), (found[5], found[4]), Fraction(1), sign * Fraction(found[2]))
    elif found := re.fullmatch(r"(\w+) has (\d+) times as many (\w+) as (\w+)\.", sentence):
        relate(has, (found[1], found[3]), (found[4], found[3]), Fraction(found[2]), Fraction(0))
    elif found := re.fullmatch(r"(\w+) has (\d+)% as many (\w+) as (\w+)\.", sentence):
        relate(has, (found[1], found[3]), (found[4], found[3]), Fraction(found[2]) / 100, Fraction(0))
    elif found := re.fullmatch(r"(\w+) has as many (\w+) as (\w+) and (\w+) together\.", sentence):
        whole, one, other = ((who, found[2]) for who in (found[1], found[3], found[4]))
        if one in has and other in has:
            has[whole] = has[one] + has[other]
        elif whole in has and (one in has) != (other in has):
            known, missing = (one, other) if one in has else (other, one)
            has[missing] = has[whole] - has[known]


def relate(has: dict[tuple[str, str], Fraction], one: tuple[str, str], other: tuple[str, str], factor: Fraction, more: Fraction) -> None:
    """one = factor * other + more"""
    if other in has:
        has[one] = factor * has[other] + more
    elif one in has:
        has[other] = (has[one] - more) / factor


def answer(question: str, text: str, has: dict[tuple[str, str], Fraction]) -> Fraction:
    if found := re.fullmatch(r"How many (\w+) does (\w+) have\?", question):
        return has[found[2], found[1]]
    if found := re.fullmatch(r"How many (\w+) do ([\w, ]+) have together\?", question):
        return sum((has[who, found[1]] for who in re.split(r", | and ", found[2])), Fraction(0))
    if found := re.search(r"(\w+) sells all (\w+) for \$(\d+) each", text):
        spent = re.search(r"spends \$(\d+)", text)
        return has[found[1], found[2]] * int(found[3]) - (int(spent[1]) if spent else 0)
    if found := re.search(r"(\w+) packs all (\w+) into (?:boxes|a box) of (\d+)", text):
        return has[found[1], found[2]] / int(found[3])
    found = re.search(r"(\w+) needs (\d+) minutes for every one of the (\w+)", text)
    assert found is not None, question
    rest = re.search(r"break takes (\d+) minutes", text)
    minutes = has[found[1], found[3]] * int(found[2]) + (int(rest[1]) if rest else 0)
    return minutes / 60 if "How many hours" in question else minutes


@pytest.mark.parametrize("part", range(4))
def test_a_second_solver_agrees(part: int) -> None:
    for example in PROBLEMS[part::4]:
        assert solve(example.identity) == Fraction(example.answer.rpartition("#### ")[2]), example.prompt


def steps(example: Example) -> list[str]:
    return example.answer.strip().split("\n")[:-1]


def test_chains_hold_and_have_two_to_eight_steps() -> None:
    for example in PROBLEMS:
        assert chain_holds(example.answer)
        assert all(line.count("<<") == 1 for line in steps(example))
        assert re.search(r"\n#### [1-9]\d*$", example.answer), "a natural number"
    assert {len(steps(example)) for example in PROBLEMS} == set(range(SHORTEST, LONGEST + 1))


def test_every_step_is_needed() -> None:
    """Each result but the last stands in a later step."""
    for example in PROBLEMS:
        lines = steps(example)
        for number, line in enumerate(lines[:-1]):
            result = re.search(r"=(\d+)>>", line)
            assert result is not None
            assert any(re.search(rf"<<(?:.*\D)?{result[1]}(?!\d).*=", later) for later in lines[number + 1 :]), example.answer


def test_some_numbers_are_beside_the_point() -> None:
    def is_distracted(example: Example) -> bool:
        asked = set(re.findall(r"\d+", example.identity))
        return not asked <= set(re.findall(r"\d+", example.answer))

    assert 0.2 < sum(map(is_distracted, PROBLEMS)) / len(PROBLEMS) < 0.8


def test_problems_are_pure_and_different() -> None:
    assert problem(3, 7) == problem(3, 7) != problem(4, 7)
    assert len({example.key for example in PROBLEMS}) == len(PROBLEMS)
    assert all(example.prompt == f"Question: {example.identity}\nAnswer:" for example in PROBLEMS)
