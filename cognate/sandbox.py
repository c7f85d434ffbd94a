"""Runs generated code where it can do no harm, and says whether it passed its tests, and if not, why.

The code runs in a process of its own (jail.py), with an empty environment, in an empty folder that is the only place it can
write to, under limits on time, memory, output and processes, without network. The process returns what the tests' calls
returned; the comparison with what they should return is made here. So leaving early, patching what `==` or `assert`
means, or printing that all is well are worth nothing.

Which layers of isolation were in force is part of the verdict; docs/evaluation.md has what each of them keeps out.
"""

from __future__ import annotations

import ast
import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final, Literal

LAYERS: Final = ("namespaces", "landlock", "seccomp", "hook")
Reason = Literal["passed", "wrong", "error", "memory", "timeout", "output", "ended"]
_JAIL: Final = Path(__file__).with_name("jail.py")


@dataclass(frozen=True)
class Limits:
    wall_seconds: float = 6.0
    cpu_seconds: int = 4
    memory_bytes: int = 512 << 20
    file_bytes: int = 1 << 20
    output_bytes: int = 256 << 10  # printed and returned together
    open_files: int = 32
    processes: int = 1

    def for_kernel(self) -> dict[str, int]:
        """By the names of setrlimit."""
        return {
            "CPU": self.cpu_seconds,
            "AS": self.memory_bytes,
            "FSIZE": self.file_bytes,
            "NOFILE": self.open_files,
            "NPROC": self.processes,
            "CORE": 0,
        }


USUAL: Final = Limits()


@dataclass(frozen=True)
class Verdict:
    """reason: passed; wrong: a call returned something else; error: it raised; ended: it left before the last call; or a limit"""

    reason: Reason
    detail: str
    isolation: tuple[str, ...]

    @property
    def passed(self) -> bool:
        return self.reason == "passed"


class UnreadableTest(ValueError):
    """A test that is not one assert statement."""


def run(code: str, tests: Sequence[str], setup: str = "", limits: Limits = USUAL, layers: Sequence[str] = LAYERS) -> Verdict:
    """Run the code, then `setup`, then each test, an assert statement. Raises UnreadableTest."""
    parsed = [parse_test(test) for test in tests]
    ended = _run_process(_job(f"{code}\n{setup}", [call for call, _ in parsed], limits, layers), limits)
    return _judge(ended, [expected for _, expected in parsed], limits)


def values(code: str, calls: Sequence[str], limits: Limits = USUAL, layers: Sequence[str] = LAYERS) -> list[Any] | None:
    """What each call, an expression, returns after the code; None unless all of them do and the process ends well."""
    ended = _run_process(_job(code, calls, limits, layers), limits)
    try:
        told = _Told.of(ended.results)
    except _UNREADABLE:
        return None
    return told.values if ended.returncode == 0 and len(told.values) == len(calls) else None


def parse_test(test: str) -> tuple[str, Any]:
    """(call, what it should return). `assert f(2) == 4` gives ("f(2)", 4): the right side stays on this side of the wall.

    An assert of another form can only be judged inside: its whole condition is the call, and should be True.
    """
    try:
        (statement,) = ast.parse(test.strip()).body
    except (SyntaxError, ValueError) as error:
        raise UnreadableTest(f"not one statement: {test[:80]!r}") from error
    if not isinstance(statement, ast.Assert):
        raise UnreadableTest(f"not an assert statement: {test[:80]!r}")
    condition = statement.test
    if isinstance(condition, ast.Compare) and len(condition.ops) == 1 and isinstance(condition.ops[0], ast.Eq):
        with contextlib.suppress(ValueError):  # the right side is no literal
            return ast.unparse(condition.left), ast.literal_eval(condition.comparators[0])
    return f"bool({ast.unparse(condition)})", True


def _job(code: str, calls: Sequence[str], limits: Limits, layers: Sequence[str]) -> bytes:
    return json.dumps({"code": code, "calls": list(calls), "limits": limits.for_kernel(), "layers": list(layers)}).encode()


@dataclass(frozen=True)
class _Ended:
    """returncode: None when it had to be killed for `broke`"""

    results: bytes
    returncode: int | None
    broke: Literal["timeout", "output"] | None


def _run_process(job: bytes, limits: Limits) -> _Ended:
    with tempfile.TemporaryDirectory(prefix="sandbox-", ignore_cleanup_errors=True) as folder, tempfile.TemporaryFile() as given:
        given.write(job)
        given.seek(0)
        read_end, write_end = os.pipe()
        with os.fdopen(read_end, "rb", buffering=0) as results:
            try:
                process = subprocess.Popen(
                    [sys.executable, "-I", "-S", "-B", str(_JAIL), str(write_end)],
                    stdin=given, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, bufsize=0,
                    env={}, cwd=folder, pass_fds=[write_end], start_new_session=True,
                )  # fmt: skip
            finally:
                os.close(write_end)
            assert process.stdout is not None
            try:
                told, broke = _listen(results, process.stdout, limits)
                if broke is None:
                    process.wait(timeout=1.0)
            except subprocess.TimeoutExpired:
                broke = "timeout"
            finally:
                _kill(process)
    return _Ended(told, None if broke else process.returncode, broke)


