"""A worker that is SIGKILLed, at any instant and at every point where it writes, cannot be seen in the result.

The real loop with a tiny model, in processes of its own. What a reader has seen of the journal stays; the next attempt
ends in the same bits as the run that nothing interrupted.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import re
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pytest

from cognate.config import RunConfig
from cognate.data.tokenizer import Tokenizer
from cognate.rundir import RunDir
from cognate.training import checkpoint
from tests.faults.processes import count, end, start, times, train_once
from tests.training.runs import digests, events, new_run, reproducible_rows, tiny

STEPS = 6
pytestmark = pytest.mark.timeout(3600)


def config() -> RunConfig:
    """Each second checkpoint is followed by the deletion of the one before."""
    return tiny(training={"max_steps": STEPS, "checkpoint_every_steps": 2, "keep_checkpoints": 1})


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> tuple[RunDir, float]:
    """A run that nothing interrupts, and the seconds it takes."""
    began = time.monotonic()
    for name in ("cold", "warm"):
        began = time.monotonic()
        run = new_run(tmp_path_factory.mktemp("whole") / name, config())
        assert end(start(train_once, run.path, cache)) == 0
    return run, time.monotonic() - began


def assert_as_if_nothing_had_happened(run: RunDir, whole: RunDir) -> None:
    assert digests(run, STEPS) == digests(whole, STEPS)
    assert reproducible_rows(run) == reproducible_rows(whole)
    assert not list(run.checkpoints.glob(".step_*")), "something half-written is left"
    told = events(run)
    for first, then in itertools.pairwise(told):
        assert then.seq in (first.seq + 1, 1)  # no line of an attempt is lost or doubled


def journals(run: RunDir) -> dict[str, bytes]:
    return {attempt.path.name: attempt.journal.read_bytes() for attempt in run.attempts() if attempt.journal.exists()}


def test_at_any_instant(whole: tuple[RunDir, float], cache: Path, tmp_path: Path) -> None:
    kept, duration = whole
    draw = random.Random(1)
    kills = runs = 0
    while kills < times(200):
        run = new_run(tmp_path / f"run_{runs}", config())
        for _ in range(draw.randint(1, 3)):
            process = start(train_once, run.path, tmp_path / "cold" if runs % 10 == 9 else cache)
            process.join(draw.uniform(0, duration))
            acknowledged = journals(run)
            process.kill()
            if end(process) == 0:
                break  # it was faster
            assert process.exitcode == -signal.SIGKILL
            kills += 1
            assert all(journals(run)[name].startswith(seen) for name, seen in acknowledged.items())
        if process.exitcode != 0:
            assert end(start(train_once, run.path, cache)) == 0
        assert_as_if_nothing_had_happened(run, kept)
        shutil.rmtree(run.path)
        runs += 1
    count("1 SIGKILL of the worker at random instants", f"{kills} kills in {runs} runs, all bit-identical")


# --- every point where it writes ----------------------------------------------------------------------------

When = Literal["before", "half", "after"]


@dataclass(frozen=True)
class Death:
    """The `nth` call that has this name is the last: SIGKILL before it, after it, or with half of it done."""

    point: str
    nth: int
    when: When


class Points:
    """Every call of an attempt that changes the disk, by name: written down, and if so asked, died at."""

    def __init__(self, death: Death | None = None) -> None:
        self.seen: Counter[str] = Counter()
        self._death = death

    def arm(self) -> None:
        for name in ("fsync", "rename", "mkdir", "rmdir", "unlink"):
            self._wrap(os, name, lambda path, *_: path)
        self._wrap(os, "write", lambda file, data: f"{_path(file)} {json.loads(data)['kind']}", _write_half)
        self._wrap(shutil, "copyfile", lambda _, target: target, _write_and_halve)
        self._wrap(checkpoint, "save_file", lambda _, path: path, _write_and_halve)
        self._wrap(Tokenizer, "save", lambda _, path: path, _write_and_halve)

    def _wrap(self, owner: Any, name: str, target: Callable[..., object], half: Callable[..., None] | None = None) -> None:
        call = getattr(owner, name)

        def counted(*arguments: Any, **options: Any) -> Any:
            point = _named(name, target(*arguments))
            self.seen[point] += 1
            is_last = self._death is not None and (point, self.seen[point]) == (self._death.point, self._death.nth)
            when = self._death.when if self._death is not None and is_last else None
            if when == "half" and half is not None:
                half(call, *arguments)
            if when in ("before", "half"):
                die()
            try:
                return call(*arguments, **options)
            finally:
                if when == "after":
                    die()

        setattr(owner, name, counted)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)  # it takes effect in this thread a moment later


def _named(call: str, path: object) -> str:
    name = _path(path) if isinstance(path, int) else str(path)
    return f"{call} {re.sub('[0-9]{6}', 'N', '/'.join(name.split('/')[-2:]))}"


def _path(file: int) -> str:
    return str(Path(f"/proc/self/fd/{file}").readlink())


def _write_half(call: Callable[[int, bytes], int], file: int, data: bytes) -> None:
    call(file, data[: len(data) // 2])


def _write_and_halve(call: Callable[..., object], content: object, path: Path) -> None:
    call(content, path)
    os.truncate(path, path.stat().st_size // 2)


def armed(death: Death) -> None:
    Points(death).arm()


def list_points(run: Path, cache: Path, listing: Path) -> None:
    points = Points()
    train_once(run, cache, points.arm)
    listing.write_text(json.dumps(points.seen))


def test_at_every_point_where_it_writes(whole: tuple[RunDir, float], cache: Path, tmp_path: Path) -> None:
    kept, _ = whole
    run = new_run(tmp_path / "listed" / "run", config())
    assert end(start(list_points, run.path, cache, tmp_path / "points.json")) == 0
    points: dict[str, int] = json.loads((tmp_path / "points.json").read_text())
    for expected in ("write 0001/events.jsonl metrics", "save_file .step_N.tmp/model.safetensors", "rename checkpoints/.step_N.tmp"):
        assert any(point.startswith(expected) for point in points), sorted(points)
    draw = random.Random(2)
    halves = ("write", "copyfile", "save_file", "save")
    deaths = [
        Death(point, draw.randint(1, often), when)  # type: ignore[arg-type]
        for point, often in sorted(points.items())
        for when in ("before", "half", "after")
        if when != "half" or point.split()[0] in halves
    ]
    chosen = draw.sample(deaths, times(len(deaths)))
    for number, death in enumerate(chosen):
        run = new_run(tmp_path / str(number) / "run", config())
        assert end(start(train_once, run.path, cache, partial(armed, death))) == -signal.SIGKILL, death
        seen = journals(run)
        assert end(start(train_once, run.path, cache)) == 0, death
        assert all(journals(run)[name] == lines for name, lines in seen.items())
        assert_as_if_nothing_had_happened(run, kept)
        shutil.rmtree(run.path)
    count(
        "1 SIGKILL of the worker at its write points", f"{len(chosen)} of {len(deaths)} deaths at {len(points)} points, all bit-identical"
    )
