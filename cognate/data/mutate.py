"""MBPP's programs under other names and with other tests: what is asked and how it is solved stay, what is to be read changes.

mutated() renames the function, its parameters and its variables wherever they stand, and puts other values into the calls of the
tests. What these should return is what the reference solution returns, run in the sandbox; then the renamed program has to
pass the new tests there. A program that does not pass its own tests, that names things in ways a renaming by name could break
(keyword arguments, methods, global), or whose new tests say less than the old ones, is left out.
"""

from __future__ import annotations

import ast
import builtins
import keyword
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from cognate import sandbox
from cognate.data.formats import Example
from cognate.sandbox import Limits

LIMITS: Final = Limits(wall_seconds=30.0)  # a busy machine must not decide which samples there are; the limit on processor time may
_TRIES: Final = 6  # draws of values for a variant before it is given up
_LONGEST: Final = 160  # characters of an expected value

_VERBS = ("calc", "check", "compute", "count", "do", "eval", "find", "get", "handle", "make", "process", "run", "solve", "take", "work_out")
_NOUNS = ("answer", "case", "data", "input", "item", "output", "puzzle", "query", "result", "step", "task", "thing", "value", "values")
_VARIABLES = (
    "a", "acc", "amount", "b", "c", "cur", "current", "d", "data", "e", "elem", "first", "g", "h", "idx", "item", "k", "left", "m", "n",
    "num", "other", "out", "p", "pos", "q", "r", "res", "right", "rows", "s", "second", "seq", "size", "t", "temp", "u", "v", "val",
    "values", "w", "x", "y", "z",
)  # fmt: skip
_WORDS = ("apple", "bridge", "cloud", "dragon", "engine", "forest", "garden", "hammer", "island", "jacket", "lemon", "window")


def mutated(example: Example, count: int, seed: int) -> list[Example]:
    """Up to `count` variants; a function of the seed and the example (formats.mbpp)."""
    text, code = example.identity, example.answer.removeprefix("\n")
    tests = _tests(example.prompt.removeprefix(f"{text}\n").removesuffix("Code:"))
    if tests is None or not sandbox.run(code, tests, limits=LIMITS).passed:
        return []
    rng = random.Random(f"mbpp/{seed}/{example.key}")  # noqa: S311 - hashed with SHA-512: the same on every machine
    made = (_vary(text, code, tests, rng) for _ in range(count))
    return [variant for variant in made if variant is not None]


def _tests(text: str) -> list[str] | None:
    """The asserts, a line each; None where one is not a comparison with a literal."""
    try:
        statements = ast.parse(text).body
        calls = [sandbox.parse_test(ast.unparse(statement))[0] for statement in statements]
    except (SyntaxError, ValueError):
        return None
    return [ast.unparse(statement) for statement in statements] if not any(call.startswith("bool(") for call in calls) else None


def _vary(text: str, code: str, tests: Sequence[str], rng: random.Random) -> Example | None:
    names = _other_names(text, code, tests, rng)
    renamed = rename(code, names)
    if renamed is None:
        return None
    parsed = [sandbox.parse_test(test) for test in tests]
    for _ in range(_TRIES):
        calls = [_other_values(call, rng) for call, _ in parsed]
        returned = sandbox.values(code, calls, LIMITS) if len(set(calls)) == len(tests) else None
        if returned is None or not _say_as_much(returned, [value for _, value in parsed]):
            continue
        asserts = [f"assert {rename(call, names)} == {value!r}" for call, value in zip(calls, returned, strict=True)]
        if not sandbox.run(renamed, asserts, limits=LIMITS).passed:
            return None
        lines = "\n".join(asserts)
        return Example(f"{text}\n{lines}\nCode:", f"\n{renamed}", f"{text}\n{lines}")
    return None


def _say_as_much(returned: Sequence[Any], before: Sequence[Any]) -> bool:
    """Values that can be written down, of the kinds they had, and not all alike where they were not."""
    if any(type(new) is not type(old) for new, old in zip(returned, before, strict=True)):
        return False
    written = [repr(value) for value in returned]
    try:
        if any(ast.literal_eval(text) != value or len(text) > _LONGEST for text, value in zip(written, returned, strict=True)):
            return False
    except (ValueError, SyntaxError):  # inf, an empty set
        return False
    return len(set(written)) > 1 or len(set(map(repr, before))) == 1


# --- names ------------------------------------------------------------------------------------------------


