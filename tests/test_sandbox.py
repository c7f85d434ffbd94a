"""sandbox.py: generated code that means harm, or cheats, or fails: contained, told apart, and the suite goes on."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import pytest

from cognate import jail
from cognate.sandbox import LAYERS, Limits, UnreadableTest, decode, parse_test, run, values

TEST = ["assert f(2) == 4"]
SHORT = Limits(wall_seconds=3.0, cpu_seconds=1)
KERNEL = ("namespaces", "landlock", "seccomp")


def available(*layers: str) -> tuple[str, ...]:
    """Those of the layers that this machine offers. An empty program passes with any of them."""
    verdict = run("", [], layers=layers)
    assert verdict.passed, verdict
    return verdict.isolation


def needs(*layers: str) -> None:
    if set(available(*layers)) != set(layers):
        pytest.skip(f"this machine does not offer {', '.join(layers)}")


def test_code_that_is_right_passes() -> None:
    verdict = run("def f(n):\n    return n * n", [*TEST, "assert f(3) == 9"])
    assert verdict.passed, verdict
    assert verdict.isolation[-1] == "hook"


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("def f(n):\n    return n + 1", "wrong"),
        ("def f(n): return", "wrong"),
        ("def g(n): return 4", "error"),
        ("def f(n:", "error"),
        ("import sys; sys.exit(0)", "ended"),
        ("def f(n): raise SystemExit(0)", "ended"),
        ("import os; os._exit(0)", "ended"),
        ("def f(n):\n    import os; os._exit(0)", "ended"),
        ("x = [0] * 10**9", "memory"),
        ("def f(n): return f(n)", "error"),
        ("def f(n):\n    a = []\n    a.append(a)\n    return a", "error"),
    ],
)
def test_code_that_is_not_fails_with_its_reason(code: str, reason: str) -> None:
    assert run(code, TEST).reason == reason


@pytest.mark.parametrize(
    "code",
    [
        "class Always(int):\n    def __eq__(self, other): return True\n    __hash__ = int.__hash__\ndef f(n): return Always(7)",
        "class Always:\n    def __eq__(self, other): return True\ndef f(n): return Always()",
        "class Always(list):\n    def __eq__(self, other): return True\ndef f(n): return Always()",
        "import builtins\nbuiltins.AssertionError = Exception\nbuiltins.isinstance = lambda *_: True\ndef f(n): return 5",
        'import json\njson.dumps = lambda *_: \'{"value": ["int", "4"]}\'\ndef f(n): return 5\nraise SystemExit',
        'print(\'{"value": ["int", "4"]}\')\nimport os; os._exit(0)',
    ],
)
def test_patching_what_equal_means_wins_nothing(code: str) -> None:
    assert not run(code, TEST).passed


def test_what_a_subclass_redefines_is_read_past() -> None:
    code = (
        "class Always(list):\n    def __iter__(self): return iter([4])\n    def __eq__(self, other): return True\ndef f(n): return Always()"
    )
    assert run(code, ["assert f(2) == [4]"]).detail == "test 1 of 1: [] instead of [4]"


def test_the_expected_value_never_enters_the_process() -> None:
    """Even code that looks everywhere in its process for it does not find it."""
    code = """import gc, sys
def f(n):
    wanted = chr(32).join(("very", "secret", "value"))
    places = [each for each in gc.get_objects() if isinstance(each, dict | list | tuple)]
    return wanted if any(isinstance(item, str) and wanted in item for place in places for item in tuple(place)) else "not found"
