"""A damaged checkpoint is refused, whatever the damage, and the run goes on from the one before and says so."""

from __future__ import annotations

import random
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from cognate.events import Kind
from cognate.rundir import MANIFEST, RunDir
from cognate.training import checkpoint
from tests.faults.processes import count, end, start, times, train_once
from tests.training.runs import digests, events

STEPS = 4
pytestmark = pytest.mark.timeout(3600)


def flip(folder: Path, draw: random.Random) -> None:
    _flip(draw.choice(sorted(folder.iterdir())), draw)


def flip_manifest(folder: Path, draw: random.Random) -> None:
    _flip(folder / MANIFEST, draw)


def _flip(file: Path, draw: random.Random) -> None:
    body = bytearray(file.read_bytes())
    body[draw.randrange(len(body))] ^= 1 << draw.randrange(8)
    file.write_bytes(body)


def zero_a_page(folder: Path, draw: random.Random) -> None:
    file = folder / draw.choice(["model.safetensors", "optimizer.safetensors", "state.json"])
    body = bytearray(file.read_bytes())
    pages = [place for place in range(0, len(body) - 4096, 4096) if any(body[place : place + 4096])]
    place = draw.choice(pages)
    body[place : place + 4096] = bytes(4096)
    file.write_bytes(body)


def truncate(folder: Path, draw: random.Random) -> None:
    file = draw.choice(sorted(folder.iterdir()))
    file.write_bytes(file.read_bytes()[: draw.randrange(file.stat().st_size)])


def empty(folder: Path, draw: random.Random) -> None:
    draw.choice(sorted(folder.iterdir())).write_bytes(b"")


def lose(folder: Path, draw: random.Random) -> None:
    draw.choice(sorted(folder.iterdir())).unlink()


def swap(folder: Path, draw: random.Random) -> None:
    one, other = draw.sample(sorted(folder.iterdir()), 2)
    one.rename(folder / "held")
    other.rename(one)
    (folder / "held").rename(other)


def mix(folder: Path, draw: random.Random) -> None:
    """A file, or the manifest, of the checkpoint before."""
    file = draw.choice(["model.safetensors", "optimizer.safetensors", "state.json", MANIFEST])
    shutil.copyfile(folder.with_name("step_000002") / file, folder / file)


DAMAGES: list[Callable[[Path, random.Random], None]] = [flip, flip_manifest, zero_a_page, truncate, empty, lose, swap, mix]


def test_every_damage_is_refused(whole: RunDir, tmp_path: Path) -> None:
    """Both weight formats load wrong numbers silently: the digests are the only witness, and the manifest has one too."""
    draw = random.Random(3)
    refusals = Counter[str]()
    for number in range(times(500)):
        run = RunDir(tmp_path / "run")
        shutil.copytree(whole.path, run.path)
        damage = DAMAGES[number % len(DAMAGES)]
        damage(run.checkpoint(STEPS), draw)
        saved, refused = checkpoint.newest(run)
        assert len(refused) == 1, (damage.__name__, number)
        assert "step_000004" in refused[0]
        assert saved is not None
        assert saved.position.step == 2
        assert [step for step, _ in run.complete_checkpoints()] == [2]
        refusals[damage.__name__] += 1
        shutil.rmtree(run.path)
    count(
        "4 damaged checkpoints", f"{refusals.total()} of {times(500)} refused ({', '.join(f'{name} {n}' for name, n in refusals.items())})"
    )


def test_the_run_goes_on_from_the_one_before_and_says_so(whole: RunDir, cache: Path, tmp_path: Path) -> None:
    draw = random.Random(4)
    for number in range(times(20)):
        run = RunDir(tmp_path / f"run_{number}")
        shutil.copytree(whole.path, run.path)
        draw.choice(DAMAGES)(run.checkpoint(STEPS), draw)
        assert end(start(train_once, run.path, cache)) == 0
        said = [event.data["message"] for event in events(run) if event.kind is Kind.WARNING]
        assert any("falling back to an older checkpoint" in message for message in said), said
        assert digests(run, STEPS) == digests(whole, STEPS)
    count("4 damaged checkpoints, trained on", f"{times(20)} of {times(20)} from the one before, bit-identical")
