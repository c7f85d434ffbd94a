"""synthetic.py: the answers are right, the same everywhere, and never both trained on and held out."""

from __future__ import annotations

import ast
import operator
import re
from fractions import Fraction

import pytest
from data_folders import small_config

from cognate.data import synthetic
from cognate.data.formats import Example
from cognate.data.rows import plan
from cognate.data.synthetic import problem, solution_holds

PROBLEMS = [problem(3, index) for index in range(800)]
STORIES = [example for kind, example in PROBLEMS if kind == "arithmetic"]
FUNCTIONS = [example for kind, example in PROBLEMS if kind == "functions"]


def evaluate(expression: str) -> Fraction:
    """A second implementation of arithmetic, over Python's own grammar."""
    operators = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}

    def value(node: ast.expr) -> Fraction:
        if isinstance(node, ast.BinOp):
            return Fraction(operators[type(node.op)](value(node.left), value(node.right)))
        assert isinstance(node, ast.Constant)
        return Fraction(node.value)

    return value(ast.parse(expression, mode="eval").body)


def test_every_step_of_every_story_is_true() -> None:
    for story in STORIES:
        steps = re.findall(r"<<(.+?)=(\d+)>>", story.answer)
        assert 1 <= len(steps) <= 4
        for expression, result in steps:
            assert evaluate(expression) == Fraction(result), story.answer
        assert story.answer.splitlines()[-1] == f"#### {steps[-1][1]}"


def test_every_number_of_a_solution_is_in_its_story_or_was_worked_out() -> None:
    """A story can be solved from its own text."""
    for story in STORIES:
        known = set(re.findall(r"\d+", story.prompt))
        for left, right, result in re.findall(r"<<(\d+)[-+*/](\d+)=(\d+)>>", story.answer):
            assert {left, right} <= known, story
            known.add(result)


def test_every_function_passes_its_tests() -> None:
    """The expected values come from another implementation than the code that is taught."""
    for task in FUNCTIONS:
        tests = [line for line in task.prompt.splitlines() if line.startswith("assert ")]
        assert len(tests) == 2
        space: dict[str, object] = {}
        exec(task.answer, space)
        for test in tests:
            exec(test, space)


def test_every_family_of_functions_occurs() -> None:
    texts = "\n".join(task.prompt for task in FUNCTIONS)
    for task in synthetic._TASKS:
        assert re.search(re.escape(task.text).replace(r"\{k\}", r"\d+"), texts), task.name


@pytest.mark.parametrize(
    "answer",
    [
        "2+2 = <<2+2=5>>5\n#### 5",
        "2+2 = <<2+2=4>>4\n#### 5",
        "2+2 = <<2+2=4>>4\n9+1 = <<9+1=10>>10\n#### 10",
        "2+2 = <<2+2=4>>5\n#### 4",
        "#### 4",
    ],
)
def test_a_wrong_solution_is_noticed(answer: str) -> None:
    assert not solution_holds(answer)
    assert solution_holds("2+2 = <<2+2=4>>4\n4*3 = <<4*3=12>>12\n#### 12")


def test_a_problem_is_a_function_of_seed_and_index() -> None:
    assert [problem(3, index) for index in reversed(range(50))][::-1] == PROBLEMS[:50]
    assert problem(4, 0) != problem(3, 0)


def test_the_problems_are_pinned() -> None:
    """The same on every machine and with every Python, or losses of two machines could not be compared."""
    (_, story), (_, task) = problem(0, 0), problem(0, 3)
    assert story.prompt.startswith("Question: Kira starts with 46 pencils. Kira shares them equally among 2 friends and keeps one share.")
    assert task.answer == '\ndef first_2_letters(word):\n    """Take the first 2 letters of a word."""\n    return word[:2]'


def test_the_problems_differ() -> None:
    assert len({example.prompt for _, example in PROBLEMS}) > 0.97 * len(PROBLEMS)


def test_no_held_out_problem_is_trained_on() -> None:
    rows = plan(small_config({"source": "synthetic", "synthetic_problems": 3000}).data, None).read()
    for kind in synthetic.KINDS:
        trained, held_out = ({example.key for example in side[kind]} for side in (rows.training, rows.validation))
        assert trained
        assert held_out
        assert not trained & held_out


def test_problems_have_the_form_of_real_ones() -> None:
    assert all(isinstance(example, Example) and example.prompt.startswith("Question: ") for example in STORIES)
    assert all(task.prompt.endswith("\nCode:") and task.answer.startswith("\ndef ") for task in FUNCTIONS)