"""
    assert "'not found' instead of 'very secret value'" in run(code, ["assert f(2) == 'very secret value'"]).detail
    assert run(code, ["assert f('very secret value') == 'very secret value'"]).passed  # it does find what is there


@pytest.mark.parametrize(
    "code", ["while True: pass", "import signal, time\nsignal.signal(signal.SIGXCPU, lambda *_: None)\nwhile True: pass"]
)
def test_an_endless_loop_is_ended(code: str) -> None:
    assert run(code, TEST, limits=SHORT).reason == "timeout"


def test_sleeping_is_ended_by_the_wall_clock() -> None:
    assert run("import time; time.sleep(60)", TEST, limits=Limits(wall_seconds=0.5)).reason == "timeout"


@pytest.mark.parametrize("code", ["print('x' * 10**7)", "while True: print('x')", "def f(n): return 'x' * 10**7"])
def test_huge_output_is_cut_off(code: str) -> None:
    assert run(code, TEST).reason == "output"


BOMBS = {
    "fork": "import os\nwhile True: os.fork()",
    "posix": "import os\nos.posix_spawn('/bin/sleep', ['sleep', '60'], {})",
    "process": "import subprocess\nsubprocess.Popen(['sleep', '60'])",
}


@pytest.mark.parametrize("bomb", BOMBS)
@pytest.mark.parametrize("layers", [("seccomp",), ("hook",), LAYERS], ids=["seccomp", "hook", "all"])
def test_no_process_is_started(bomb: str, layers: tuple[str, ...]) -> None:
    needs(*(layers if layers != LAYERS else ("hook",)))
    verdict = run(BOMBS[bomb], TEST, layers=layers, limits=SHORT)
    assert verdict.reason == "error"
    assert "PermissionError" in verdict.detail


@pytest.mark.parametrize("layers", [("landlock",), ("hook",), LAYERS], ids=["landlock", "hook", "all"])
def test_nothing_is_written_outside(tmp_path: Path, layers: tuple[str, ...]) -> None:
    needs(*(layers if layers != LAYERS else ("hook",)))
    target, kept = tmp_path / "made", tmp_path / "kept"
    kept.write_text("kept")
    for code in (f"open({str(target)!r}, 'w')", f"import os\nos.remove({str(kept)!r})", f"import os\nos.mkdir({str(target)!r})"):
        assert run(code, TEST, layers=layers).reason == "error"
    assert kept.read_text() == "kept"
    assert not target.exists()


def test_its_own_folder_can_be_written_to_but_not_filled() -> None:
    code = "def f(n):\n    open('a', 'w').write('4')\n    return int(open('a').read())"
    assert run(code, TEST).passed
    assert run("open('a', 'wb').write(b'x' * 10**7)", TEST).reason != "passed"


@pytest.mark.parametrize("layers", [("namespaces",), ("seccomp",), ("hook",), LAYERS], ids=["namespaces", "seccomp", "hook", "all"])
def test_nobody_is_reached_over_the_network(layers: tuple[str, ...]) -> None:
    needs(*(layers if layers != LAYERS else ("hook",)))
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        port = server.getsockname()[1]
        verdict = run(f"import socket\nsocket.create_connection(('127.0.0.1', {port}), 1)\ndef f(n): return 4", TEST, layers=layers)
        assert verdict.reason == "error"
        with pytest.raises(TimeoutError):
            server.accept()


def test_the_environment_is_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_SECRET", "hidden")
    assert run("import os\ndef f(n): return os.environ.get('A_SECRET')", ["assert f(2) == None"]).passed


@pytest.mark.parametrize("layers", [("namespaces",), ("landlock",)], ids=["namespaces", "landlock"])
def test_the_environment_of_others_is_not_read(layers: tuple[str, ...]) -> None:
    needs(*layers)
    code = f"def f(n): return open('/proc/{os.getpid()}/environ').read()"
    assert run(code, TEST, layers=layers).detail.startswith("PermissionError")


def test_the_parent_is_not_signalled() -> None:
    needs("seccomp")
    assert run("import os\nos.kill(os.getppid(), 0)", TEST, layers=("seccomp",)).reason == "error"


@pytest.mark.parametrize(
    "line",
    [
        '{"value": ["float", "0x1p9999"]}',
        '{"error": ["a", "list"], "detail": 1}',
        '{"error": "without a detail"}',
        '"an error"',
        '{"value": ["complex", ["0x1p0"]]}',
        '{"value": ["dict", [[["list", []], ["none", ""]]]]}',
        "7",
        "no JSON",
    ],
)
def test_rubbish_on_the_line_back_is_a_failed_program(line: str) -> None:
    """Code can find the pipe; whatever it writes there, the evaluation goes on."""
    everywhere = "import os\nfor place in range(3, 64):\n    try: os.write(place, %r)\n    except OSError: pass\n"
    code = everywhere % f"{line}\n".encode() + "def f(n): return 4"
    assert not run(code, TEST).passed
    values(code, ["f(2)"])  # raises nothing either


def test_the_rest_of_the_suite_goes_on_after_each_of_them() -> None:
    good = "def f(n): return 4"
    codes = [good, BOMBS["fork"], "x = [0] * 10**9", "import os; os._exit(0)", good]
    assert [run(code, TEST).passed for code in codes] == [True, False, False, False, True]


def test_what_programs_commonly_use_works() -> None:
    modules = "math, re, collections, itertools, heapq, functools, random, decimal, string, bisect, fractions, copy, threading"
    code = f"import {modules}\nt = threading.Thread(target=print)\nt.start()\nt.join()\ndef f(n): return int(math.pow(n, 2))"
    assert run(code, TEST).passed


def test_threads_are_allowed_to_any_user_where_the_kernel_refuses_processes() -> None:
    """The limit on processes counts all threads of a user, but of root none."""
    needs("seccomp")
    code = "def f(): return [line.split()[2] for line in open('/proc/self/limits') if line.startswith('Max processes')]"
    assert values(code, ["f()"], layers=("seccomp",)) != [["1"]]
    assert values(code, ["f()"], layers=("hook",)) == [["1"]]


def test_setup_comes_after_the_code_that_it_uses() -> None:
    assert run("class Node: pass\ndef f(n): return root.value", TEST, setup="root = Node()\nroot.value = 4").passed


def test_an_expected_value_stays_outside_where_it_is_a_literal() -> None:
    assert parse_test("assert f([1, 2]) == (3, {'a': -1.5})") == ("f([1, 2])", (3, {"a": -1.5}))
    assert parse_test("assert f(1) == 2, 'message'") == ("f(1)", 2)
    assert parse_test("assert not f(1)") == ("bool(not f(1))", True)
    assert parse_test("assert abs(f(1) - 2) < 0.1") == ("bool(abs(f(1) - 2) < 0.1)", True)
    for text in ("f(1)", "assert f(1); assert f(2)", "assert", "\0"):
        with pytest.raises(UnreadableTest):
            parse_test(text)


def test_a_number_too_long_to_print_is_a_wrong_answer_like_any_other() -> None:
    verdict = run("def f(n): return 10**5000", TEST)
    assert (verdict.reason, verdict.detail) == ("wrong", "test 1 of 1: a int too long to print instead of 4")
    assert run("def f(n): return 10**5000", ["assert f(2) % 10 == 0"]).passed


def test_a_deep_value_is_a_wrong_answer_or_an_error() -> None:
    code = "def f(n):\n    a = []\n    for _ in range(%d): a = [a]\n    return a"
    assert not any(run(code % depth, TEST).passed for depth in (100, 300, 900, 5000))


@pytest.mark.parametrize(
    "value",
    [0, -5, True, None, 1.5, float("inf"), 2 - 3j, "é", b"\xff", [1, (2, "a")], {1, 2}, frozenset({1}), {"a": [1], (1, 2): {3}}],
)
def test_what_a_call_returned_comes_out_as_it_was(value: Any) -> None:
    out = decode(jail.encode(value))
    assert out == value
    assert type(out) is type(value)
    assert decode(jail.encode(object())) != value


def test_values_are_what_the_calls_return() -> None:
    assert values("def f(n): return [n, {'a': (1.5, None)}]", ["f(2)", "f('x')"]) == [[2, {"a": (1.5, None)}], ["x", {"a": (1.5, None)}]]


@pytest.mark.parametrize("code", ["def f(n): return 1 / n", "import sys; sys.exit(0)", "def f(", "import os\ndef f(n): os._exit(n)"])
def test_there_are_no_values_unless_every_call_returns(code: str) -> None:
    assert values(code, ["f(0)", "f(1)"]) is None