def _other_names(text: str, code: str, tests: Sequence[str], rng: random.Random) -> dict[str, str]:
    """What each name becomes: the tested function always another one, most of the others."""
    tree = ast.parse(code)
    everything = {node.id for part in (code, *tests) for node in ast.walk(ast.parse(part)) if isinstance(node, ast.Name)}
    spoken = set(re.findall(r"\w+", text))  # what the task calls by its name keeps it
    names = [name for name in _bound(tree) if name not in spoken]
    functions = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    fresh = [name for name in _VARIABLES if name not in everything and name not in _bound(tree)]
    rng.shuffle(fresh)
    chosen: dict[str, str] = {}
    for name in names:
        if name in functions:
            chosen[name] = _unused(lambda: f"{rng.choice(_VERBS)}_{rng.choice(_NOUNS)}", everything | set(chosen.values()))
        elif fresh and rng.random() < 0.8:
            chosen[name] = fresh.pop()
    return chosen


def _unused(draw: Any, taken: set[str]) -> str:
    while (name := str(draw())) in taken:
        pass
    return name


def _bound(tree: ast.Module) -> list[str]:
    """Names that the program gives to functions, parameters and variables, in order, but for those that also stand where no
    renaming by name reaches them."""
    given: dict[str, None] = {}
    out_of_reach: set[str] = set(dir(builtins)) | set(keyword.kwlist)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            given[node.name] = None
        elif isinstance(node, ast.arg):
            given[node.arg] = None
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            given[node.id] = None
        elif isinstance(node, ast.keyword) and node.arg:
            out_of_reach.add(node.arg)
        elif isinstance(node, ast.Global | ast.Nonlocal):
            out_of_reach.update(node.names)
        elif isinstance(node, ast.ExceptHandler) and node.name:
            out_of_reach.add(node.name)
        elif isinstance(node, ast.alias):
            out_of_reach.add((node.asname or node.name).partition(".")[0])
        elif isinstance(node, ast.ClassDef):
            out_of_reach.add(node.name)
            out_of_reach.update(name for part in node.body for name in _bound_by(part))
    return [name for name in given if name not in out_of_reach and not name.startswith("__")]


def _bound_by(statement: ast.stmt) -> Iterator[str]:
    """What a statement of a class body names: reached as attributes."""
    if isinstance(statement, ast.FunctionDef):
        yield statement.name
    yield from (node.id for node in ast.walk(statement) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store))


def rename(code: str, names: Mapping[str, str]) -> str | None:
    """The code with these names, its layout and comments as they were; None where a name is not where the parser says."""
    lines = [line.encode() for line in code.split("\n")]  # the parser counts bytes
    places: set[tuple[int, int, str]] = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Name) and node.id in names:
            places.add((node.lineno - 1, node.col_offset, node.id))
        elif isinstance(node, ast.arg) and node.arg in names:
            places.add((node.lineno - 1, node.col_offset, node.arg))
        elif isinstance(node, ast.FunctionDef) and node.name in names:
            found = re.compile(rb"def\s+").match(lines[node.lineno - 1], node.col_offset)
            if found is None:
                return None
            places.add((node.lineno - 1, found.end(), node.name))
    for row, column, name in sorted(places, reverse=True):
        before, after = lines[row][:column], lines[row][column:]
        if not after.startswith(name.encode()):  # within an f-string, before Python 3.12
            return None
        lines[row] = before + names[name].encode() + after.removeprefix(name.encode())
    return b"\n".join(lines).decode()


# --- values -----------------------------------------------------------------------------------------------


def _other_values(call: str, rng: random.Random) -> str:
    """The call with other numbers and words of the same kinds. What a solution may count on stays: lengths, what is equal, what is
    in order."""
    tree = ast.parse(call, mode="eval")
    rows = [node for node in ast.walk(tree) if isinstance(node, ast.List | ast.Tuple)]
    swapped: dict[Any, Any] = {(int, len(row.elts)): len(row.elts) for row in rows}
    in_order = [numbers for row in rows if (numbers := _numbers(row)) and _values(numbers) == sorted(_values(numbers))]
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant):
            key = (type(node.value), node.value)
            node.value = swapped.setdefault(key, _other_value(node.value, rng))
    for numbers in in_order:
        for node, value in zip(numbers, sorted(_values(numbers)), strict=True):
            node.value = value
    return ast.unparse(tree)


def _numbers(row: ast.List | ast.Tuple) -> list[ast.Constant]:
    """Its items, where all are numbers and there are several."""
    constants = [item for item in row.elts if isinstance(item, ast.Constant) and type(item.value) in (int, float)]
    return constants if len(constants) == len(row.elts) > 1 else []


def _values(constants: Sequence[ast.Constant]) -> list[Any]:
    return [constant.value for constant in constants]


def _other_value(value: Any, rng: random.Random) -> Any:
    if isinstance(value, bool) or rng.random() < 0.3:
        return value
    if isinstance(value, int):
        return rng.randint(-(-value // 2), 2 * value + 2) if value >= 0 else rng.randint(2 * value, -1)
    if isinstance(value, float):
        return round(value * rng.uniform(0.5, 2), 1)
    if isinstance(value, str):
        return re.sub(r"[A-Za-z]{3,}", lambda word: rng.choice(_WORDS) if rng.random() < 0.6 else word[0], value)
    return value
