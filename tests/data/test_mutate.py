"""mutate.py: a program under other names still solves its task, and what its new tests expect is what it really returns."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from cognate import sandbox
from cognate.data import files
from cognate.data.formats import Example, mbpp
from cognate.data.mutate import _say_as_much, mutated, rename
from cognate.data.sources import SOURCES

CODE = """import math

def add_all(items, extra):  # the items, and extra
    total = extra
    for item in items:
        total += math.floor(item)
    return total"""


def example(code: str = CODE, text: str = "Write a function to add numbers.", tests: tuple[str, ...] = ()) -> Example:
    tests = tests or ("assert add_all([1, 2, 5], 3) == 11", "assert add_all([4, 1], 9) == 14")
    return mbpp({"text": text, "code": code, "test_list": list(tests)})


def parts(made: Example) -> tuple[list[str], str]:
    lines = made.prompt.split("\n")
    return [line for line in lines if line.startswith("assert")], made.answer.strip()


def test_variants_pass_their_own_tests_under_other_names() -> None:
    variants = mutated(example(), 4, seed=0)
    assert len(variants) == 4
    for variant in variants:
        tests, code = parts(variant)
        assert variant.prompt == "\n".join(["Write a function to add numbers.", *tests, "Code:"])
        assert len(tests) == 2
        assert sandbox.run(code, tests).passed
        assert "add_all" not in variant.prompt + variant.answer
        assert "import math" in code
        assert "# the items, and extra" in code, "comments and layout stay"
    assert len({variant.key for variant in variants} | {example().key}) == 5


def test_expected_values_are_those_of_the_reference() -> None:
    """Said again by the unchanged program."""
    for variant in mutated(example(), 4, seed=1):
        tests, code = parts(variant)
        name = ast.parse(code).body[1].name  # type: ignore[attr-defined]
        assert sandbox.run(CODE, [test.replace(name, "add_all") for test in tests]).passed


def test_variants_depend_on_the_seed_and_the_program_alone() -> None:
    assert mutated(example(), 2, seed=3) == mutated(example(), 2, seed=3) != mutated(example(), 2, seed=4)


def test_what_solutions_count_on_stays() -> None:
    """Numbers in order stay in order, a length given beside its list stays its length, what is equal stays equal."""
    tests = ("assert at([1, 5, 9], 3, 5) == (True, True, True)", "assert at([2, 4, 4, 8], 4, 8) == (True, True, True)")
    code = "def at(row, n, wanted):\n    return row == sorted(row), n == len(row), wanted in row"
    variants = mutated(example(code, tests=tests), 6, seed=0)
    assert variants
    for variant in variants:
        assert all(test.endswith("== (True, True, True)") for test in parts(variant)[0])


@pytest.mark.parametrize(
    ("code", "tests"),
    [
        ("def f(n):\n    return n + 1", ("assert f(2) == 4", "assert f(3) == 5")),  # wrong
        ("def f(n):\n    return n in (2, 3)", ("assert f(2)", "assert f(3)")),  # nothing to compare with
        ("def f(n):\n    return object", ("assert f(2) == object", "assert f(3) == object")),
    ],
)
def test_what_cannot_be_checked_is_left_out(code: str, tests: tuple[str, ...]) -> None:
    assert mutated(example(code, tests=tests), 2, seed=0) == []


@pytest.mark.parametrize(
    ("returned", "before", "is_enough"),
    [
        ([3, 4], [1, 2], True),
        ([3, 3], [1, 2], False),
        ([3, 3], [1, 1], True),
        ([3, None], [1, 2], False),
        ([float("inf"), 1.0], [1.0, 2.0], False),
        ([set(), {1}], [{2}, {3}], True),
        (["x" * 200, "y"], ["a", "b"], False),
        ([(1, [2]), (2, [3])], [(0, [0]), (0, [1])], True),
    ],
)
def test_new_tests_say_as_much_as_the_old(returned: list[object], before: list[object], is_enough: bool) -> None:
    assert _say_as_much(returned, before) is is_enough


def test_a_wrong_or_unjudgeable_program_gives_nothing() -> None:
    assert mutated(example("def add_all(items, extra):\n    return 0"), 2, seed=0) == []
    assert mutated(example("def f(n):\n    return n", tests=("assert f(1)",)), 2, seed=0) == []


@pytest.mark.parametrize(
    ("code", "names", "renamed"),
    [
        ("def f(a):\n    return a.a + a", {"a": "x"}, "def f(x):\n    return x.a + x"),
        ("def f(é, b):\n    return 'é' + b + é", {"b": "c"}, "def f(é, c):\n    return 'é' + c + é"),
        ("def  g(n): return g(n - 1)  # g", {"g": "h"}, "def  h(n): return h(n - 1)  # g"),
        ("f = lambda a, b=1: a", {"a": "b2"}, "f = lambda b2, b=1: b2"),
    ],
)
def test_names_are_renamed_and_nothing_else(code: str, names: dict[str, str], renamed: str) -> None:
    assert rename(code, names) == renamed


@pytest.mark.parametrize(
    ("code", "name"),
    [
        ("def g(width):\n    return width\ndef f(a):\n    return g(width=a)", "(width):"),
        ("def f(a):\n    global count\n    count = a\n    return count", "count"),
        ("class P:\n    def size(self): return 2\ndef f(a):\n    size = P().size()\n    return size * a", "size"),
        ("def f(a):\n    max = a\n    return max", "max"),
        ("def f(numbers):\n    return numbers", "numbers"),
    ],
)
def test_some_names_stay(code: str, name: str) -> None:
    """Those that a renaming by name could not reach everywhere, and those the task speaks of."""
    tests = ("assert f(2) == 2", "assert f(3) == 3")
    if "class" in code:
        tests = ("assert f(2) == 4", "assert f(3) == 6")
    variants = mutated(example(code, tests=tests), 4, seed=0)
    assert len(variants) == 4
    for variant in variants:
        assert name in variant.answer


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # escapes in MBPP's programs
def test_most_real_programs_have_variants(data_dir: Path) -> None:
    examples = list(files.read_usable(data_dir, SOURCES["mbpp"], ("train",)))[:30]
    made = [mutated(each, 1, seed=0) for each in examples]
    assert sum(map(bool, made)) >= 20
    for variants in made:
        for variant in variants:
            tests, code = parts(variant)
            assert sandbox.run(code, tests).passed