def _listen(results: IO[bytes], printed: IO[bytes], limits: Limits) -> tuple[bytes, Literal["timeout", "output"] | None]:
    """What came through `results` until both ends are closed, the time is over, or there is too much of it."""
    told, left, deadline = b"", limits.output_bytes, time.monotonic() + limits.wall_seconds
    open_ends = {results.fileno(): results, printed.fileno(): printed}
    while open_ends:
        ready, _, _ = select.select(list(open_ends), [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            return told, "timeout"
        for end in ready:
            piece = os.read(end, 65536)
            if not piece:
                del open_ends[end]
            left -= len(piece)
            if end == results.fileno():
                told += piece
        if left < 0:
            return told, "output"
        if time.monotonic() > deadline:
            return told, "timeout"
    return told, None


def _kill(process: subprocess.Popen[bytes]) -> None:
    """The process and whatever it started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    process.wait()
    if process.stdout is not None:
        process.stdout.close()


# --- the verdict ------------------------------------------------------------------------------------------


_UNREADABLE: Final = (ValueError, KeyError, TypeError, OverflowError, RecursionError, MemoryError)


@dataclass(frozen=True)
class _Told:
    """What came through the pipe. error: name and words of what the first call that raised did raise, if any did"""

    isolation: tuple[str, ...]
    values: list[Any]
    error: tuple[str, str] | None

    @classmethod
    def of(cls, results: bytes) -> _Told:
        """Raises one of _UNREADABLE where the far side did not write it so."""
        first, *lines = [json.loads(line) for line in results.splitlines()]
        isolation = tuple(str(layer) for layer in first["isolation"])
        returned = [decode(line["value"]) for line in lines if "value" in line]
        raised = [(str(line["error"]), str(line["detail"])) for line in lines if "error" in line]
        return cls(isolation, returned, next(iter(raised), None))


def _judge(ended: _Ended, expected: Sequence[Any], limits: Limits) -> Verdict:
    try:
        told = _Told.of(ended.results)
    except _UNREADABLE as problem:
        return Verdict(ended.broke or "ended", f"no readable result: {type(problem).__name__}", ())
    isolation, returned, error = told.isolation, told.values, told.error
    if ended.broke == "timeout" or ended.returncode in (-signal.SIGXCPU, -signal.SIGKILL):
        return Verdict("timeout", f"not done after {limits.wall_seconds:g} s, or {limits.cpu_seconds} s of processor time", isolation)
    if ended.broke == "output":
        return Verdict("output", f"more than {limits.output_bytes:,} bytes", isolation)
    for number, (value, wanted) in enumerate(zip(returned, expected, strict=False), start=1):
        if not _equal(value, wanted):
            return Verdict("wrong", f"test {number} of {len(expected)}: {_shown(value)} instead of {_shown(wanted)}", isolation)
    if error is not None:
        name, words = error
        reasons: dict[str, Reason] = {"MemoryError": "memory", "SystemExit": "ended"}
        return Verdict(reasons.get(name, "error"), f"{name}: {words}", isolation)
    if len(returned) != len(expected) or ended.returncode != 0:
        return Verdict("ended", f"left with code {ended.returncode} after {len(returned)} of {len(expected)} tests", isolation)
    return Verdict("passed", f"{len(expected)} tests", isolation)


class _Other:
    """A value that is no built-in one: equal to nothing."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return f"<{self.name}>"


def decode(tree: Any) -> Any:
    """The inverse of jail.encode(); raises ValueError, TypeError, KeyError or RecursionError where it was not made by that."""
    kind, content = tree
    if kind == "none":
        return None
    if kind == "other":
        return _Other(str(content))
    if kind in ("list", "tuple", "set", "frozenset"):
        return {"list": list, "tuple": tuple, "set": set, "frozenset": frozenset}[kind](decode(each) for each in content)
    if kind == "dict":
        return {decode(key): decode(value) for key, value in content}
    if kind == "complex":
        return complex(*map(float.fromhex, content))
    return _READ[kind](content)


_READ: Final[dict[str, Callable[[Any], Any]]] = {
    "bool": bool,
    "str": str,
    "int": lambda text: int(text, 16),
    "float": float.fromhex,
    "bytes": bytes.fromhex,
}


def _shown(value: Any) -> str:
    try:
        return repr(value)[:100]
    except (ValueError, RecursionError):  # too many digits, or too deep
        return f"a {type(value).__name__} too long to print"


def _equal(value: Any, wanted: Any) -> bool:
    try:
        return bool(value == wanted)
    except RecursionError:
        return False
